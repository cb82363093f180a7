"""What a user has without us: PyTorch's own attention over padded batches, in order or by length.

Not a weak one: bf16 where it is timed, rows padded on the right without a mask, so that its flash
attention is causal and computes half the square; the head at the last token alone. No prefix is
shared.
"""

from collections.abc import Iterator, Sequence

import torch

from loadtests.bench_gpu import models
from loadtests.bench_gpu.ceilings import synchronize


class Torch:
    """The same model on the device."""

    def __init__(self, name: str, device: str, dtype: torch.dtype) -> None:
        self._model = models.random_model(models.MODELS[name], dtype, device)
        self._device = device

    @torch.no_grad()
    def score(self, rows: Sequence[Sequence[int]], budget: int, by_length: bool) -> torch.Tensor:
        """(N,) rewards in the order of the rows; so many padded tokens per pass."""
        rewards = torch.empty(len(rows), device=self._device)
        for chosen in batches([*map(len, rows)], budget, by_length):
            longest = max(len(rows[i]) for i in chosen)
            ids = torch.zeros(len(chosen), longest, dtype=torch.int64)
            for at, i in enumerate(chosen):
                ids[at, : len(rows[i])] = torch.tensor(rows[i])
            last = torch.tensor([len(rows[i]) - 1 for i in chosen], device=self._device)
            hidden = self._model.backbone(
                input_ids=ids.to(self._device, non_blocking=True), use_cache=False
            ).last_hidden_state  # (B, T, d)
            pooled = hidden[torch.arange(len(chosen), device=self._device), last]
            rewards[torch.tensor(chosen, device=self._device)] = (
                self._model.score(pooled).squeeze(-1).float()
            )
        synchronize(self._device)
        return rewards.cpu()


def batches(lengths: Sequence[int], budget: int, by_length: bool) -> Iterator[list[int]]:
    """Indices of rows that run together: neighbours, within so many padded tokens.

    >>> list(batches([5, 90, 6, 80], budget=180, by_length=False))
    [[0, 1], [2, 3]]
    >>> list(batches([5, 90, 6, 80], budget=180, by_length=True))
    [[0, 2], [3, 1]]
    """
    order = (
        sorted(range(len(lengths)), key=lengths.__getitem__) if by_length else range(len(lengths))
    )
    batch: list[int] = []
    longest = 0
    for i in order:
        longest = max(longest, lengths[i])
        if batch and longest * (len(batch) + 1) > budget:
            yield batch
            batch, longest = [], lengths[i]
        batch.append(i)
    yield batch
