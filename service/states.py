"""Key and value states of recent prefixes. Knows arrays; knows nothing of what made them."""

from collections import OrderedDict

import numpy as np

from service.prefix import HEAD_TOKENS, ITEM, common_tokens

States = dict[str, np.ndarray]
"by the name of the graph's input that takes it, (1, KV, P, D) each"

HEAD = HEAD_TOKENS * ITEM


class StateCache:
    """States of recent prefixes, the least recently used dropped first, within a cap of bytes.

    The states of a prefix hold those of every shorter one, so prompts that begin with the same
    system prompt take its states from one another. Changed by the engine's thread alone;
    `common` reads a snapshot and is safe from any thread.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._entries: OrderedDict[bytes, States] = OrderedDict()  # by packed token ids
        self._by_head: dict[bytes, list[bytes]] = {}

    def common(self, row: bytes) -> int:
        """How many of a packed row's first tokens have states here."""
        return max((common_tokens(entry, row) for entry in self._candidates(row)), default=0)

    def get(self, row: bytes, tokens: int) -> States:
        """States of the first `tokens` tokens of a packed row, views into what is kept.

        `tokens` is at most `common(row)`.
        """
        entry = max(self._candidates(row), key=lambda entry: common_tokens(entry, row))
        self._entries.move_to_end(entry)
        return {name: state[:, :, :tokens] for name, state in self._entries[entry].items()}

    def put(self, row: bytes, states: States) -> None:
        """Keep the states of all of the row's tokens, which must own their memory; those of its
        beginnings are dropped."""
        if _nbytes(states) > self._max_bytes or self.common(row) == len(row) // ITEM:
            return
        for entry in self._candidates(row):
            if row.startswith(entry):
                self._bytes -= _nbytes(self._entries.pop(entry))
        self._entries[row] = states
        self._bytes += _nbytes(states)
        self.shrink(self._max_bytes)
        self._index()

    def shrink(self, max_bytes: int) -> None:
        """Drop the least recently used until what is left has at most `max_bytes`."""
        if self._bytes <= max_bytes:
            return
        while self._bytes > max_bytes:
            _, dropped = self._entries.popitem(last=False)
            self._bytes -= _nbytes(dropped)
        self._index()

    def _index(self) -> None:
        by_head: dict[bytes, list[bytes]] = {}
        for entry in self._entries:
            by_head.setdefault(entry[:HEAD], []).append(entry)
        self._by_head = by_head  # replaced, never changed, for those who read meanwhile

    def _candidates(self, row: bytes) -> list[bytes]:
        return self._by_head.get(row[:HEAD], [])


def _nbytes(states: States) -> int:
    return sum(state.nbytes for state in states.values())
