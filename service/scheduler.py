"""Admission and the work-conserving loop. Knows rows; knows nothing of text.

A batch is formed when the engine becomes free, never on a timer. Requests take turns: each batch
begins with the oldest row of the request whose turn it is, and is filled with rows of similar
length from all of them, so that a request of thousands of rows cannot starve a single pair.

An engine that asks for it is handed the next batch while one runs, to run it beside the first
(`at_once`), or so that a GPU does not idle while Python plans (`ahead`): as soon as a whole batch
is waiting, since what is handed over can no longer be filled up, and below that the device is not
what is short. Rows that wait for a running batch's prefix are not in it and count nevertheless.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from copy import copy
from dataclasses import dataclass

from service import metrics
from service.batch import Batch, next_batch, waits
from service.engine import Engine
from service.errors import DeadlineExceeded, EngineFailure, RewardError
from service.isolation import run_isolated
from service.line import Line, Outcome, Place, Request
from service.metrics import Recorder
from service.pace import Pace
from service.planner import Limits
from service.room import Room
from service.score_cache import ScoreCache
from service.shortage import Shortage
from service.threads import started

log = logging.getLogger("reward.scheduler")


@dataclass(slots=True)
class Scored:
    """Rewards of a request, in its order, and where its time went."""

    rewards: list[float]  # (N,)
    queue_ms: float
    engine_ms: float


@dataclass(slots=True, eq=False)
class _Handed:
    """A batch that a worker thread has, running or next."""

    batch: Batch
    done: Future[tuple[list[Outcome], int]]
    since: float
    "since when it is its turn"


def _refusal(outcome: RewardError, row: int) -> RewardError:
    """A copy: other callers may have sent the same row."""
    refusal = copy(outcome)
    refusal.field = f"rows[{row}]"
    return refusal


class Scheduler:
    """One engine, a worker thread for each batch that it is handed, one event loop."""

    def __init__(
        self,
        engine: Engine,
        budget: Limits,
        max_queued_tokens: int,
        recorder: Recorder | None = None,
        cache: ScoreCache | None = None,
    ) -> None:
        self._engine = engine
        self._shortage = Shortage(budget)
        self._cache = cache or ScoreCache("", 0)
        self._recorder = recorder or Recorder(listening=False)
        self._tokens = Room(max_queued_tokens, "tokens", "max_queued_tokens")
        "waiting or in the engine"
        self._pace = Pace()
        self._line = Line()
        self._handed: list[_Handed] = []
        "the oldest first; the engine runs the first `at_once` of them"
        self._running: dict[bytes, list[Place]] = {}
        "rows that were handed over, and everybody they will answer"
        self._woken: asyncio.Future[None] | None = None
        "done when a batch is, or when a whole one may be waiting"
        self._loop_task: asyncio.Task[None] | None = None
        self._workers = started(engine.at_once + engine.ahead, "engine")
        self._recorder.watch(metrics.QUEUE_ROWS, lambda: self._line.rows)
        self._recorder.watch(metrics.QUEUE_TOKENS, lambda: self._tokens.used)

    async def score(
        self,
        rows: Sequence[Sequence[int]],
        deadline_s: float | None = None,
        patient: bool = False,
        entered: Callable[[], None] = lambda: None,
    ) -> Scored:
        """Rewards of all rows. Raises Overloaded before anything is queued, and
        DeadlineExceeded when they are not all there within `deadline_s` (None: no deadline).
        A patient caller waits for room until its deadline instead of being refused; `entered` is
        called when it has found it.

        A row that makes the engine fail raises EngineFailure with `field` set to its index; other
        requests in its batch are not touched. Cancelling drops the rows that have not run.
        """
        if not rows:
            return Scored([], 0.0, 0.0)
        loop, tokens = asyncio.get_running_loop(), sum(map(len, rows))
        due = None if deadline_s is None else loop.time() + deadline_s
        try:
            await self._tokens.enter(tokens, due, patient)
        except (DeadlineExceeded, asyncio.CancelledError) as error:
            reason = "deadline" if isinstance(error, DeadlineExceeded) else "caller_left"
            self._recorder.add(metrics.DROPPED, len(rows), reason)
            raise
        entered()
        if due is not None and loop.time() >= due:
            self._tokens.leave(tokens)
            self._recorder.add(metrics.DROPPED, len(rows), "deadline")
            raise DeadlineExceeded(f"none of {len(rows)} pairs was scored within their deadline")
        request = self._admit(rows)
        timer = None
        if due is not None:
            timer = loop.call_at(due, self._late, request)
        try:
            await request.done
        except asyncio.CancelledError:
            self._drop(request, "caller_left")
            raise
        finally:
            if timer:
                timer.cancel()
        if request.missing:
            raise DeadlineExceeded(
                f"{request.missing} of {len(rows)} pairs were not scored within "
                "their deadline; retry, or send less at a time"
            )
        rewards = []
        for i, outcome in enumerate(request.outcomes):
            if isinstance(outcome, RewardError):
                raise _refusal(outcome, i)
            assert outcome is not None
            rewards.append(outcome)
        waited = request.started - request.submitted if request.started else 0.0
        return Scored(rewards, queue_ms=waited * 1e3, engine_ms=request.engine_s * 1e3)

    def _late(self, request: Request) -> None:
        """Called at its deadline; `score` sees by what is missing why it need not wait longer."""
        if not request.done.done():
            self._drop(request, "deadline")
            request.done.set_result(None)

    def _drop(self, request: Request, reason: str) -> None:
        """Take back what has not run; rows that are in the engine end by themselves."""
        self._recorder.add(metrics.DROPPED, len(request.waiting), reason)
        self._tokens.leave(sum(len(request.rows[i]) for i in request.waiting))
        self._line.leave(request)

    @property
    def running_s(self) -> float:
        """How long the oldest batch in the engine has been there; 0 when it is free."""
        return time.perf_counter() - self._handed[0].since if self._handed else 0.0

    def backlog_s(self, more_tokens: float = 0.0) -> float:
        """Seconds that what is queued, and more of it, will take; 0 while that is not known."""
        return self._pace.seconds(self._tokens.used + more_tokens)

    def close(self) -> None:
        self._workers.shutdown(wait=True, cancel_futures=True)

    def _admit(self, rows: Sequence[Sequence[int]]) -> Request:
        loop = asyncio.get_running_loop()
        request = Request(rows, loop.create_future(), time.perf_counter())
        self._reuse(request)
        if request.waiting:
            could_take = self._may_take()
            self._line.join(request)
            if self._loop_task is None:
                self._loop_task = loop.create_task(self._work())
            elif self._takes_more and self._may_take():
                running = self._running_batches
                if not could_take or not all(waits(request, i, running) for i in request.waiting):
                    self._wake()
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
        self._pace.begin()
        loop = asyncio.get_running_loop()
        try:
            while self._hand_over(loop):
                self._woken = loop.create_future()
                await self._woken
                for handed in [each for each in self._handed if each.done.done()]:
                    self._finish(handed, *handed.done.result())
        except Exception as error:  # ours, or an engine that breaks its protocol: nobody may hang
            log.exception("the scheduler failed")
            self._abandon(EngineFailure(f"scheduler: {type(error).__name__}"))
        finally:
            for handed in self._handed:
                handed.done.cancel()  # what has not begun never does
            self._handed.clear()
            self._forget(self._in_engine())
            self._loop_task = None

    def _wake(self) -> None:
        if self._woken and not self._woken.done():
            self._woken.set_result(None)

    def _hand_over(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Give the workers what they may have; whether they have anything."""

        def tell(_: Future[tuple[list[Outcome], int]]) -> None:  # in whatever thread
            with suppress(RuntimeError):  # the loop is closed: nobody waits
                loop.call_soon_threadsafe(self._wake)

        while self._takes_more and self._may_take():
            budget = self._shortage.budget
            batch = next_batch(self._line, self._engine, budget, self._running_batches)
            if batch is None:
                break
            self._running |= zip(batch.packed, batch.places, strict=True)
            done = self._workers.submit(
                run_isolated, self._engine, batch.rows, batch.plan.prefix_tokens
            )
            done.add_done_callback(tell)
            self._handed.append(_Handed(batch, done, time.perf_counter()))
        return bool(self._handed)

    @property
    def _running_batches(self) -> list[Batch]:
        return [handed.batch for handed in self._handed]

    @property
    def _takes_more(self) -> bool:
        """Whether the engine has not all the batches it asks for."""
        return len(self._handed) < self._engine.at_once + self._engine.ahead

    def _may_take(self) -> bool:
        """Whether a batch may be formed now: the engine is free, or a whole one waits."""
        return not self._handed or self._line.tokens >= self._shortage.budget.full_tokens

    def _abandon(self, error: EngineFailure) -> None:
        """Answer everything with an error and begin anew with an empty line."""
        waiting = [(request, i) for request in self._line.requests for i in request.waiting]
        unanswered = waiting + self._in_engine()
        for request in {request for request, _ in unanswered}:
            if not request.done.done():
                request.done.set_exception(error)
        self._line.clear()
        self._forget(unanswered)

    def _in_engine(self) -> list[Place]:
        """What a run that was handed over has not answered yet."""
        places = (place for places in self._running.values() for place in places)
        return [(request, i) for request, i in places if request.outcomes[i] is None]

    def _forget(self, places: Sequence[Place]) -> None:
        """These rows are nobody's any more, nor is what the engine still has."""
        self._running = {}
        self._tokens.leave(sum(len(request.rows[i]) for request, i in places))

    def _finish(self, handed: _Handed, outcomes: Sequence[Outcome], shortages: int) -> None:
        """Answer whoever waits for a batch that is done."""
        batch, now = handed.batch, time.perf_counter()
        engine_s = now - handed.since
        self._shortage.note(shortages)
        if shortages:
            self._recorder.add(metrics.SHORTAGES, shortages)
        places = [place for places in batch.places for place in places]
        self._pace.note(sum(len(request.rows[i]) for request, i in places), self._line.rows > 0)
        batch.record(self._recorder, engine_s)
        for request in {request for request, _ in places}:
            request.engine_s += engine_s
            if not request.started:
                request.started = max(handed.since, request.submitted)
                wait = request.started - request.submitted
                self._recorder.observe(metrics.QUEUE_WAIT, wait)
        for packed, answered, outcome in zip(batch.packed, batch.places, outcomes, strict=True):
            if isinstance(outcome, float):
                self._cache.put(packed, outcome)
            for request, i in answered:
                request.answer(i, outcome)
                self._tokens.leave(len(request.rows[i]))
        # last: whatever fails before it, _abandon knows whom to tell
        had_its_turn = self._handed.index(handed) < self._engine.at_once
        self._handed.remove(handed)
        for packed in batch.packed:
            del self._running[packed]
        if had_its_turn and len(self._handed) >= self._engine.at_once:
            self._handed[self._engine.at_once - 1].since = now  # now that one has
