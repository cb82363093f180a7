"""Batches that fail, halved."""

from service.bundle import Bundle
from service.isolation import run_isolated
from service.ragged_engine import RaggedEngine


def test_the_first_rows_prefix_is_kept_and_no_other(bundle: Bundle) -> None:
    """The second half of a batch that had no room may begin in another way."""

    class Small(RaggedEngine):
        def run(self, rows, prefix_tokens=0):
            if len(rows) > 2:
                raise MemoryError("no room")
            return super().run(rows, prefix_tokens)

    engine = Small(bundle, "fp32", 2)
    start, other = [*range(10, 110)], [*range(110, 10, -1)]
    rows = [[*start, 1, 2], [*start, 3, 4, 5], [*other, 1, 2], [7, 8, 9]]
    outcomes, shortages = run_isolated(engine, rows, len(start))
    assert shortages == 1
    assert outcomes == [float(engine.run([row])[0]) for row in rows]
    assert engine.cached_tokens(rows[0]) == len(start)
    assert engine.cached_tokens(rows[2]) == 0
