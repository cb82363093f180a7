"""The waiting line on a real engine: nothing lost, nobody starved, one guilty row."""

import asyncio
import threading
import time

import numpy as np
import pytest

from service.bundle import Bundle
from service.config import ServiceConfig
from service.engine import OnnxEngine
from service.errors import DeadlineExceeded, Draining, EngineFailure, NonFiniteReward, Overloaded
from service.planner import Budget
from service.prefix import HEAD_TOKENS
from service.scheduler import Scheduler
from service.scorer import Pair, Scorer

BUDGET = Budget(padded_tokens=1024, padding=0.15)
GUILTY, INFINITE = 700, 701


class Watched(OnnxEngine):
    """The real engine; remembers its runs, can be held back, and fails on one token."""

    def __init__(self, bundle: Bundle) -> None:
        super().__init__(bundle, "fp32", "cpu", 2)
        self.runs: list[list[list[int]]] = []
        self.gate = threading.Event()
        self.gate.set()

    def run(self, rows, prefix_tokens=0):
        self.gate.wait()
        if any(GUILTY in row for row in rows):
            raise RuntimeError("the engine broke")
        self.runs.append([list(row) for row in rows])
        rewards = super().run(rows, prefix_tokens)
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
        while scheduler._tokens.used and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        assert len((await scheduler.score(_rows(1, 1200))).rewards) == 1

    asyncio.run(go())
    assert scheduler._tokens.used == 0


def test_an_engine_that_breaks_its_protocol_leaves_nobody_waiting(bundle: Bundle) -> None:
    class Short(OnnxEngine):
        def run(self, rows, prefix_tokens=0):
            return super().run(rows, prefix_tokens)[:-1]

    scheduler = Scheduler(Short(bundle, "fp32", "cpu"), BUDGET, max_queued_tokens=100_000)
    with pytest.raises(EngineFailure):
        asyncio.run(asyncio.wait_for(scheduler.score(_rows(3)), 10))
    scheduler.close()


@pytest.mark.parametrize("length", [18, 19, 33, 64, 130])
def test_every_split_gives_the_same_bits_cached_or_not(bundle: Bundle, length: int) -> None:
    engine = OnnxEngine(bundle, "fp32", "cpu", 2)
    one_thread = OnnxEngine(bundle, "fp32", "cpu", 1)
    row = _rows(1, length, seed=length)[0]
    others = [[*row[:-1], 5], [*row, 7, 8]]
    alone = engine.run([row])[0]
    assert one_thread.run([row])[0] == alone
    for tokens in range(2, length - 2):
        assert engine.run([row, *others], tokens)[0] == alone
        if tokens >= HEAD_TOKENS:
            assert engine.cached_tokens(row) == tokens
        assert engine.run([row], tokens)[0] == alone


def test_states_are_kept_within_their_bytes_the_latest_longest(bundle: Bundle) -> None:
    sizes = bundle.manifest.architecture
    engine = OnnxEngine(bundle, "fp32", "cpu", 2, 100 * sizes.state_bytes_per_token())
    first, second = _rows(2, 60)
    engine.run([first], 50)
    assert engine.cached_tokens(first) == 50
    engine.run([second], 50)
    assert engine.cached_tokens(first) == engine.cached_tokens(second) == 50
    engine.run([second], 40)
    assert (engine.cached_tokens(first), engine.cached_tokens(second)) == (0, 50)


def test_a_deadline_drops_what_has_not_run(engine: Watched) -> None:
    scheduler = Scheduler(engine, BUDGET, max_queued_tokens=100_000)

    async def go() -> None:
        engine.gate.clear()
        first = asyncio.create_task(scheduler.score(_rows(1)))
        await asyncio.sleep(0.02)
        with pytest.raises(DeadlineExceeded, match="50 of 50 pairs"):
            await scheduler.score(_rows(50, seed=1), deadline_s=0.2)
        engine.gate.set()
        await asyncio.gather(first, return_exceptions=True)
        await scheduler.score(_rows(1, seed=2))

    asyncio.run(go())
    assert sum(map(len, engine.runs)) == 2
    scheduler.close()


@pytest.mark.parametrize("shared", [0, 2000])
def test_planning_over_a_huge_line_stays_short(scheduler, engine, shared: int) -> None:
    """40 requests of 200 rows, that share nothing or a system prompt: 1,024 rows are looked at."""

    async def go() -> float:
        scheduler._tokens.limit = 10**9
        engine.gate.clear()
        start = list(range(3, 3 + 250)) * 8
        rows = [[[*start[:shared], *row] for row in _rows(200, 20, i)] for i in range(40)]
        tasks = [asyncio.create_task(scheduler.score(each)) for each in rows]
        await asyncio.sleep(0.5)
        started = time.perf_counter()
        scheduler._next_batch()
        seconds = time.perf_counter() - started
        for task in tasks:
            task.cancel()
        engine.gate.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        return seconds

    # token by token it took 240 ms with the shared start; 0.1 s leaves room for a busy machine
    assert asyncio.run(go()) < 0.1


def test_states_that_fail_blame_no_row(bundle: Bundle) -> None:
    class NoStates(OnnxEngine):
        def _prefix(self, ids):
            raise MemoryError("no room for states")

    scheduler = Scheduler(NoStates(bundle, "fp32", "cpu"), BUDGET, max_queued_tokens=100_000)
    rows = [[*range(10, 110), i, i] for i in range(8)]
    assert len(asyncio.run(scheduler.score(rows)).rewards) == 8
    scheduler.close()


def test_a_failure_of_the_scheduler_itself_leaves_an_empty_line(bundle: Bundle) -> None:
    class Forgetful(OnnxEngine):
        broken = True

        def cached_tokens(self, row):
            if self.broken:
                raise RuntimeError("a bug")
            return super().cached_tokens(row)

    engine = Forgetful(bundle, "fp32", "cpu")
    scheduler = Scheduler(engine, BUDGET, max_queued_tokens=100_000)
    with pytest.raises(EngineFailure, match="scheduler: RuntimeError"):
        asyncio.run(scheduler.score(_rows(3)))
    assert scheduler._tokens.used == scheduler._queued_rows == len(scheduler._turns) == 0
    engine.broken = False
    assert len(asyncio.run(scheduler.score(_rows(2))).rewards) == 2
    scheduler.close()


def test_draining_answers_what_was_accepted_and_refuses_the_rest(
    bundle: Bundle, config: ServiceConfig, engine: Watched
) -> None:
    scorer = Scorer(bundle, engine, config)
    pairs = [Pair("What is 2 plus 2?", f"{i}") for i in range(200)]

    async def go() -> None:
        engine.gate.clear()
        accepted = asyncio.create_task(scorer.score(pairs))
        await asyncio.sleep(0)  # accepted, and not even tokenised yet
        drained = asyncio.create_task(scorer.drain())
        await asyncio.sleep(0.05)
        with pytest.raises(Draining):
            await scorer.score(pairs[:1])
        assert not drained.done()
        engine.gate.set()
        await drained
        assert len((await accepted).results) == 200

    asyncio.run(go())
    scorer.close()
