"""Which rows share a prefix, and what that saves. Pure: token ids in, numbers out."""

from collections.abc import Sequence
from itertools import takewhile

MIN_SUFFIX_TOKENS = 2
"a run on a past never has one token per row: that takes another matrix kernel, with other bits"
HEAD_TOKENS = 16
"rows whose first tokens differ share nothing worth a run of its own"
MIN_SAVED_TOKENS = 96
"what a second engine run costs, in tokens: below it a shared prefix does not pay"


def common_tokens(first: Sequence[int], second: Sequence[int]) -> int:
    """Length of the longest common run of tokens from the start.

    >>> common_tokens([5, 6, 7, 8], [5, 6, 9])
    2
    """
    limit = min(len(first), len(second))
    if first[:limit] == second[:limit]:
        return limit
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second)))  # noqa: B905


def shareable_tokens(rows: Sequence[Sequence[int]], seed: int) -> list[int]:
    """For every row, how many of its first tokens could come from states computed for the seed.

    0 where the heads differ; always MIN_SUFFIX_TOKENS less than the shorter of the two rows.
    """
    first = rows[seed]
    head = first[:HEAD_TOKENS]
    return [
        max(
            0,
            min(
                common_tokens(first, row) if row is not first else len(first),
                len(first) - MIN_SUFFIX_TOKENS,
                len(row) - MIN_SUFFIX_TOKENS,
            ),
        )
        if row[:HEAD_TOKENS] == head
        else 0
        for row in rows
    ]


def best_prefix(shareable: Sequence[int], cached_tokens: int = 0) -> int:
    """Tokens of the prefix that saves most, 0 where none saves enough.

    A prefix of t tokens that n rows share is computed once instead of n times, so it saves
    (n - 1) t tokens; n t where its states are kept from an earlier run (`cached_tokens`).
    Considering every row's own share finds the best of several levels: a system prompt common to
    many rows against a whole prompt common to a few.

    >>> best_prefix([500, 500, 500, 80, 80, 0])
    500
    """
    saved: dict[int, int] = {}
    for n, tokens in enumerate(sorted(filter(None, shareable), reverse=True), 1):
        computed_once = 0 if tokens <= cached_tokens else 1
        saved[tokens] = (n - computed_once) * tokens
    if 0 < cached_tokens <= max(shareable, default=0):
        rows = sum(tokens >= cached_tokens for tokens in shareable)
        saved[cached_tokens] = rows * cached_tokens
    tokens = max(saved, key=lambda t: (saved[t], t), default=0)
    return tokens if saved.get(tokens, 0) >= MIN_SAVED_TOKENS else 0
