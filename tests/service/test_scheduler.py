"""The waiting line on a real engine: nothing lost, nobody starved, one guilty row."""

import asyncio
import threading
import time

import numpy as np
import pytest

from service.bundle import Bundle
from service.engine import OnnxEngine
from service.errors import Draining, EngineFailure, NonFiniteReward, Overloaded
from service.planner import Budget
from service.scheduler import Scheduler

BUDGET = Budget(padded_tokens=1024, padding=0.15)
GUILTY, INFINITE = 700, 701


class Watched(OnnxEngine):
    """The real engine; remembers its runs, can be held back, and fails on one token."""

    def __init__(self, bundle: Bundle) -> None:
        super().__init__(bundle, "fp32", "cpu", 2)
        self.runs: list[list[list[int]]] = []
        self.gate = threading.Event()
        self.gate.set()

    def run(self, rows):
        self.gate.wait()
        if any(GUILTY in row for row in rows):
            raise RuntimeError("the engine broke")
        self.runs.append([list(row) for row in rows])
        rewards = super().run(rows)
        return np.where([INFINITE in row for row in rows], np.float32("nan"), rewards)


@pytest.fixture
def engine(bundle: Bundle) -> Watched:
    return Watched(bundle)


@pytest.fixture
def scheduler(engine: Watched):
    scheduler = Scheduler(engine, BUDGET, max_queued_tokens=100_000)
    yield scheduler
    engine.gate.set()
    scheduler.close()


def _rows(count: int, length: int = 12, seed: int = 0) -> list[list[int]]:
    return np.random.default_rng(seed).integers(3, 600, (count, length)).tolist()


def test_rewards_come_back_in_order(scheduler: Scheduler, engine: Watched) -> None:
    rows = [row[: 2 + i % 30] for i, row in enumerate(_rows(100, 40))]
    scored = asyncio.run(scheduler.score(rows))
    assert scored.rewards == [float(engine.run([row])[0]) for row in rows]
    assert scored.engine_ms > 0


def test_a_batch_is_formed_when_the_engine_becomes_free(scheduler, engine) -> None:
    async def go() -> None:
        engine.gate.clear()
        first, *rest = _rows(33)
        tasks = [asyncio.create_task(scheduler.score([first]))]
        await asyncio.sleep(0.05)
        tasks += [asyncio.create_task(scheduler.score([row])) for row in rest]
        await asyncio.sleep(0.05)
        engine.gate.set()
        await asyncio.gather(*tasks)

    asyncio.run(go())
    assert [len(run) for run in engine.runs] == [1, 32]


def test_a_big_request_does_not_starve_a_single_row(scheduler, engine) -> None:
    async def go() -> int:
        big = asyncio.create_task(scheduler.score(_rows(1500, 40)))
        await asyncio.sleep(0.02)
        before = len(engine.runs)
        await scheduler.score(_rows(1, 6, seed=1))
        after = len(engine.runs)
        await big
        return after - before

    assert asyncio.run(go()) <= 3  # the run in progress, at most one of the big one's, its own


@pytest.mark.parametrize("place", [0, 13, 31])
def test_only_the_guilty_row_fails_in_a_batch_of_32(scheduler, engine, place: int) -> None:
    rows = _rows(32)
    rows[place][5] = GUILTY

    async def go():
        engine.gate.clear()
        tasks = [asyncio.create_task(scheduler.score([row])) for row in rows]
        await asyncio.sleep(0.05)
        engine.gate.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    outcomes = asyncio.run(go())
    assert isinstance(outcomes.pop(place), EngineFailure)
    del rows[place]
    alone = [float(engine.run([row])[0]) for row in rows]
    assert [outcome.rewards[0] for outcome in outcomes] == alone


def test_nan_is_an_error_that_names_the_row(scheduler) -> None:
    rows = _rows(4)
    rows[2][0] = INFINITE
    with pytest.raises(NonFiniteReward) as caught:
        asyncio.run(scheduler.score(rows))
    assert caught.value.field == "rows[2]"


def test_rows_of_a_caller_that_left_never_reach_the_engine(scheduler, engine) -> None:
    async def go() -> None:
        engine.gate.clear()
        first = asyncio.create_task(scheduler.score(_rows(1)))
        await asyncio.sleep(0.02)
        left = asyncio.create_task(scheduler.score(_rows(50, seed=1)))
        await asyncio.sleep(0.02)
        left.cancel()
        await asyncio.gather(left, return_exceptions=True)
        engine.gate.set()
        await first
        await scheduler.score(_rows(1, seed=2))

    asyncio.run(go())
    assert sum(map(len, engine.runs)) == 2


def test_a_full_line_refuses_and_takes_again_when_it_is_empty(scheduler, engine) -> None:
    async def go() -> None:
        engine.gate.clear()
        waiting = asyncio.create_task(scheduler.score(_rows(99, 1000)))
        await asyncio.sleep(0.02)
        with pytest.raises(Overloaded, match="99000 tokens are waiting and the request has 1200"):
            await scheduler.score(_rows(1, 1200))
        waiting.cancel()
        engine.gate.set()
        await asyncio.gather(waiting, return_exceptions=True)
        deadline = time.monotonic() + 10
        while scheduler._queued_tokens and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        assert len((await scheduler.score(_rows(1, 1200))).rewards) == 1

    asyncio.run(go())
    assert scheduler._queued_tokens == 0


def test_draining_answers_what_was_accepted_and_refuses_the_rest(scheduler, engine) -> None:
    async def go() -> None:
        engine.gate.clear()
        accepted = asyncio.create_task(scheduler.score(_rows(200)))
        await asyncio.sleep(0.02)
        drained = asyncio.create_task(scheduler.drain())
        await asyncio.sleep(0.02)
        with pytest.raises(Draining):
            await scheduler.score(_rows(1))
        assert not drained.done()
        engine.gate.set()
        await drained
        assert len((await accepted).rewards) == 200

    asyncio.run(go())
