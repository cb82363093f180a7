"""What one engine run answers: taken from the waiting line, told to the metrics. Knows no clock."""

from collections.abc import Sequence
from dataclasses import dataclass

from service import metrics
from service.engine import Engine
from service.line import Line, Place
from service.metrics import Recorder
from service.planner import Budget, padded_tokens, plan
from service.prefix import Costs


@dataclass(slots=True)
class Batch:
    rows: list[Sequence[int]]
    packed: list[bytes]
    places: list[list[Place]]
    "for each row, everybody it answers"
    prefix_tokens: int
    prefixes: int
    cached_tokens: int
    computed_tokens: int
    "padding included"

    @property
    def tokens(self) -> int:
        return sum(map(len, self.rows))

    def record(self, recorder: Recorder, engine_s: float) -> None:
        shared = self.prefix_tokens * (len(self.rows) - self.prefixes)
        answered = sum(map(len, self.places))
        recorder.add(metrics.TOKENS, self.tokens)
        recorder.add(metrics.SHARED, shared + self.cached_tokens)
        recorder.add(metrics.PADDING, self.computed_tokens - (self.tokens - shared))
        recorder.add(metrics.REUSED, answered - len(self.rows), "in_flight")
        recorder.observe(metrics.BATCH_ROWS, len(self.rows))
        recorder.observe(metrics.ENGINE, engine_s)


def next_batch(line: Line, engine: Engine, budget: Budget, costs: Costs) -> Batch | None:
    """The oldest row of the request whose turn it is, and rows that fit to it; None: no row."""
    window = line.window()
    if not window:
        return None
    packed = [request.packed[i] for request, i in window]
    request, seed = window[0]
    cached_tokens = engine.cached_tokens(request.rows[seed])
    planned = plan(packed, 0, budget, cached_tokens, costs)
    chosen = [window[i] for i in planned.rows]
    rows = [request.rows[i] for request, i in chosen]
    return Batch(
        rows,
        [packed[i] for i in planned.rows],
        line.take(chosen),
        planned.prefix_tokens,
        planned.prefixes,
        min(planned.prefix_tokens, cached_tokens) if planned.prefixes == 1 else 0,
        padded_tokens([*map(len, rows)], planned.prefix_tokens, planned.prefixes, budget.buckets),
    )
