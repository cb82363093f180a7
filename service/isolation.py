"""Running a batch so that what is wrong with one row fails that row. Knows engines; no waiting."""

import logging
import math
from collections.abc import Sequence

from service.engine import Engine
from service.errors import EngineFailure, NonFiniteReward
from service.line import Outcome

log = logging.getLogger("reward.scheduler")


def run_isolated(
    engine: Engine, rows: Sequence[Sequence[int]], prefix_tokens: int
) -> tuple[list[Outcome], int]:
    """For every row its reward or its error, and how often memory was short.

    prefix_tokens: of the first row, as engines take it; so of the half that it is in.
    A batch that fails is halved until only the guilty row fails; a prefix is given up first,
    since its states may be what failed, and no row is blamed for that.
    """
    try:
        rewards = engine.run(rows, prefix_tokens)
        assert len(rewards) == len(rows), "an engine gives one reward per row"
        return [_outcome(float(reward)) for reward in rewards], 0
    except Exception as error:  # whatever the runtime raises: isolate the row, keep serving
        failure, short = _failure(error), isinstance(error, MemoryError)
        if len(rows) == 1 and not prefix_tokens:
            log.exception("the engine failed on a row of %d tokens", len(rows[0]))
    # The exception is gone, and with it the arrays of the run that its frames held.
    if prefix_tokens and not (short and len(rows) > 1):
        outcomes, shortages = run_isolated(engine, rows, 0)
        return outcomes, shortages + short
    if len(rows) == 1:
        return [failure], int(short)
    half = len(rows) // 2
    first, in_first = run_isolated(engine, rows[:half], prefix_tokens)
    second, in_second = run_isolated(engine, rows[half:], 0)
    return first + second, in_first + in_second + short


def _failure(error: Exception) -> EngineFailure:
    if isinstance(error, MemoryError):
        return EngineFailure("this row by itself needed more memory than there was")
    return EngineFailure(f"the engine failed on this row: {type(error).__name__}")


def _outcome(reward: float) -> Outcome:
    if math.isfinite(reward):
        return reward
    return NonFiniteReward(
        f"the model gave {reward}: its weights or this input are broken, "
        "or its numbers are too large for this variant's precision"
    )
