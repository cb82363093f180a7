"""Which waiting rows form the next batch. Pure: lengths in, indices out."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

MIN_TOKENS = 2
"rows are padded to this: a run over a single token takes another matrix kernel, with other bits"


@dataclass(frozen=True, slots=True)
class Budget:
    """What one engine run may hold."""

    padded_tokens: int
    padding: float
    "share of padding among the padded tokens"


def padded_tokens(lengths: Sequence[int]) -> int:
    """Tokens an engine run over rows of these lengths computes."""
    return len(lengths) * max(MIN_TOKENS, *lengths)


def plan(lengths: Sequence[int], seed: int, budget: Budget) -> list[int]:
    """Indices of the rows to run together, beginning with `seed`, which is always among them.

    lengths: tokens of every waiting row, oldest first. Rows join by nearness in length to those
    already there, the older first among equals, while the batch stays within the budget.

    >>> plan([10, 50, 11, 9, 52], seed=0, budget=Budget(padded_tokens=40, padding=0.2))
    [0, 3, 2]
    """
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    first = bisect_left(order, (lengths[seed], seed), key=lambda i: (lengths[i], i))
    batch = [seed]
    longest = max(MIN_TOKENS, lengths[seed])
    shortest, tokens = longest, lengths[seed]
    below, above = first - 1, first + 1
    while below >= 0 or above < len(order):
        shorter = lengths[order[below]] if below >= 0 else None
        longer = lengths[order[above]] if above < len(order) else None
        take_shorter = longer is None or (
            shorter is not None and shortest - shorter <= longer - longest
        )
        row = order[below] if take_shorter else order[above]
        size = max(longest, lengths[row]) * (len(batch) + 1)
        real = tokens + lengths[row]
        if size > budget.padded_tokens or size - real > budget.padding * size:
            break
        batch.append(row)
        longest, shortest = max(longest, lengths[row]), min(shortest, lengths[row])
        tokens = real
        below, above = (below - 1, above) if take_shorter else (below, above + 1)
    return batch
