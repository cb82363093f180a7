"""Raw rewards of many rows, in order of length, shared among processes. Knows ids, not text."""

from collections.abc import Sequence

import numpy as np
import torch
from accelerate.utils import gather_object

from service.errors import TrainingError
from training.batches import EncodedGroup, cut, pad
from training.model import AnyRewardModel
from training.processes import processes

MAX_BATCH_TOKENS = 16_384


@torch.no_grad()
def predict(
    model: AnyRewardModel, rows: Sequence[Sequence[int]], max_tokens: int = MAX_BATCH_TOKENS
) -> np.ndarray:
    """Raw rewards of the rows, (N,), the same in every process. Raises where one is not finite."""
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    rewards = np.empty(len(rows), np.float32)
    for chosen, values in _shared(model, rows, list(cut([*map(len, rows)], max_tokens)), device):
        rewards[chosen] = values
    model.train(was_training)
    if not np.isfinite(rewards).all():
        row = int(np.flatnonzero(~np.isfinite(rewards))[0])
        raise TrainingError(
            f"completion {row} of {len(rows)}: its reward is {rewards[row]}; the weights are "
            "broken, or too large for their precision"
        )
    return rewards


def _shared(
    model: AnyRewardModel,
    rows: Sequence[Sequence[int]],
    parts: list[list[int]],
    device: torch.device,
) -> list[tuple[list[int], list[float]]]:
    """Every n-th part in this process; all make as many passes, as sharded weights demand."""
    state = processes()
    rounds = -(-len(parts) // state.num_processes)
    computed: list[tuple[list[int], list[float]]] = []
    for i in range(rounds):
        chosen = parts[min(i * state.num_processes + state.process_index, len(parts) - 1)]
        passed = pad([rows[row] for row in chosen])
        values = model(passed.input_ids.to(device), passed.attention_mask.to(device))
        computed.append((chosen, values.float().cpu().tolist()))
    return gather_object(computed) if state.num_processes > 1 else computed


def predict_groups(model: AnyRewardModel, groups: Sequence[EncodedGroup]) -> list[np.ndarray]:
    """Raw rewards per group, one per unique completion."""
    flat = predict(model, [row for group in groups for row in group.rows])
    return np.split(flat, np.cumsum([len(group.rows) for group in groups])[:-1])
