"""What sharing costs on this engine, measured once before it is ready. Knows engines; no text."""

import time
from collections.abc import Sequence

from service.engine import Engine
from service.prefix import TYPICAL, Costs

ROWS, PREFIX_TOKENS, SUFFIX_TOKENS = 4, 128, 16
PLANNING_S = 0.001
"what the scheduler takes between two runs, about"
TOKEN = 0
REPEATS = 3
"the fastest counts: whatever else the machine does can only add to it"


def measure_costs(engine: Engine, max_tokens: int) -> Costs:
    """Costs in tokens' worth of this engine's time, from runs over rows of one repeated token.

    Solves time = run + tokens x token + past tokens x past_token over four kinds of run: hardly
    any token, few tokens, many tokens, and few tokens behind a long past. Takes as long as some
    3,000 tokens.
    max_tokens: the longest row the model takes. Where it is too short to measure on, or the
    clock says nothing (an engine that costs nothing), the typical ones stay.
    """
    prefix = min(PREFIX_TOKENS, max_tokens - SUFFIX_TOKENS)
    if prefix < PREFIX_TOKENS // 2:
        return TYPICAL
    short = [[TOKEN] * SUFFIX_TOKENS] * ROWS
    long = [[TOKEN] * (prefix + SUFFIX_TOKENS)] * ROWS
    run_short, run_long = _seconds(engine, short), _seconds(engine, long)
    run_least, run_past = _seconds(engine, short[:1]), _seconds(engine, long, prefix)
    token = (run_long - run_short) / (ROWS * prefix)
    if token <= 0:
        return TYPICAL
    run = max(0.0, run_least - token * SUFFIX_TOKENS) + PLANNING_S
    if engine.cached_tokens(long[0]) < prefix:  # states are not kept, so it was computed each time
        return Costs(run_tokens=run / token)
    past = (run_past - run_short) / (ROWS * prefix)
    return Costs(run_tokens=run / token, past_token=min(1.0, max(0.0, past / token)))


def _seconds(engine: Engine, rows: Sequence[Sequence[int]], prefix_tokens: int = 0) -> float:
    """The fastest of some runs, after one that computes the prefix and fills the caches."""
    seconds = []
    for _ in range(REPEATS + 1):
        started = time.perf_counter()
        engine.run(rows, prefix_tokens)
        seconds.append(time.perf_counter() - started)
    return min(seconds[1:])
