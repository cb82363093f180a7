"""Which rows share a prefix, and what that saves. Pure: packed token ids in, numbers out."""

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass

MIN_SUFFIX_TOKENS = 2
"a run on a past never has one token per row: that takes another matrix kernel, with other bits"
HEAD_TOKENS = 16
"a shorter prefix is never shared; rows whose first tokens differ share nothing worth a run"
ITEM = 4
"bytes of a packed token id"


@dataclass(frozen=True, slots=True)
class Costs:
    """What sharing a prefix costs, in tokens that the engine computes in the same time.

    Measured when an engine warms up (service/warmup.py); the defaults are of a small model on a
    CPU. They decide how fast rewards come, never which.
    """

    run_tokens: float = 96.0
    "one more engine run"
    past_token: float = 0.05
    "one token of the past, for one row: its states are copied and attended to"

    def saved(self, rows: int, tokens: int, cached_tokens: int = 0) -> float:
        """Tokens' worth of time that `rows` rows save when they share their first `tokens`.

        Of those, `cached_tokens` have states from an earlier run; the rest is computed once.

        >>> Costs(run_tokens=90, past_token=0).saved(rows=4, tokens=100)
        210
        """
        missing = max(0, tokens - cached_tokens)
        once = missing + self.run_tokens if missing else 0
        return rows * tokens * (1 - self.past_token) - once


TYPICAL = Costs()


def pack(row: Sequence[int]) -> bytes:
    """Token ids as 4-byte integers: comparing them is then one memory comparison."""
    return array("i", row).tobytes()


def common_tokens(first: bytes, second: bytes) -> int:
    """Length of the longest common run of tokens from the start of two packed rows.

    >>> common_tokens(pack([5, 6, 7, 8]), pack([5, 6, 9]))
    2
    """
    low, high = 0, min(len(first), len(second)) // ITEM
    if first[: high * ITEM] == second[: high * ITEM]:
        return high
    while high - low > 1:  # the first `low` tokens are equal, the first `high` are not
        middle = (low + high) // 2
        if first[low * ITEM : middle * ITEM] == second[low * ITEM : middle * ITEM]:
            low = middle
        else:
            high = middle
    return low


def shareable_tokens(rows: Sequence[bytes], seed: int) -> list[int]:
    """For every row, how many of its first tokens could come from states computed for the seed.

    0 where that is less than HEAD_TOKENS; always MIN_SUFFIX_TOKENS less than the shorter row.
    """
    first = rows[seed]
    head = first[: HEAD_TOKENS * ITEM]
    return [_shareable(first, row) if row.startswith(head) else 0 for row in rows]


def _shareable(first: bytes, row: bytes) -> int:
    most = min(len(first), len(row)) // ITEM - MIN_SUFFIX_TOKENS
    tokens = min(common_tokens(first, row), most)
    return tokens if tokens >= HEAD_TOKENS else 0


def best_prefix(
    shareable: Sequence[int],
    cached_tokens: int = 0,
    fits: Callable[[int], int] = lambda tokens: 1 << 40,
    costs: Costs = TYPICAL,
) -> int:
    """Tokens of the prefix that saves most in the next batch, 0 where none saves anything.

    cached_tokens: how many of the seed's first tokens have kept states; fits(t): how many rows
    the batch holds behind t tokens. Considering every row's own share finds the best of several
    levels: a system prompt of many rows against a whole prompt of a few.

    >>> best_prefix([500, 500, 500, 80, 80, 0])
    500
    """
    shared = sorted(filter(None, shareable), reverse=True)
    rows = {tokens: sharing for sharing, tokens in enumerate(shared, 1)}
    if HEAD_TOKENS <= cached_tokens <= max(shared, default=0):
        rows[cached_tokens] = sum(tokens >= cached_tokens for tokens in shared)
    saved = {
        tokens: costs.saved(min(sharing, fits(tokens)), tokens, cached_tokens)
        for tokens, sharing in rows.items()
    }
    tokens = max(saved, key=lambda t: (saved[t], t), default=0)
    return tokens if saved.get(tokens, 0) > 0 else 0
