"""What rows begin with in common. Pure: packed token ids in, numbers out."""

from array import array
from collections.abc import Sequence

import numpy as np

MIN_SUFFIX_TOKENS = 2
"a run on a past never has one token per row: that takes another matrix kernel, with other bits"
HEAD_TOKENS = 16
"a shorter prefix is never shared; rows whose first tokens differ share nothing worth a run"
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
    most = min(len(first), len(second)) // ITEM
    if first[: most * ITEM] == second[: most * ITEM]:
        return most
    differ = np.frombuffer(first, np.int32, most) != np.frombuffer(second, np.int32, most)
    flags: bytes = differ.tobytes()  # argmax would let go of the GIL, and wait for it
    return flags.index(1)


def alike_tokens(first: bytes, second: bytes) -> int:
    """The same, but 0 for rows that differ within HEAD_TOKENS, as most do: they need no search."""
    alike = first[: HEAD_TOKENS * ITEM] == second[: HEAD_TOKENS * ITEM]
    return common_tokens(first, second) if alike else 0


def shareable_tokens(first: bytes, second: bytes, common: int | None = None) -> int:
    """How many of their first tokens two packed rows can share; common: their `alike_tokens`,
    where those are known.

    0 below HEAD_TOKENS; always MIN_SUFFIX_TOKENS less than the shorter row.
    """
    if common is None:
        common = alike_tokens(first, second)
    tokens = min(common, min(len(first), len(second)) // ITEM - MIN_SUFFIX_TOKENS)
    return tokens if tokens >= HEAD_TOKENS else 0
