"""How fast a waiting line moves. Knows amounts and the clock."""

import time

KEPT = 0.9
"weight of all batches before the last one: the pace is that of about ten"


class Pace:
    """Tokens per second of recent batches, the time between them included.

    Only batches that left something waiting count: a single short row says nothing of what the
    engine does with a full line.
    """

    def __init__(self) -> None:
        self._tokens = self._seconds = 0.0
        self._last = time.perf_counter()

    def begin(self) -> None:
        """The line was empty until now."""
        self._last = time.perf_counter()

    def note(self, tokens: int, full: bool) -> None:
        """A batch of `tokens` is done; `full`: more is waiting."""
        now = time.perf_counter()
        if full:
            self._tokens = KEPT * self._tokens + tokens
            self._seconds = KEPT * self._seconds + now - self._last
        self._last = now

    def seconds(self, tokens: float) -> float:
        """How long so many tokens take; 0 while nothing is known."""
        return tokens * self._seconds / self._tokens if self._tokens else 0.0
