"""An engine that is handed a batch while one runs, for beside it or next, answers as any other."""

import asyncio
import threading
import time
from itertools import pairwise

import numpy as np
import pytest

from service.bundle import Bundle
from service.config import ServiceConfig
from service.errors import DeadlineExceeded, EngineFailure
from service.pairs import Pair
from service.ragged_budget import RaggedBudget
from service.ragged_engine import RaggedEngine
from service.scheduler import Scheduler
from service.scorer import Scorer
from tests.service.test_scheduler import GUILTY, Watched, _rows, settled

LENGTH, ROWS = 64, 16
BUDGET = RaggedBudget(tokens=LENGTH * ROWS)
"a whole batch is 16 rows of 64 tokens"
RUN_S, PLAN_S = 0.03, 0.02


@pytest.fixture
def engine(bundle: Bundle) -> Watched:
    return Watched(bundle, ahead=1)


@pytest.fixture
def scheduler(engine: Watched):
    scheduler = Scheduler(engine, BUDGET, max_queued_tokens=100_000)
    yield scheduler
    engine.gate.set()
    scheduler.close()


async def _handed(scheduler: Scheduler, engine: Watched, requests) -> list[int]:
    """How many batches the engine has after each request, while it finishes none."""
    engine.gate.clear()
    tasks, handed = [], []
    for rows in requests:
        tasks.append(asyncio.create_task(scheduler.score(rows)))
        await settled()
        handed.append(len(scheduler._handed))
    engine.gate.set()
    await asyncio.gather(*tasks)
    return handed


def test_a_whole_batch_is_handed_over_while_one_runs_and_less_is_not(scheduler, engine) -> None:
    requests = [_rows(count, LENGTH, seed) for seed, count in enumerate((1, ROWS - 1, 1, ROWS))]
    assert asyncio.run(_handed(scheduler, engine, requests)) == [1, 1, 2, 2]
    assert [len(run) for run in engine.runs] == [1, ROWS, ROWS]
    assert scheduler._tokens.used == scheduler._line.tokens == 0 and not scheduler._running


def test_rows_that_wait_for_a_prefix_complete_a_whole_batch(scheduler, engine) -> None:
    """They are not in it, and nothing else may arrive that would wake the scheduler for it."""
    prompt, *others = _rows(8, LENGTH)
    behind = [prompt + tail for tail in _rows(ROWS, LENGTH, seed=1)]
    requests = [behind[:2], others, behind[2:]]
    assert asyncio.run(_handed(scheduler, engine, requests)) == [1, 1, 2]
    assert [len(run) for run in engine.runs][1] == 7


@pytest.mark.parametrize("ahead", [0, 1])
def test_the_engine_does_not_wait_for_planning(bundle: Bundle, ahead: int) -> None:
    """A run takes 30 ms at least and planning 20; only without ahead is that time lost."""

    class Slow(RaggedEngine):
        spans: list[tuple[float, float]]

        turn = threading.Lock()

        def run(self, rows, prefix_tokens=0):
            with self.turn:
                started = time.perf_counter()
                rewards = super().run(rows, prefix_tokens)
                time.sleep(RUN_S)
                self.spans.append((started, time.perf_counter()))
                return rewards

    class SlowlyPlanned(RaggedBudget):
        def plan(self, *args):
            time.sleep(PLAN_S)
            return BUDGET.plan(*args)

    engine = Slow(bundle, "fp32", 1)
    engine.ahead, engine.spans = ahead, []
    scheduler = Scheduler(engine, SlowlyPlanned(BUDGET.tokens), max_queued_tokens=100_000)
    rows = _rows(10 * ROWS, LENGTH)
    scored = asyncio.run(scheduler.score(rows))
    scheduler.close()
    idle = float(np.median([b - a for (_, a), (b, _) in pairwise(engine.spans)]))
    assert len(engine.spans) == 10
    # half the planning: far from both, whatever else this machine does
    assert idle < PLAN_S / 2 if ahead else idle >= PLAN_S
    assert scored.rewards == RaggedEngine.run(engine, rows).tolist()


def test_a_guilty_row_in_what_was_handed_over_fails_alone(scheduler, engine) -> None:
    rows = _rows(3 * ROWS, LENGTH)
    for guilty in (3, 20):  # of the batch that runs, and of the next
        rows[guilty][5] = GUILTY

    async def go():
        calls = [scheduler.score([row]) for row in rows]
        return await asyncio.gather(*calls, return_exceptions=True)

    outcomes = asyncio.run(go())
    failed = [i for i, outcome in enumerate(outcomes) if isinstance(outcome, EngineFailure)]
    assert failed == [3, 20]
    good = [i for i in range(len(rows)) if i not in failed]
    assert [outcomes[i].rewards[0] for i in good] == [float(engine.run([rows[i]])[0]) for i in good]


@pytest.mark.parametrize("leaves", ["cancelled", "late"])
def test_of_a_caller_that_left_only_what_was_handed_over_runs(scheduler, engine, leaves) -> None:
    async def go() -> None:
        engine.gate.clear()
        deadline_s = 0.2 if leaves == "late" else None
        rows = _rows(4 * ROWS, LENGTH)
        left = asyncio.create_task(scheduler.score(rows, deadline_s))
        await settled()
        if leaves == "cancelled":
            left.cancel()
        (outcome,) = await asyncio.gather(left, return_exceptions=True)
        assert isinstance(outcome, DeadlineExceeded | asyncio.CancelledError)
        engine.gate.set()
        assert len((await scheduler.score(_rows(2, seed=9))).rewards) == 2

    asyncio.run(go())
    assert [len(run) for run in engine.runs] == [ROWS, ROWS, 2]
    assert scheduler._tokens.used == 0


def test_a_row_that_was_handed_over_answers_whoever_asks_for_it_later(scheduler, engine) -> None:
    rows = _rows(2 * ROWS, LENGTH)

    async def go():
        engine.gate.clear()
        first = asyncio.create_task(scheduler.score(rows))
        await settled()
        again = asyncio.create_task(scheduler.score(rows[-3:]))
        await settled()
        engine.gate.set()
        return await asyncio.gather(first, again)

    first, again = asyncio.run(go())
    assert again.rewards == first.rewards[-3:]
    assert sum(map(len, engine.runs)) == 2 * ROWS


def test_a_failure_in_planning_the_next_batch_answers_everybody(scheduler, engine) -> None:
    plans = iter([None, RuntimeError("a bug")])
    known = engine.cached_tokens

    def cached_tokens(row):
        if failure := next(plans, None):
            raise failure
        return known(row)

    engine.cached_tokens = cached_tokens

    async def go():
        with pytest.raises(EngineFailure, match="scheduler: RuntimeError"):
            await scheduler.score(_rows(3 * ROWS, LENGTH))
        return await scheduler.score(_rows(2, seed=5))

    assert len(asyncio.run(go()).rewards) == 2
    assert scheduler._tokens.used == scheduler._line.rows == 0 and not scheduler._running


def test_a_run_that_hangs_is_told_from_what_waits_behind_it(scheduler, engine) -> None:
    """The clock of a batch starts when the one before it is done."""

    async def go() -> None:
        engine.gate.clear()
        task = asyncio.create_task(scheduler.score(_rows(2 * ROWS, LENGTH)))
        await settled()
        assert len(scheduler._handed) == 2
        handed = time.perf_counter()
        await asyncio.sleep(0.05)
        hung_s = time.perf_counter() - handed
        assert scheduler.running_s >= hung_s
        freed = time.perf_counter()
        engine.gate.set()
        while len(scheduler._handed) == 2:
            await asyncio.sleep(0)
        assert scheduler.running_s <= time.perf_counter() - freed
        await task
        assert scheduler.running_s == 0

    asyncio.run(go())


def test_a_batch_that_is_done_is_answered_while_an_older_one_runs(bundle: Bundle) -> None:
    class Held(RaggedEngine):
        held = threading.Event()

        def run(self, rows, prefix_tokens=0):
            if len(rows[0]) == 2 * LENGTH:
                self.held.wait()
            return super().run(rows, prefix_tokens)

    engine = Held(bundle, "fp32", 1, at_once=2)
    scheduler = Scheduler(engine, BUDGET, max_queued_tokens=100_000)

    async def go() -> None:
        slow = asyncio.create_task(scheduler.score(_rows(ROWS // 2, 2 * LENGTH)))
        await settled()
        began = time.perf_counter()
        for seed in range(3):  # each takes the place of the one before, beside the one that is held
            rows = _rows(ROWS, LENGTH, seed)
            scored = await asyncio.wait_for(scheduler.score(rows), 60)
            assert scored.rewards == RaggedEngine.run(engine, rows).tolist()
        assert not slow.done()
        assert scheduler.running_s >= time.perf_counter() - began  # of the oldest
        engine.held.set()
        await slow

    try:
        asyncio.run(go())
    finally:
        engine.held.set()
        scheduler.close()
    assert scheduler._tokens.used == scheduler._line.rows == 0 and not scheduler._running


@pytest.mark.parametrize("strangers", [0, 4])
def test_rows_wait_for_the_prompt_that_a_running_batch_computes(
    bundle: Bundle, strangers: int
) -> None:
    """Eight responses of 12 tokens to a prompt of 40, of which four fit into a batch: the others
    are in the next one but one, or, where nothing else waits, in the next. With the prompt's states
    kept, or where they never are, nobody waits."""
    engine = Watched(bundle, at_once=2)
    scheduler = Scheduler(engine, RaggedBudget(tokens=4 * 12), max_queued_tokens=100_000)
    prompt, *ends = _rows(1, 40) + _rows(16, seed=1)
    group, again = ([[*prompt, *end] for end in ends[i : i + 8]] for i in (0, 8))
    others = _rows(strangers, seed=2)

    async def handed(rows: list[list[int]]) -> list[list[list[int]]]:
        engine.gate.clear()
        calls = [asyncio.create_task(scheduler.score([row])) for row in rows]
        await settled()
        batches = [list(each.batch.rows) for each in scheduler._handed]
        engine.gate.set()
        rewards = [(await call).rewards[0] for call in calls]
        assert rewards == [float(RaggedEngine.run(engine, [row])[0]) for row in rows]
        return batches

    first = asyncio.run(handed(group + others))
    assert first == ([group[:4], others] if others else [group[:4]])
    assert engine.runs[-1] == group[4:] and len(engine.runs) == len(first) + 1
    assert asyncio.run(handed(again)) == [again[:4], again[4:]]
    engine.kept_tokens = 39
    assert len(asyncio.run(handed([[9, *row] for row in again]))) == 2
    scheduler.close()


def test_a_service_of_runs_at_once_gives_the_same_bits(config: ServiceConfig) -> None:
    """Groups of eight to a prompt, each pair a request, all waiting at the same time."""
    words = np.random.default_rng(3).choice(["good", "bad", "seven", "plus", "sum"], (12, 40))
    pairs = [
        Pair(" ".join(prompt), " ".join(prompt[i : 2 * i + 1]))
        for prompt in words
        for i in range(8)
    ]

    def rewards(scorer: Scorer) -> tuple[list[float], int]:
        """And how many batches the engine had at most."""
        most = 0

        async def go() -> list[float]:
            nonlocal most
            calls = [asyncio.create_task(scorer.score([pair])) for pair in pairs]
            while not all(call.done() for call in calls):
                await asyncio.sleep(0)
                most = max(most, len(scorer.scheduler._handed))
            return [(await call).results[0].reward for call in calls]

        try:
            return asyncio.run(go()), most
        finally:
            scorer.close()

    several = {"runs_at_once": 3, "threads": 1, "max_batch_tokens": 100}
    expected, one = rewards(Scorer.open(config))
    got, three = rewards(Scorer.open(config.model_copy(update=several)))
    assert got == expected and (one, three) == (1, 3)
