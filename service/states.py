"""Key and value states of recent prefixes. Knows arrays; knows nothing of what made them."""

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from service.prefix import HEAD_TOKENS, MIN_SUFFIX_TOKENS

States = dict[str, np.ndarray]
"by the name of the graph's input that takes it, (1, KV, P, D) each"


class StateCache:
    """States of recent prefixes, the least recently used dropped first, within a cap of bytes.

    Changed by the engine's thread alone; `longest` reads a snapshot and is safe from any thread.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._entries: OrderedDict[tuple[int, ...], States] = OrderedDict()
        self._known: dict[tuple[int, ...], list[tuple[int, ...]]] = {}

    def get(self, ids: tuple[int, ...]) -> States | None:
        if ids not in self._entries:
            return None
        self._entries.move_to_end(ids)
        return self._entries[ids]

    def put(self, ids: tuple[int, ...], states: States) -> None:
        size = _nbytes(states)
        if size > self._max_bytes:
            return
        self._entries[ids] = states
        self._bytes += size
        while self._bytes > self._max_bytes:
            _, dropped = self._entries.popitem(last=False)
            self._bytes -= _nbytes(dropped)
        known: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
        for entry in self._entries:
            known.setdefault(entry[:HEAD_TOKENS], []).append(entry)
        self._known = known

    def longest(self, row: Sequence[int]) -> int:
        """Tokens of the longest kept prefix that `row` begins with and goes beyond."""
        entries = self._known.get(tuple(row[:HEAD_TOKENS]), ())
        limit = len(row) - MIN_SUFFIX_TOKENS
        return max(
            (len(e) for e in entries if len(e) <= limit and tuple(row[: len(e)]) == e), default=0
        )


def _nbytes(states: States) -> int:
    return sum(state.nbytes for state in states.values())
