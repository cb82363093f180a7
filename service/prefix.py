"""Which rows share a prefix, and what that saves. Pure: packed token ids in, numbers out."""

from array import array
from collections.abc import Callable, Sequence

MIN_SUFFIX_TOKENS = 2
"a run on a past never has one token per row: that takes another matrix kernel, with other bits"
HEAD_TOKENS = 16
"a shorter prefix is never shared; rows whose first tokens differ share nothing worth a run"
MIN_SAVED_TOKENS = 96
"what a second engine run costs, in tokens: below it a shared prefix does not pay"
ITEM = 4
"bytes of a packed token id"


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
) -> int:
    """Tokens of the prefix that saves most in the next batch, 0 where none saves enough.

    A prefix of t tokens that n rows of the batch share is computed once instead of n times, so it
    saves (n - 1) t tokens; n t where its states are kept from an earlier run (`cached_tokens`).
    fits(t) is how many rows the batch holds then. Considering every row's own share finds the
    best of several levels: a system prompt of many rows against a whole prompt of a few.

    >>> best_prefix([500, 500, 500, 80, 80, 0])
    500
    """
    shared = sorted(filter(None, shareable), reverse=True)
    saved: dict[int, int] = {}
    for sharing, tokens in enumerate(shared, 1):
        computed_once = 0 if tokens <= cached_tokens else 1
        saved[tokens] = (min(sharing, fits(tokens)) - computed_once) * tokens
    if HEAD_TOKENS <= cached_tokens <= max(shared, default=0):
        sharing = sum(tokens >= cached_tokens for tokens in shared)
        saved[cached_tokens] = min(sharing, fits(cached_tokens)) * cached_tokens
    tokens = max(saved, key=lambda t: (saved[t], t), default=0)
    return tokens if saved.get(tokens, 0) >= MIN_SAVED_TOKENS else 0
