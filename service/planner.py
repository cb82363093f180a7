"""Which waiting rows form the next batch. Pure: packed token ids in, indices out."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace

from service.prefix import ITEM, TYPICAL, Costs, best_prefix, shareable_tokens

MIN_TOKENS = 2
"rows are padded to this: a run over a single token takes another matrix kernel, with other bits"


@dataclass(frozen=True, slots=True)
class Budget:
    """What one engine run may hold."""

    padded_tokens: int
    padding: float
    "share of padding among the padded tokens"
    state_tokens: int = 1 << 40
    "tokens whose key/value states exist at once: rows times prefix and padded suffix"
    share_prefixes: bool = True
    "False where the engine computes every row in full"

    def divided(self, by: int) -> "Budget":
        """A smaller batch, for an engine that is short of memory."""
        return replace(
            self,
            padded_tokens=max(1, self.padded_tokens // by),
            state_tokens=max(1, self.state_tokens // by),
        )


@dataclass(frozen=True, slots=True)
class Plan:
    """Rows to run together. Their first `prefix_tokens` tokens are the same and run once."""

    rows: list[int]
    prefix_tokens: int = 0


def padded_tokens(lengths: Sequence[int], prefix_tokens: int = 0) -> int:
    """Tokens an engine run over rows of these lengths computes."""
    return prefix_tokens + len(lengths) * max(MIN_TOKENS, max(lengths) - prefix_tokens)


def plan(
    rows: Sequence[bytes],
    seed: int,
    budget: Budget,
    cached_tokens: int = 0,
    costs: Costs = TYPICAL,
) -> Plan:
    """The next batch. It begins with `seed`, which is always in it.

    rows: packed token ids of every waiting row, oldest first; cached_tokens: how much of the seed
    the engine still has states of. Where a shared prefix pays, the rows that share it join;
    otherwise rows of similar length. They join by nearness in length to those already there, the
    older first among equals, while the batch stays within the budget.

    >>> from service.prefix import pack
    >>> rows = [pack([7] * n) for n in (10, 50, 11, 9, 52)]
    >>> plan(rows, seed=0, budget=Budget(padded_tokens=40, padding=0.2)).rows
    [0, 3, 2]
    """
    lengths = [len(row) // ITEM for row in rows]

    def fits(tokens: int) -> int:
        suffix = max(MIN_TOKENS, lengths[seed] - tokens)
        by_tokens = (budget.padded_tokens - tokens) // suffix
        return max(1, min(by_tokens, budget.state_tokens // (tokens + suffix)))

    shareable = shareable_tokens(rows, seed)
    prefix = best_prefix(shareable, cached_tokens, fits, costs) if budget.share_prefixes else 0
    if prefix:
        members = [i for i, tokens in enumerate(shareable) if tokens >= prefix]
        chosen = _fill([length - prefix for length in lengths], seed, budget, prefix, members)
        if costs.saved(len(chosen), prefix, cached_tokens) > 0:
            return Plan(chosen, prefix)  # else the budget left too few of them
    return Plan(_fill(lengths, seed, budget, 0, range(len(rows))))


def _fill(
    lengths: Sequence[int], seed: int, budget: Budget, prefix: int, members: Sequence[int]
) -> list[int]:
    """Members around the seed in length; lengths are those after the prefix."""
    order = sorted(members, key=lambda i: (lengths[i], i))
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
        columns, count = max(longest, lengths[row]), len(batch) + 1
        size, real = prefix + columns * count, prefix + tokens + lengths[row]
        if (
            size > budget.padded_tokens
            or size - real > budget.padding * size
            or (prefix + columns) * count > budget.state_tokens
        ):
            break
        batch.append(row)
        longest, shortest = columns, min(shortest, lengths[row])
        tokens += lengths[row]
        below, above = (below - 1, above) if take_shorter else (below, above + 1)
    return batch
