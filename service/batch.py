"""What one engine run answers: taken from the waiting line, told to the metrics. Knows no clock."""

from collections.abc import Sequence
from dataclasses import dataclass

from service import metrics
from service.engine import Engine
from service.line import Line, Place, Request
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
    coming: bytes
    "the prefix, packed, where the engine will keep states that it has not yet"

    @property
    def tokens(self) -> int:
        return sum(map(len, self.rows))

    def saves(self, row: bytes) -> bool:
        """Whether the states that are coming would save a packed row a prefix."""
        return shareable_tokens(row, self.coming) - self.cached_tokens >= HEAD_TOKENS

    def record(self, recorder: Recorder, engine_s: float) -> None:
        computed, shared = self.plan.computed_tokens, self.plan.shared_tokens
        answered = sum(map(len, self.places))
        recorder.add(metrics.TOKENS, self.tokens)
        recorder.add(metrics.SHARED, shared)
        recorder.add(metrics.PADDING, computed - (self.tokens - shared))
        recorder.add(metrics.REUSED, answered - len(self.rows), "in_flight")
        recorder.observe(metrics.BATCH_ROWS, len(self.rows))
        recorder.observe(metrics.ENGINE, engine_s)


def next_batch(
    line: Line, engine: Engine, budget: Limits, running: Sequence[Batch] = ()
) -> Batch | None:
    """The oldest row of the request whose turn it is, and rows that fit to it; None: no row.

    running: batches that the engine has. Rows wait for the prefix of one where that saves theirs.
    """
    window = [place for place in line.window() if not waits(*place, running)]
    if not window:
        return None
    packed = [request.packed[i] for request, i in window]
    request, seed = window[0]
    cached_tokens = engine.cached_tokens(request.rows[seed])

    def cached(row: int) -> int:
        request, i = window[row]
        return engine.cached_tokens(request.rows[i]) if row else cached_tokens

    planned = budget.plan(packed, 0, cached)
    chosen = [window[i] for i in planned.rows]
    kept = cached_tokens < planned.prefix_tokens <= engine.kept_tokens
    return Batch(
        [request.rows[i] for request, i in chosen],
        [packed[i] for i in planned.rows],
        line.take(chosen),
        planned,
        min(planned.prefix_tokens, cached_tokens),
        packed[0][: planned.prefix_tokens * ITEM] if kept else b"",
    )


def waits(request: Request, i: int, running: Sequence[Batch]) -> bool:
    """Whether a row is better off when one of these batches is done."""
    return any(batch.coming and batch.saves(request.packed[i]) for batch in running)
