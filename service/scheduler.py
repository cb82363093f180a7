"""Admission and the work-conserving loop. Knows rows; knows nothing of text.

A batch is formed when the engine becomes free, never on a timer. Requests take turns: each batch
begins with the oldest row of the request whose turn it is, and is filled with rows of similar
length from all of them, so that a request of thousands of rows cannot starve a single pair.
"""

import asyncio
import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from dataclasses import dataclass

import numpy as np

from service import metrics
from service.engine import Engine
from service.errors import (
    DeadlineExceeded,
    EngineFailure,
    NonFiniteReward,
    RewardError,
)
from service.line import Line, Outcome, Place, Request
from service.metrics import Recorder
from service.pace import Pace
from service.planner import Limits, Plan
from service.prefix import TYPICAL, Costs
from service.room import Room
from service.score_cache import ScoreCache

log = logging.getLogger("reward.scheduler")

RECOVERY_RUNS = 64
"runs without a shortage of memory after which the budget is doubled again"
MAX_DIVISOR = 64


@dataclass(slots=True)
class Scored:
    """Rewards of a request, in its order, and where its time went."""

    rewards: list[float]  # (N,)
    queue_ms: float
    engine_ms: float


@dataclass(slots=True)
class _Batch:
    rows: list[Sequence[int]]
    packed: list[bytes]
    places: list[list[Place]]
    "for each row, everybody it answers"
    plan: Plan
    cached_tokens: int


class Scheduler:
    """One engine, one worker thread, one event loop."""

    def __init__(
        self,
        engine: Engine,
        budget: Limits,
        max_queued_tokens: int,
        recorder: Recorder | None = None,
        costs: Costs = TYPICAL,
        cache: ScoreCache | None = None,
    ) -> None:
        self._engine = engine
        self._budget = budget
        self._divisor = 1  # of the budget, above 1 while memory is short
        self._clean_runs = 0
        self._costs = costs
        self._cache = cache or ScoreCache("", 0)
        self._recorder = recorder or Recorder(listening=False)
        self._tokens = Room(max_queued_tokens, "tokens", "max_queued_tokens")
        "waiting or in the engine"
        self._pace = Pace()
        self._line = Line()
        self._running: dict[bytes, list[Place]] = {}
        "rows that are in the engine, and everybody they will answer"
        self._running_since: float | None = None
        self._loop_task: asyncio.Task[None] | None = None
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")

    async def score(
        self,
        rows: Sequence[Sequence[int]],
        deadline_s: float | None = None,
        patient: bool = False,
    ) -> Scored:
        """Rewards of all rows. Raises Overloaded before anything is queued, and
        DeadlineExceeded when they are not all there within `deadline_s` (None: no deadline).
        A patient caller waits for room until its deadline instead of being refused.

        A row that makes the engine fail raises EngineFailure with `field` set to its index; other
        requests in its batch are not touched. Cancelling drops the rows that have not run.
        """
        if not rows:
            return Scored([], 0.0, 0.0)
        due = None if deadline_s is None else asyncio.get_running_loop().time() + deadline_s
        try:
            await self._tokens.enter(sum(map(len, rows)), due, patient)
        except (DeadlineExceeded, asyncio.CancelledError) as error:
            reason = "deadline" if isinstance(error, DeadlineExceeded) else "caller_left"
            self._recorder.add(metrics.DROPPED, len(rows), reason)
            raise
        if due is not None and asyncio.get_running_loop().time() >= due:
            self._tokens.leave(sum(map(len, rows)))
            self._recorder.add(metrics.DROPPED, len(rows), "deadline")
            raise DeadlineExceeded(f"none of {len(rows)} pairs was scored within their deadline")
        request = self._admit(rows)
        try:
            async with asyncio.timeout_at(due):
                await request.done
        except TimeoutError:
            self._drop(request, "deadline")
            raise DeadlineExceeded(
                f"{request.missing} of {len(rows)} pairs were not scored within "
                "their deadline; retry, or send less at a time"
            ) from None
        except asyncio.CancelledError:
            self._drop(request, "caller_left")
            raise
        rewards = []
        for i, outcome in enumerate(request.outcomes):
            if isinstance(outcome, RewardError):
                refusal = copy(outcome)  # other callers may have sent the same row
                refusal.field = f"rows[{i}]"
                raise refusal
            assert outcome is not None
            rewards.append(outcome)
        waited = request.started - request.submitted if request.started else 0.0
        return Scored(rewards, queue_ms=waited * 1e3, engine_ms=request.engine_s * 1e3)

    def _drop(self, request: Request, reason: str) -> None:
        """Take back what has not run; rows that are in the engine end by themselves."""
        self._recorder.add(metrics.DROPPED, len(request.waiting), reason)
        self._tokens.leave(sum(len(request.rows[i]) for i in request.waiting))
        self._line.leave(request)
        self._gauge()

    def _gauge(self) -> None:
        self._recorder.set(metrics.QUEUE_ROWS, self._line.rows)
        self._recorder.set(metrics.QUEUE_TOKENS, self._tokens.used)

    @property
    def running_s(self) -> float:
        """How long the batch in the engine has been there; 0 when it is free."""
        return 0.0 if self._running_since is None else time.perf_counter() - self._running_since

    def backlog_s(self, more_tokens: float = 0.0) -> float:
        """Seconds that what is queued, and more of it, will take; 0 while that is not known."""
        return self._pace.seconds(self._tokens.used + more_tokens)

    def close(self) -> None:
        self._worker.shutdown(wait=True, cancel_futures=True)

    def _admit(self, rows: Sequence[Sequence[int]]) -> Request:
        loop = asyncio.get_running_loop()
        request = Request(rows, loop.create_future(), time.perf_counter())
        self._reuse(request)
        if request.waiting:
            self._line.join(request)
            if self._loop_task is None:
                self._loop_task = loop.create_task(self._work())
        self._gauge()
        return request

    def _reuse(self, request: Request) -> None:
        """Answer rows whose reward is known; let those wait that are in the engine already."""
        for i, packed in enumerate(request.packed):
            known = self._cache.get(packed)
            if known is not None:
                request.answer(i, known)
                self._tokens.leave(len(request.rows[i]))
                self._recorder.add(metrics.REUSED, 1, "score_cache")
            elif packed in self._running:
                self._running[packed].append((request, i))
            else:
                continue
            del request.waiting[i]

    async def _work(self) -> None:
        """Run batches while anything waits."""
        loop = asyncio.get_running_loop()
        self._pace.begin()
        try:
            while batch := self._next_batch():
                self._running = dict(zip(batch.packed, batch.places, strict=True))
                self._running_since = started = time.perf_counter()
                outcomes, shortages = await loop.run_in_executor(
                    self._worker, self._run, batch.rows, batch.plan.prefix_tokens
                )
                self._running_since = None
                self._adapt(shortages)
                self._finish(batch, outcomes, started, time.perf_counter() - started)
        except Exception as error:  # ours, or an engine that breaks its protocol: nobody may hang
            log.exception("the scheduler failed")
            self._abandon(EngineFailure(f"scheduler: {type(error).__name__}"))
        finally:
            self._running_since = None
            self._running = {}
            self._loop_task = None

    def _abandon(self, error: EngineFailure) -> None:
        """Answer everything with an error and begin anew with an empty line."""
        waiting = [(request, i) for request in self._line.requests for i in request.waiting]
        running = [place for places in self._running.values() for place in places]
        unanswered = waiting + [(r, i) for r, i in running if r.outcomes[i] is None]
        for request in {request for request, _ in unanswered}:
            if not request.done.done():
                request.done.set_exception(error)
        self._line.clear()
        self._running = {}
        self._tokens.leave(sum(len(request.rows[i]) for request, i in unanswered))
        self._gauge()

    def _next_batch(self) -> _Batch | None:
        """The oldest row of the request whose turn it is, and rows that fit to it."""
        window = self._line.window()
        if not window:
            return None
        packed = [request.packed[i] for request, i in window]
        request, seed = window[0]
        cached_tokens = self._engine.cached_tokens(request.rows[seed])
        budget = self._budget.divided(self._divisor)
        planned = budget.plan(packed, 0, cached_tokens, self._costs)
        chosen = [window[i] for i in planned.rows]
        batch = _Batch(
            [request.rows[i] for request, i in chosen],
            [packed[i] for i in planned.rows],
            self._line.take(chosen),
            planned,
            min(planned.prefix_tokens, cached_tokens) if planned.prefixes == 1 else 0,
        )
        self._gauge()
        return batch

    def _adapt(self, shortages: int) -> None:
        """Halve the budget when memory was short, double it again after a while without."""
        self._clean_runs = 0 if shortages else self._clean_runs + 1
        if shortages:
            self._divisor = min(MAX_DIVISOR, 2 * self._divisor)
            self._recorder.add(metrics.SHORTAGES, shortages)
            log.warning("memory was short; a batch is 1/%d of the budget now", self._divisor)
        elif self._divisor > 1 and self._clean_runs >= RECOVERY_RUNS:
            self._divisor //= 2
            self._clean_runs = 0

    def _finish(
        self, batch: _Batch, outcomes: Sequence[Outcome], started: float, engine_s: float
    ) -> None:
        places = [place for places in batch.places for place in places]
        tokens = sum(len(request.rows[i]) for request, i in places)
        self._pace.note(tokens, full=self._line.rows > 0)
        self._record(batch, engine_s)
        for request in {request for request, _ in places}:
            request.engine_s += engine_s
            if not request.started:
                request.started = max(started, request.submitted)
                wait = request.started - request.submitted
                self._recorder.observe(metrics.QUEUE_WAIT, wait)
        for packed, answered, outcome in zip(batch.packed, batch.places, outcomes, strict=True):
            if isinstance(outcome, float):
                self._cache.put(packed, outcome)
            for request, i in answered:
                request.answer(i, outcome)
                self._tokens.leave(len(request.rows[i]))
        self._running = {}  # last: whatever fails before it, _abandon knows whom to tell
        self._gauge()

    def _record(self, batch: _Batch, engine_s: float) -> None:
        lengths = [*map(len, batch.rows)]
        computed, shared = batch.plan.tokens(lengths)
        answered = sum(map(len, batch.places))
        self._recorder.add(metrics.TOKENS, sum(lengths))
        self._recorder.add(metrics.SHARED, shared + batch.cached_tokens)
        self._recorder.add(metrics.PADDING, computed - (sum(lengths) - shared))
        self._recorder.add(metrics.REUSED, answered - len(lengths), "in_flight")
        self._recorder.observe(metrics.BATCH_ROWS, len(batch.rows))
        self._recorder.observe(metrics.ENGINE, engine_s)

    def _run(self, rows: Sequence[Sequence[int]], prefix_tokens: int) -> tuple[list[Outcome], int]:
        """In the worker thread: outcomes, and how often memory was short.

        A batch that fails is halved until only the guilty row fails; a prefix is given up first,
        since its states may be what failed, and no row is blamed for that.
        """
        try:
            rewards = self._engine.run(rows, prefix_tokens)
            assert len(rewards) == len(rows), "an engine gives one reward per row"
            return [_outcome(float(reward)) for reward in rewards], 0
        except Exception as error:  # whatever the runtime raises: isolate the row, keep serving
            failure, short = _failure(error), isinstance(error, MemoryError)
            if len(rows) == 1 and not prefix_tokens:
                log.exception("the engine failed on a row of %d tokens", len(rows[0]))
        # The exception is gone, and with it the arrays of the run that its frames held.
        if prefix_tokens and not (short and len(rows) > 1):
            outcomes, shortages = self._run(rows, 0)
            return outcomes, shortages + short
        if len(rows) == 1:
            return [failure], int(short)
        half = len(rows) // 2
        kept = prefix_tokens if short else 0
        first, in_first = self._run(rows[:half], kept)
        second, in_second = self._run(rows[half:], kept)
        return first + second, in_first + in_second + short


def _failure(error: Exception) -> EngineFailure:
    if isinstance(error, MemoryError):
        return EngineFailure("this row alone needs more memory than there is")
    return EngineFailure(f"the engine failed on this row: {type(error).__name__}")


def _outcome(reward: float) -> Outcome:
    if np.isfinite(reward):
        return reward
    return NonFiniteReward(f"the model gave {reward}; its weights or this input are broken")
