"""Comparison groups -> the forward passes of one optimizer step. Pure; knows ids, not models.

Every unique completion goes through the model once. Groups are packed by padded tokens into
batches; a group that is larger than the budget becomes a batch of several passes, whose rewards
meet again in one loss (training/gradient.py). How a step is cut changes no gradient.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from training.data import Comparison


@dataclass(frozen=True, slots=True)
class EncodedGroup:
    rows: list[list[int]]
    comparisons: tuple[Comparison, ...]
    cut: int = 0
    "how many of the rows the token limits cut"


@dataclass(frozen=True, slots=True)
class Pass:
    """Rows that go through the model together, padded on the right."""

    input_ids: torch.Tensor  # (N, T)
    attention_mask: torch.Tensor  # (N, T)

    def to(self, device: torch.device) -> "Pass":
        return Pass(self.input_ids.to(device), self.attention_mask.to(device))


@dataclass(frozen=True, slots=True)
class Batch:
    """Groups whose loss is computed together, over the rewards (N,) of all its passes."""

    passes: tuple[Pass, ...]
    order: torch.Tensor  # (N,): where in the passes' rewards each row of the groups is
    winner: torch.Tensor  # (C,), indices of rows
    loser: torch.Tensor
    target: torch.Tensor
    target_margin: torch.Tensor
    weight: torch.Tensor
    rankings: tuple[torch.Tensor, ...] = ()  # (K,) each, rows, best first
    ranking_weight: float = 0.0

    def to(self, device: torch.device) -> "Batch":
        moved = {
            name: value.to(device)
            for name in self.__slots__
            if isinstance(value := getattr(self, name), torch.Tensor)
        }
        passes, rankings = (
            tuple(part.to(device) for part in parts) for parts in (self.passes, self.rankings)
        )
        return replace(self, passes=passes, rankings=rankings, **moved)


@dataclass(frozen=True, slots=True)
class Share:
    """What one process computes in a step. All processes make equally many passes of each sort."""

    batches: list[Batch]
    idle: list[Pass] = field(default_factory=list)
    "passes with a graph whose rewards count for nothing"
    idle_cached: list[Pass] = field(default_factory=list)
    "the same without a graph"

    def to(self, device: torch.device) -> "Share":
        return Share(
            [batch.to(device) for batch in self.batches],
            [passed.to(device) for passed in self.idle],
            [passed.to(device) for passed in self.idle_cached],
        )


def schedule(groups: int, per_step: int, epochs: float, seed: int) -> list[list[int]]:
    """Indices of the groups of every optimizer step. Each epoch has an order of its own.

    >>> [len(step) for step in schedule(groups=5, per_step=2, epochs=1.4, seed=0)]
    [2, 2, 1, 2, 2]
    """
    per_epoch = math.ceil(groups / per_step)
    orders: list[list[int]] = []
    for step in range(math.ceil(epochs * per_epoch)):
        epoch, start = divmod(step, per_epoch)
        if start == 0:
            order = np.random.default_rng([seed, epoch]).permutation(groups).tolist()
        orders.append(order[start * per_step : (start + 1) * per_step])
    return orders


FILLED, SHORTER = 0.25, 0.85
"a batch with this share of its budget ends where the next group is shorter by this factor"


def plan(lengths: Sequence[Sequence[int]], max_tokens: int) -> list[list[int]]:
    """Groups, given the lengths of their rows, packed so that a batch pads to at most `max_tokens`.

    Groups of similar length lie together, and one that is much shorter begins a new batch: padding
    costs as much as text. A group that is larger than the budget is alone.

    >>> plan([[5, 6], [3, 2], [6, 6, 6], [3, 3]], max_tokens=12)
    [[0], [2], [1, 3]]
    """
    batches: list[list[int]] = []
    rows = longest = 0
    for i in sorted(range(len(lengths)), key=lambda i: (-max(lengths[i]), i)):
        fits = (rows + len(lengths[i])) * longest <= max_tokens
        filled = rows * longest >= FILLED * max_tokens
        if batches and fits and not (filled and max(lengths[i]) < SHORTER * longest):
            batches[-1].append(i)
            rows += len(lengths[i])
        else:
            batches.append([i])
            rows, longest = len(lengths[i]), max(lengths[i])
    return batches


def cut(lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Rows, longest first, in passes of at most `max_tokens` padded tokens; a longer row is alone.

    >>> list(cut([4, 9, 5, 3], max_tokens=10))
    [[1], [2, 0], [3]]
    """
    left = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    while left:
        size = max(1, max_tokens // lengths[left[0]])
        yield left[:size]
        left = left[size:]


def pad(rows: Sequence[Sequence[int]]) -> Pass:
    """Rows as tensors, padded on the right.

    >>> pad([[5, 6], [5, 7, 8]])
    Pass(input_ids=tensor([[5, 6, 0],
            [5, 7, 8]]), attention_mask=tensor([[1, 1, 0],
            [1, 1, 1]]))
    """
    ids = np.zeros((len(rows), max(map(len, rows))), np.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
    mask = np.arange(ids.shape[1]) < np.array([[len(row)] for row in rows])
    return Pass(torch.from_numpy(ids), torch.from_numpy(mask.astype(np.int64)))


def collate(
    groups: Sequence[EncodedGroup],
    max_tokens: int = 1 << 40,
    prompt_weight: float | None = None,
    ranked: bool = False,
) -> Batch:
    """A batch of groups.

    Each group weighs `prompt_weight` (1/len(groups) by default), each of its comparisons an equal
    part of that: all C(K,2) comparisons of a prompt are one element of a step (InstructGPT, arXiv
    2203.02155, equation 1). ranked: keep each group's ranking too; raises where it has none.

    >>> batch = collate([EncodedGroup([[5, 6], [5, 7, 8]], (Comparison(1, 0),))])
    >>> batch.order.tolist(), batch.winner.tolist(), batch.loser.tolist(), batch.weight.tolist()
    ([1, 0], [1], [0], [1.0])
    """
    rows = [row for group in groups for row in group.rows]
    parts = list(cut([len(row) for row in rows], max_tokens))
    starts = np.cumsum([0, *(len(group.rows) for group in groups)]).tolist()
    each = 1 / len(groups) if prompt_weight is None else prompt_weight
    placed = [
        (start + c.winner, start + c.loser, c.target, c.target_margin, each / len(g.comparisons))
        for start, g in zip(starts, groups, strict=False)
        for c in g.comparisons
    ]
    winner, loser, target, target_margin, weight = zip(*placed, strict=True)
    rankings = zip(starts, groups, strict=False) if ranked else ()
    return Batch(
        passes=tuple(pad([rows[i] for i in part]) for part in parts),
        order=torch.argsort(torch.tensor([i for part in parts for i in part])),
        winner=torch.tensor(winner),
        loser=torch.tensor(loser),
        target=torch.tensor(target, dtype=torch.float32),
        target_margin=torch.tensor(target_margin, dtype=torch.float32),
        weight=torch.tensor(weight, dtype=torch.float32),
        rankings=tuple(start + torch.tensor(ranking(g)) for start, g in rankings),
        ranking_weight=each,
    )


def ranking(group: EncodedGroup) -> list[int]:
    """Rows of a group, best first. Raises ValueError where its comparisons are not one order.

    >>> comparisons = Comparison(2, 0), Comparison(2, 1), Comparison(0, 1)
    >>> ranking(EncodedGroup([[1], [2], [3]], comparisons))
    [2, 0, 1]
    """
    k = len(group.rows)
    wins = [0] * k
    for c in group.comparisons:
        wins[c.winner] += 1
    decided = all(c.target == 1.0 for c in group.comparisons)
    pairs = {(c.winner, c.loser) for c in group.comparisons}
    if not decided or len(pairs) != math.comb(k, 2) or sorted(wins) != list(range(k)):
        raise ValueError(f"{len(pairs)} comparisons do not rank {k} responses")
    return sorted(range(k), key=lambda i: -wins[i])


def deal(
    groups: Sequence[EncodedGroup],
    max_tokens: int,
    rank: int = 0,
    processes: int = 1,
    ranked: bool = False,
) -> Share:
    """This process's share of a step, the processes loaded alike by padded tokens.

    Weights are `processes` times as large, since gradients are averaged over processes: the groups
    of a step weigh 1 in all, however many processes there are.
    """
    weight = processes / len(groups)
    lengths = [[len(row) for row in group.rows] for group in groups]
    batches = [
        collate([groups[i] for i in chosen], max_tokens, weight, ranked)
        for chosen in plan(lengths, max_tokens)
    ]
    shares: list[list[Batch]] = [[] for _ in range(processes)]
    for batch in sorted(batches, key=_tokens, reverse=True):
        min(shares, key=lambda share: sum(map(_tokens, share))).append(batch)
    graph = [sum(len(b.passes) for b in share) for share in shares]
    cached = [sum(len(b.passes) for b in share if len(b.passes) > 1) for share in shares]
    idle = pad([min((row for group in groups for row in group.rows), key=len)])
    return Share(
        shares[rank],
        [idle] * (max(graph) - graph[rank]),
        [idle] * (max(cached) - cached[rank]),
    )


def _tokens(batch: Batch) -> int:
    return sum(p.input_ids.numel() for p in batch.passes)
