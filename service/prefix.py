"""Which rows begin alike, and what sharing that saves. Pure: packed token ids in, numbers out."""

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

MIN_SUFFIX_TOKENS = 2
"a run on a past never has one token per row: that takes another matrix kernel, with other bits"
HEAD_TOKENS = 16
"a shorter prefix is never shared; rows whose first tokens differ share nothing worth a run"
ITEM = 4
"bytes of a packed token id"


@dataclass(frozen=True, slots=True)
class Costs:
    """What runs cost, in tokens that the engine computes in the same time.

    Measured when an engine warms up (service/warmup.py); the defaults are of a small model on a
    CPU. They decide how fast rewards come, never which.
    """

    run_tokens: float = 48.0
    "an engine run, whatever is in it"
    past_token: float = 0.05
    "one token of the past, for one row: its states are copied and attended to"

    def batch(self, rows: int, columns: int, prefix_tokens: int = 0, computed: int = 0) -> float:
        """Rows padded to `columns` tokens each behind `prefix_tokens` of past.

        computed: tokens of prefixes that a run before it computes, of all rows together.

        >>> Costs(run_tokens=50, past_token=0.1).batch(8, 20, prefix_tokens=100, computed=100)
        440.0
        """
        runs = 2 if computed else 1
        past = self.past_token * rows * prefix_tokens
        return runs * self.run_tokens + rows * columns + computed + past


TYPICAL = Costs()


def pack(row: Sequence[int]) -> bytes:
    """Token ids as 4-byte integers: comparing them is then one memory comparison."""
    return array("i", row).tobytes()


def common_tokens(first: bytes, second: bytes) -> int:
    """Length of the longest common run of tokens from the start of two packed rows.

    >>> common_tokens(pack([5, 6, 7, 8]), pack([5, 6, 9]))
    2
    """
    most = min(len(first), len(second)) // ITEM
    if first[: most * ITEM] == second[: most * ITEM]:
        return most
    differ = np.frombuffer(first, np.int32, most) != np.frombuffer(second, np.int32, most)
    return int(differ.argmax())


def shareable_tokens(first: bytes, second: bytes) -> int:
    """How many of their first tokens two packed rows can share.

    0 below HEAD_TOKENS; always MIN_SUFFIX_TOKENS less than the shorter row.
    """
    if first[: HEAD_TOKENS * ITEM] != second[: HEAD_TOKENS * ITEM]:
        return 0
    most = min(len(first), len(second)) // ITEM - MIN_SUFFIX_TOKENS
    tokens = min(common_tokens(first, second), most)
    return tokens if tokens >= HEAD_TOKENS else 0


class Beginnings:
    """What every two of some packed rows share, from one sorting: equal beginnings stand together.

    Where a row that ends early stands between two others, up to MIN_SUFFIX_TOKENS less is found.

    >>> rows = [[*range(20), 7, 7], [5] * 30, [*range(20), 8, 8, 8]]
    >>> Beginnings([*map(pack, rows)]).groups(20)
    [0, None, 0]
    """

    def __init__(self, rows: Sequence[bytes]) -> None:
        self._order = sorted(range(len(rows)), key=rows.__getitem__)
        self._place = {row: place for place, row in enumerate(self._order)}
        self._shared = [shareable_tokens(rows[i], rows[j]) for i, j in pairwise(self._order)]
        "of each row in that order with the next one"

    def shared_with(self, row: int) -> list[int]:
        """What other rows share with this one, the most first, without zeros."""
        place = self._place[row]
        after = _minima(self._shared[place:])
        before = _minima(reversed(self._shared[:place]))
        return sorted((*after, *before), reverse=True)

    def longest(self) -> list[int]:
        """For every row, the most it shares with any other."""
        longest = [0] * len(self._order)
        for (i, j), tokens in zip(pairwise(self._order), self._shared, strict=True):
            longest[i], longest[j] = max(longest[i], tokens), max(longest[j], tokens)
        return longest

    def groups(self, tokens: int) -> list[int | None]:
        """For every row, which rows have the same first `tokens`: equal numbers; None: no other."""
        groups: list[int | None] = [None] * len(self._order)
        number = 0
        for (i, j), shared in zip(pairwise(self._order), self._shared, strict=True):
            if shared >= tokens:
                groups[i] = groups[j] = number
            else:
                number += 1
        return groups


def _minima(shared: Iterator[int] | Sequence[int]) -> Iterator[int]:
    """Running minimum, until it is 0."""
    least = 1 << 40
    for tokens in shared:
        least = min(least, tokens)
        if not least:
            return
        yield least
