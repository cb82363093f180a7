"""Key and value states: of recent prefixes, and the room that running batches need for theirs.

Knows arrays; knows nothing of what made them.
"""

import threading
from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from service.prefix import HEAD_TOKENS, ITEM, common_tokens

States = dict[str, np.ndarray]
"by the name of the graph's input that takes it, (1, KV, P, D) each"


class StateCache:
    """States of recent prefixes, the least recently used dropped first, within a cap of bytes.

    The states of a prefix hold those of every shorter one, so prompts that begin with the same
    system prompt take its states from one another. Safe from any thread. `common` waits for none:
    the list of keys changes between two steps of it at worst, and the answer is then true of a
    neighbour of the nearest entry.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._changing = threading.RLock()
        self._entries: OrderedDict[bytes, States] = OrderedDict()  # by packed token ids
        self._sorted: list[bytes] = []
        """Its keys: what has most in common with a row stands next to where the row would. No key
        begins another one."""

    def common(self, row: bytes) -> int:
        """How many of a packed row's first tokens have states here; 0 below HEAD_TOKENS."""
        return self._nearest(row)[0]

    def get(self, row: bytes, tokens: int) -> States | None:
        """States of the first `tokens` tokens of a packed row, views into what is kept; None
        unless all of them are."""
        with self._changing:
            common, entry = self._nearest(row)
            if common < tokens or not entry:
                return None
            self._entries.move_to_end(entry)
            return {name: state[:, :, :tokens] for name, state in self._entries[entry].items()}

    def put(self, row: bytes, states: States) -> None:
        """Keep the states of all of the row's tokens, which must own their memory; those of its
        beginning are dropped. Nothing below HEAD_TOKENS is kept."""
        tokens = len(row) // ITEM
        if _nbytes(states) > self._max_bytes or tokens < HEAD_TOKENS:
            return
        with self._changing:
            common, entry = self._nearest(row)
            if tokens == common:
                return
            if common and len(entry) == common * ITEM:
                self._drop(entry)
            self._entries[row] = states
            self._bytes += _nbytes(states)
            insort(self._sorted, row)
            self.shrink(self._max_bytes)

    def shrink(self, max_bytes: int) -> None:
        """Drop the least recently used until what is left has at most `max_bytes`."""
        with self._changing:
            while self._bytes > max_bytes:
                self._drop(next(iter(self._entries)))

    def _drop(self, entry: bytes) -> None:
        self._bytes -= _nbytes(self._entries.pop(entry))
        del self._sorted[bisect_left(self._sorted, entry)]

    def _nearest(self, row: bytes) -> tuple[int, bytes]:
        """The entry that has most tokens in common with a packed row, and how many."""
        place = bisect_left(self._sorted, row)
        beside = self._sorted[max(0, place - 1) : place + 1]
        common, entry = max(((common_tokens(e, row), e) for e in beside), default=(0, b""))
        return (common, entry) if common >= HEAD_TOKENS else (0, b"")


class StateRoom:
    """Bytes for the states of batches that run at the same time; `left` is for kept ones."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._taken = 0
        self._changed, self._next = threading.Condition(), threading.Lock()

    @property
    def left(self) -> int:
        return max(0, self._max_bytes - self._taken)

    @contextmanager
    def taken(self, needed: int) -> Iterator[None]:
        """Wait until `needed` bytes fit beside what other batches have, and hold them. Who needs
        more than all there is waits to be alone. A smaller batch does not overtake one that waits.
        """
        most = max(0, self._max_bytes - needed)
        with self._next, self._changed:
            self._changed.wait_for(lambda: self._taken <= most)
            self._taken += needed
        try:
            yield
        finally:
            with self._changed:
                self._taken -= needed
                self._changed.notify_all()


def _nbytes(states: States) -> int:
    return sum(state.nbytes for state in states.values())
