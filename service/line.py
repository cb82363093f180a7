"""The waiting line: whose turn it is, and which rows are the same. Knows no engine and no clock."""

import asyncio
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from service.errors import RewardError
from service.prefix import pack

WINDOW_ROWS, WINDOW_ROWS_PER_REQUEST = 1024, 256
"rows that one batch is planned over: enough for a good fit, few enough for milliseconds"

Outcome = float | RewardError


@dataclass(slots=True, eq=False)
class Request:
    """Rows that one caller waits for."""

    rows: Sequence[Sequence[int]]
    done: asyncio.Future[None]
    submitted: float
    packed: Sequence[bytes] = field(init=False)
    waiting: dict[int, None] = field(init=False)
    "indices of the rows that have not run, oldest first"
    outcomes: list[Outcome | None] = field(init=False)
    missing: int = field(init=False)
    started: float = 0.0
    engine_s: float = 0.0

    def __post_init__(self) -> None:
        self.packed = [pack(row) for row in self.rows]
        self.waiting = dict.fromkeys(range(len(self.rows)))
        self.outcomes = [None] * len(self.rows)
        self.missing = len(self.rows)

    def answer(self, i: int, outcome: Outcome) -> None:
        self.outcomes[i] = outcome
        self.missing -= 1
        if not self.missing and not self.done.done():
            self.done.set_result(None)


Place = tuple[Request, int]
"a row: its request and its index there"


class Line:
    """Requests take turns; rows with the same token ids wait as one and are answered together."""

    def __init__(self) -> None:
        self._turns: deque[Request] = deque()
        self._same: defaultdict[bytes, dict[Place, None]] = defaultdict(dict)
        self.rows = 0
        "that wait"
        self.tokens = 0
        "that wait, those of equal rows once"

    @property
    def requests(self) -> list[Request]:
        return list(self._turns)

    def join(self, request: Request) -> None:
        """At the end of the line, with the rows that it still waits for."""
        for i in request.waiting:
            same = self._same[request.packed[i]]
            self.tokens += 0 if same else len(request.rows[i])
            same[request, i] = None
            self.rows += 1
        self._turns.append(request)

    def leave(self, request: Request) -> None:
        """Take back what has not run."""
        if request.waiting:
            self._turns.remove(request)
        for i in list(request.waiting):
            self._remove((request, i))

    def clear(self) -> None:
        for request in self._turns:
            request.waiting.clear()
        self._turns.clear()
        self._same.clear()
        self.rows = self.tokens = 0

    def window(self) -> list[Place]:
        """Rows to plan over, one of each kind; the first is the oldest of whose turn it is."""
        while self._turns and not self._turns[0].waiting:
            self._turns.popleft()
        kinds: dict[bytes, Place] = {}
        for request in self._turns:
            for place in self._first_rows(request):
                kinds.setdefault(request.packed[place[1]], place)
                if len(kinds) == WINDOW_ROWS:
                    return list(kinds.values())
        return list(kinds.values())

    def take(self, rows: Sequence[Place]) -> list[list[Place]]:
        """Remove these rows and all that are the same; for each, every place it answers.

        Of whose request the first is goes to the end of the line with what it still waits for.
        """
        taken = [list(self._same[request.packed[i]]) for request, i in rows]
        for places in taken:
            for place in places:
                self._remove(place)
        first = rows[0][0]
        self._turns.remove(first)
        if first.waiting:
            self._turns.append(first)
        return taken

    def _first_rows(self, request: Request) -> Iterator[Place]:
        for i, _ in zip(request.waiting, range(WINDOW_ROWS_PER_REQUEST), strict=False):
            yield request, i

    def _remove(self, place: Place) -> None:
        request, i = place
        del request.waiting[i]
        packed = request.packed[i]
        same = self._same[packed]
        del same[place]
        if not same:
            del self._same[packed]
            self.tokens -= len(request.rows[i])
        self.rows -= 1
