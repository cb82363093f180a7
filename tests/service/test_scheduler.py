"""The waiting line on a real engine: nothing lost, nobody starved, one guilty row."""

import asyncio
import gc
import threading
import time
import weakref
from contextlib import nullcontext

import numpy as np
import pytest

from service import metrics
from service.batch import next_batch
from service.bundle import Bundle
from service.config import ServiceConfig
from service.errors import DeadlineExceeded, Draining, EngineFailure, NonFiniteReward, Overloaded
from service.metrics import Recorder
from service.pairs import Pair
from service.ragged_budget import RaggedBudget
from service.ragged_engine import RaggedEngine
from service.scheduler import Scheduler
from service.score_cache import ScoreCache
from service.scorer import Scorer
from service.shortage import RECOVERY_RUNS

BUDGET = RaggedBudget(tokens=1024)
GUILTY, INFINITE = 700, 701


class Watched(RaggedEngine):
    """The real engine; remembers its runs, can be held back, and fails on one token."""

    def __init__(self, bundle: Bundle, ahead: int = 0, at_once: int = 1) -> None:
        super().__init__(bundle, "fp32", 2, at_once=at_once)
        self.ahead = ahead
        self.runs: list[list[list[int]]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.turn = threading.Lock()

    def run(self, rows, prefix_tokens=0):
        with self.turn if self.at_once == 1 else nullcontext():
            return self._run(rows, prefix_tokens)

    def _run(self, rows, prefix_tokens):
        self.gate.wait()
        if any(GUILTY in row for row in rows):
            raise RuntimeError("the engine broke")
        self.runs.append([list(row) for row in rows])
        rewards = super().run(rows, prefix_tokens)
        return np.where([INFINITE in row for row in rows], np.float32("nan"), rewards)


@pytest.fixture(params=[(0, 1), (1, 1), (0, 2)], ids=["one", "one and one ahead", "two at once"])
def engine(bundle: Bundle, request) -> Watched:
    """What holds of the line holds whatever the engine is handed while a batch runs."""
    return Watched(bundle, *request.param)


@pytest.fixture
def scheduler(engine: Watched):
    scheduler = Scheduler(engine, BUDGET, max_queued_tokens=100_000)
    yield scheduler
    engine.gate.set()
    scheduler.close()


def _rows(count: int, length: int = 12, seed: int = 0) -> list[list[int]]:
    return np.random.default_rng(seed).integers(3, 600, (count, length)).tolist()


async def settled() -> None:
    """What can happen without the engine has happened: turns of the loop, no matter how long."""
    for _ in range(100):
        await asyncio.sleep(0)


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
        await settled()
        tasks += [asyncio.create_task(scheduler.score([row])) for row in rest]
        await settled()
        engine.gate.set()
        await asyncio.gather(*tasks)

    asyncio.run(go())
    assert [len(run) for run in engine.runs] == [1, 32]


def test_a_big_request_does_not_starve_a_single_row(scheduler, engine) -> None:
    single = _rows(1, 6, seed=1)

    async def go() -> int:
        big = asyncio.create_task(scheduler.score(_rows(1500, 40)))
        while len(engine.runs) < 3:
            await asyncio.sleep(0)
        before = len(engine.runs)
        await scheduler.score(single)
        await big
        return before

    before = asyncio.run(go())
    # what was handed over and has not begun, and at most one more of the big request
    ran = [single[0] in run for run in engine.runs].index(True)
    assert ran - before <= 1 + engine.at_once + engine.ahead


@pytest.mark.parametrize("place", [0, 13, 31])
def test_only_the_guilty_row_fails_in_a_batch_of_32(scheduler, engine, place: int) -> None:
    rows = _rows(32)
    rows[place][5] = GUILTY

    async def go():
        engine.gate.clear()
        tasks = [asyncio.create_task(scheduler.score([row])) for row in rows]
        await settled()
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
        await settled()
        left = asyncio.create_task(scheduler.score(_rows(50, seed=1)))
        await settled()
        left.cancel()
        await asyncio.gather(left, return_exceptions=True)
        assert scheduler._line.requests == []  # nothing of it is held while the engine is busy
        engine.gate.set()
        await first
        await scheduler.score(_rows(1, seed=2))

    asyncio.run(go())
    assert sum(map(len, engine.runs)) == 2


def test_a_loop_that_ends_amid_a_run_leaves_nothing_behind(scheduler, engine, caplog) -> None:
    async def leave() -> None:
        engine.gate.clear()
        left = asyncio.create_task(scheduler.score(_rows(300)))
        await settled()
        assert not left.done() and scheduler.running_s > 0

    asyncio.run(leave())
    assert scheduler._tokens.used == 0 and scheduler.running_s == 0
    engine.gate.set()
    scored = asyncio.run(asyncio.wait_for(scheduler.score(_rows(3, seed=1)), 60))
    assert scored.rewards == engine.run(_rows(3, seed=1)).tolist()
    scheduler.close()  # whatever ran for the loop that is closed has ended
    assert not caplog.records


def test_a_full_line_refuses_and_takes_again_when_it_is_empty(scheduler, engine) -> None:
    async def go() -> None:
        engine.gate.clear()
        waiting = asyncio.create_task(scheduler.score(_rows(99, 1000)))
        await settled()
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
    class Short(RaggedEngine):
        def run(self, rows, prefix_tokens=0):
            return super().run(rows, prefix_tokens)[:-1]

    scheduler = Scheduler(Short(bundle, "fp32"), BUDGET, max_queued_tokens=100_000)
    with pytest.raises(EngineFailure):
        asyncio.run(asyncio.wait_for(scheduler.score(_rows(3)), 10))
    scheduler.close()


def test_the_same_row_waiting_in_many_requests_runs_once(scheduler, engine) -> None:
    first, same, late = _rows(3)

    async def go():
        engine.gate.clear()
        tasks = [asyncio.create_task(scheduler.score([first, first]))]
        await settled()  # it is in the engine now
        tasks += [asyncio.create_task(scheduler.score([same, first])) for _ in range(5)]
        left = asyncio.create_task(scheduler.score([same]))
        await settled()
        left.cancel()
        engine.gate.set()
        return await asyncio.gather(*tasks), await scheduler.score([late, same])

    scored, after = asyncio.run(go())
    assert sum(map(len, engine.runs)) == 4  # first, same, late, and same again: nothing is kept
    rewards = [float(engine.run([row])[0]) for row in (first, same, late)]
    assert scored[0].rewards == [rewards[0]] * 2
    assert all(each.rewards == [rewards[1], rewards[0]] for each in scored[1:])
    assert after.rewards == [rewards[2], rewards[1]]
    assert scheduler._tokens.used == scheduler._line.rows == 0


def test_the_same_guilty_row_is_an_error_for_each_of_its_callers(scheduler, engine) -> None:
    good, bad = _rows(2)
    bad[3] = GUILTY

    async def go():
        calls = [scheduler.score(rows) for rows in ([good, bad], [bad], [good])]
        return await asyncio.gather(*calls, return_exceptions=True)

    first, second, third = asyncio.run(go())
    assert (first.field, second.field) == ("rows[1]", "rows[0]")
    assert third.rewards == [float(engine.run([good])[0])]


def test_kept_rewards_are_reused_the_latest_longest(bundle: Bundle, engine: Watched) -> None:
    cache = ScoreCache(bundle.manifest.id, 2)
    scheduler = Scheduler(engine, BUDGET, max_queued_tokens=100_000, cache=cache)
    first, second, third = _rows(3)

    async def go() -> list[float]:
        await scheduler.score([first, second])
        before = (await scheduler.score([first])).rewards  # kept
        await scheduler.score([third])  # second is dropped
        return before + (await scheduler.score([first, third, second])).rewards

    rewards = asyncio.run(go())
    ran = [row for run in engine.runs for row in run]
    assert ran == [first, second, third, second]
    assert rewards == [float(engine.run([row])[0]) for row in (first, first, third, second)]
    scheduler.close()


@pytest.mark.parametrize("prefix", [0, 100])
def test_short_memory_halves_the_batch_and_it_recovers(bundle: Bundle, prefix: int) -> None:
    """An engine that has room for 4 rows: 32 are answered, batches shrink, then grow again."""

    class Small(RaggedEngine):
        room = 4

        def run(self, rows, prefix_tokens=0):
            sizes.append(len(rows))
            if len(rows) > self.room:
                raise MemoryError("no room")
            return super().run(rows, prefix_tokens)

    sizes: list[int] = []
    engine = Small(bundle, "fp32", 2)
    recorder = Recorder()
    scheduler = Scheduler(engine, BUDGET, 100_000, recorder)
    start = _rows(1, prefix)[0] if prefix else []
    rows = [[*start, *row] for row in _rows(32, seed=1)]

    async def go() -> list[float]:
        rewards = (await scheduler.score(rows)).rewards
        assert recorder.added[metrics.SHORTAGES, ()] >= 3
        assert scheduler._shortage.divisor > 1
        engine.room = 100
        for i in range(8 * RECOVERY_RUNS):
            await scheduler.score(_rows(1, seed=100 + i))
        return rewards

    rewards = asyncio.run(go())
    assert scheduler._shortage.divisor == 1
    assert rewards == [float(RaggedEngine.run(engine, [row])[0]) for row in rows]
    scheduler.close()


def test_a_row_that_alone_has_no_room_is_an_error(bundle: Bundle) -> None:
    class Full(RaggedEngine):
        def run(self, rows, prefix_tokens=0):
            if any(len(row) > 50 for row in rows):
                raise MemoryError("no room")
            return super().run(rows, prefix_tokens)

    scheduler = Scheduler(Full(bundle, "fp32", 2), BUDGET, 100_000)

    async def go():
        calls = [scheduler.score([row]) for row in (*_rows(3), _rows(1, 60)[0])]
        return await asyncio.gather(*calls, return_exceptions=True)

    *good, bad = asyncio.run(go())
    assert isinstance(bad, EngineFailure) and "more memory" in bad.message
    assert all(len(each.rewards) == 1 for each in good)
    scheduler.close()


def test_a_row_of_one_token_is_counted_and_shares_nothing(bundle: Bundle) -> None:
    recorder = Recorder()
    engine = RaggedEngine(bundle, "fp32", 2)
    scheduler = Scheduler(engine, BUDGET, 100_000, recorder)
    asyncio.run(scheduler.score([[5]]))
    assert engine.cached_tokens([5]) == 0
    assert all(value >= 0 for value in recorder.added.values())
    scheduler.close()


def test_tokens_that_kept_states_save_are_counted_of_every_row(bundle: Bundle) -> None:
    recorder = Recorder()
    scheduler = Scheduler(RaggedEngine(bundle, "fp32"), BUDGET, 100_000, recorder)
    prompts = _rows(3, 200)

    async def go() -> dict[str, float]:
        for i, prompt in enumerate(prompts):
            await scheduler.score([prompt + tail for tail in _rows(2, 20, seed=i)])
        recorder.drain()
        await scheduler.score([prompt + [5] * 20 for prompt in prompts])
        return {series.name: amount for (series, _), amount in recorder.drain().added.items()}

    added = asyncio.run(go())
    scheduler.close()
    assert (added["reward_tokens"], added["reward_shared_tokens"]) == (3 * 220, 3 * 200)


def test_a_row_whose_deadline_is_over_never_reaches_the_engine(scheduler, engine) -> None:
    with pytest.raises(DeadlineExceeded):
        asyncio.run(scheduler.score(_rows(3), deadline_s=0.0))
    assert not engine.runs and scheduler._tokens.used == 0


def test_a_failure_while_answering_leaves_nobody_waiting(bundle: Bundle) -> None:
    class Forgetful(ScoreCache):
        def put(self, row, reward):
            raise RuntimeError("a bug")

    engine = RaggedEngine(bundle, "fp32", 2)
    scheduler = Scheduler(engine, BUDGET, 100_000, cache=Forgetful("", 10))
    with pytest.raises(EngineFailure, match="scheduler: RuntimeError"):
        asyncio.run(asyncio.wait_for(scheduler.score(_rows(3)), 10))
    assert scheduler._tokens.used == 0
    scheduler.close()


def test_a_refusal_is_in_no_cycle(scheduler) -> None:
    """Python looks for cycles rarely, and one would hold the request's rows."""

    async def go():
        try:
            await scheduler.score([[5, INFINITE]])
        except NonFiniteReward as error:
            refused = weakref.ref(error)
        return refused

    gc.disable()
    try:
        assert asyncio.run(go())() is None
    finally:
        gc.enable()


def test_a_shortage_frees_what_the_failed_run_held(bundle: Bundle) -> None:
    """Arrays in the frames of a failed run are gone when its halves run."""
    alive: list[int] = []

    class Held:
        pass

    class Short(RaggedEngine):
        def run(self, rows, prefix_tokens=0):
            alive.append(sum(isinstance(each, Held) for each in gc.get_objects()))
            held = Held()
            if len(rows) > 1:
                raise MemoryError("no room", id(held))
            return super().run(rows, prefix_tokens)

    scheduler = Scheduler(Short(bundle, "fp32", 2), BUDGET, 100_000)
    assert len(asyncio.run(scheduler.score(_rows(4))).rewards) == 4
    assert len(alive) == 7 and not any(alive)
    scheduler.close()


def test_a_deadline_drops_what_has_not_run(engine: Watched) -> None:
    scheduler = Scheduler(engine, BUDGET, max_queued_tokens=100_000)

    async def go() -> None:
        engine.gate.clear()
        first = asyncio.create_task(scheduler.score(_rows(1)))
        await settled()
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
        await settled()
        started = time.thread_time()  # not what other processes take
        next_batch(scheduler._line, engine, BUDGET)
        seconds = time.thread_time() - started
        for task in tasks:
            task.cancel()
        engine.gate.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        return seconds

    # 10 ms; token by token it took 240 with the shared start
    assert asyncio.run(go()) < 0.1


def test_states_that_fail_blame_no_row(bundle: Bundle) -> None:
    class NoStates(RaggedEngine):
        def _keep(self, run, present):
            if run.kept:
                raise MemoryError("no room for states")

    scheduler = Scheduler(NoStates(bundle, "fp32"), BUDGET, max_queued_tokens=100_000)
    rows = [[*range(10, 110), i, i] for i in range(8)]
    assert len(asyncio.run(scheduler.score(rows)).rewards) == 8
    scheduler.close()


def test_a_failure_of_the_scheduler_itself_leaves_an_empty_line(bundle: Bundle) -> None:
    class Forgetful(RaggedEngine):
        broken = True

        def cached_tokens(self, row):
            if self.broken:
                raise RuntimeError("a bug")
            return super().cached_tokens(row)

    engine = Forgetful(bundle, "fp32")
    scheduler = Scheduler(engine, BUDGET, max_queued_tokens=100_000)
    with pytest.raises(EngineFailure, match="scheduler: RuntimeError"):
        asyncio.run(scheduler.score(_rows(3)))
    assert scheduler._tokens.used == scheduler._line.rows == len(scheduler._line.requests) == 0
    engine.broken = False
    assert len(asyncio.run(scheduler.score(_rows(2))).rewards) == 2
    scheduler.close()


def test_draining_answers_what_was_accepted_and_refuses_the_rest(
    bundle: Bundle, config: ServiceConfig, engine: Watched
) -> None:
    scorer = Scorer(bundle, engine, BUDGET, config)
    pairs = [Pair("What is 2 plus 2?", f"{i}") for i in range(200)]

    async def go() -> None:
        engine.gate.clear()
        accepted = asyncio.create_task(scorer.score(pairs))
        await asyncio.sleep(0)  # accepted, and not even tokenised yet
        drained = asyncio.create_task(scorer.drain())
        await settled()
        with pytest.raises(Draining):
            await scorer.score(pairs[:1])
        assert not drained.done()
        engine.gate.set()
        await drained
        assert len((await accepted).results) == 200

    asyncio.run(go())
    scorer.close()
