"""What one engine run answers: taken from the waiting line, told to the metrics. Knows no clock."""

from collections.abc import Sequence
from dataclasses import dataclass

from service import metrics
from service.engine import Engine
from service.line import Line, Place
from service.metrics import Recorder
from service.planner import Limits, Plan
from service.prefix import HEAD_TOKENS, ITEM, shareable_tokens


@dataclass(slots=True)
class Batch:
    rows: list[Sequence[int]]
    packed: list[bytes]
    places: list[list[Place]]
    "for each row, everybody it answers"
    plan: Plan
    cached_tokens: int
    "of the prefix, that the engine had states of"

    @property
    def tokens(self) -> int:
        return sum(map(len, self.rows))

    @property
    def prefix(self) -> bytes:
        """What others may go on from, packed."""
        return self.packed[0][: self.plan.prefix_tokens * ITEM]

    def record(self, recorder: Recorder, engine_s: float) -> None:
        computed, shared = self.plan.computed_tokens, self.plan.shared_tokens
        answered = sum(map(len, self.places))
        recorder.add(metrics.TOKENS, self.tokens)
        recorder.add(metrics.SHARED, shared + self.cached_tokens)
        recorder.add(metrics.PADDING, computed - (self.tokens - shared))
        recorder.add(metrics.REUSED, answered - len(self.rows), "in_flight")
        recorder.observe(metrics.BATCH_ROWS, len(self.rows))
        recorder.observe(metrics.ENGINE, engine_s)


def next_batch(
    line: Line, engine: Engine, budget: Limits, running: Sequence[Batch] = ()
) -> Batch | None:
    """The oldest row of the request whose turn it is, and rows that fit to it; None: no row.

    running: batches that the engine has. Rows that go on from what those compute wait for it.
    """
    coming = [batch for batch in running if batch.plan.prefix_tokens > batch.cached_tokens]
    window = line.window()
    if coming:
        window = [place for place in window if not _gains(place, coming)]
    if not window:
        return None
    packed = [request.packed[i] for request, i in window]
    request, seed = window[0]
    cached_tokens = engine.cached_tokens(request.rows[seed])
    planned = budget.plan(packed, 0, cached_tokens)
    chosen = [window[i] for i in planned.rows]
    return Batch(
        [request.rows[i] for request, i in chosen],
        [packed[i] for i in planned.rows],
        line.take(chosen),
        planned,
        min(planned.prefix_tokens, cached_tokens),
    )


def _gains(place: Place, coming: Sequence[Batch]) -> bool:
    """Whether states that one of these batches will leave save the row a prefix."""
    request, i = place
    return any(
        shareable_tokens(request.packed[i], batch.prefix) - batch.cached_tokens >= HEAD_TOKENS
        for batch in coming
    )
