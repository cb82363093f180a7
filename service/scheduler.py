"""The waiting line: admission, fairness, a work-conserving loop. Knows rows; knows nothing of text.

A batch is formed when the engine becomes free, never on a timer. Requests take turns: each batch
begins with the oldest row of the request whose turn it is, and is filled with rows of similar
length from all of them, so that a request of thousands of rows cannot starve a single pair.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

from service import metrics
from service.engine import Engine
from service.errors import (
    DeadlineExceeded,
    EngineFailure,
    NonFiniteReward,
    RewardError,
)
from service.metrics import Recorder
from service.pace import Pace
from service.planner import Budget, padded_tokens, plan
from service.prefix import pack
from service.room import Room

log = logging.getLogger("reward.scheduler")

Outcome = float | RewardError

WINDOW_ROWS, WINDOW_ROWS_PER_REQUEST = 1024, 256
"rows that one batch is planned over: enough for a good fit, few enough for milliseconds"


@dataclass(slots=True)
class Scored:
    """Rewards of a request, in its order, and where its time went."""

    rewards: list[float]  # (N,)
    queue_ms: float
    engine_ms: float


@dataclass(slots=True, eq=False)
class _Request:
    rows: Sequence[Sequence[int]]
    packed: Sequence[bytes]
    done: asyncio.Future[None]
    submitted: float
    waiting: dict[int, None]
    "indices of the rows that have not run, oldest first"
    outcomes: list[Outcome | None]
    missing: int
    started: float = 0.0
    engine_s: float = 0.0


@dataclass(slots=True)
class _Batch:
    places: list[tuple[_Request, int]]
    prefix_tokens: int
    was_cached: bool
    rows: list[Sequence[int]] = field(init=False)

    def __post_init__(self) -> None:
        self.rows = [request.rows[i] for request, i in self.places]


class Scheduler:
    """One engine, one worker thread, one event loop."""

    def __init__(
        self,
        engine: Engine,
        budget: Budget,
        max_queued_tokens: int,
        recorder: Recorder | None = None,
    ) -> None:
        self._engine = engine
        self._budget = budget
        self._recorder = recorder or Recorder(listening=False)
        self._tokens = Room(max_queued_tokens, "tokens", "max_queued_tokens")
        "waiting or in the engine"
        self._queued_rows = 0  # waiting
        self._pace = Pace()
        self._turns: deque[_Request] = deque()
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

        A row that makes the engine fail raises EngineFailure with `row` set to its index; other
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
                outcome.field = f"rows[{i}]"
                raise outcome
            assert outcome is not None
            rewards.append(outcome)
        return Scored(
            rewards,
            queue_ms=(request.started - request.submitted) * 1e3,
            engine_ms=request.engine_s * 1e3,
        )

    def _drop(self, request: _Request, reason: str) -> None:
        """Take back what has not run; rows that are in the engine end by themselves."""
        self._recorder.add(metrics.DROPPED, len(request.waiting), reason)
        self._queued_rows -= len(request.waiting)
        tokens = sum(len(request.rows[i]) for i in request.waiting)
        request.waiting.clear()
        self._tokens.leave(tokens)
        self._gauge()

    def _gauge(self) -> None:
        self._recorder.set(metrics.QUEUE_ROWS, self._queued_rows)
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

    def _admit(self, rows: Sequence[Sequence[int]]) -> _Request:
        loop = asyncio.get_running_loop()
        request = _Request(
            rows=rows,
            packed=[pack(row) for row in rows],
            done=loop.create_future(),
            submitted=time.perf_counter(),
            waiting=dict.fromkeys(range(len(rows))),
            outcomes=[None] * len(rows),
            missing=len(rows),
        )
        self._queued_rows += len(rows)
        self._turns.append(request)
        self._gauge()
        if self._loop_task is None:
            self._loop_task = loop.create_task(self._work())
        return request

    async def _work(self) -> None:
        """Run batches while anything waits."""
        loop = asyncio.get_running_loop()
        batch = None
        self._pace.begin()
        try:
            while batch := self._next_batch():
                self._running_since = started = time.perf_counter()
                outcomes = await loop.run_in_executor(
                    self._worker, self._run, batch.rows, batch.prefix_tokens
                )
                self._running_since = None
                self._finish(batch, outcomes, started, time.perf_counter() - started)
        except Exception as error:  # ours, or an engine that breaks its protocol: nobody may hang
            log.exception("the scheduler failed")
            self._abandon(batch, EngineFailure(f"scheduler: {type(error).__name__}"))
        finally:
            self._running_since = None
            self._loop_task = None

    def _abandon(self, batch: _Batch | None, error: EngineFailure) -> None:
        """Answer everything with an error and begin anew with an empty line."""
        places = batch.places if batch else []
        for request in {*self._turns, *(request for request, _ in places)}:
            if not request.done.done():
                request.done.set_exception(error)
            request.waiting.clear()
        self._turns.clear()
        self._queued_rows = 0
        self._tokens.clear()
        self._gauge()

    def _next_batch(self) -> _Batch | None:
        """The oldest row of the request whose turn it is, and rows that fit to it."""
        while self._turns and not self._turns[0].waiting:
            self._turns.popleft()
        if not self._turns:
            return None
        places = list(islice(self._window(), WINDOW_ROWS))
        packed = [request.packed[i] for request, i in places]
        request, seed = places[0]
        cached_tokens = self._engine.cached_tokens(request.rows[seed])
        planned = plan(packed, 0, self._budget, cached_tokens)
        batch = _Batch(
            [places[i] for i in planned.rows],
            planned.prefix_tokens,
            was_cached=0 < planned.prefix_tokens <= cached_tokens,
        )
        self._turns.rotate(-1)
        self._queued_rows -= len(batch.places)
        self._gauge()
        for request, i in batch.places:
            del request.waiting[i]
        return batch

    def _window(self) -> Iterator[tuple[_Request, int]]:
        """Waiting rows to plan over: some of every request, so that planning takes bounded time."""
        for request in self._turns:
            for i in islice(request.waiting, WINDOW_ROWS_PER_REQUEST):
                yield request, i

    def _finish(
        self, batch: _Batch, outcomes: Sequence[Outcome], started: float, engine_s: float
    ) -> None:
        lengths = [*map(len, batch.rows)]
        self._tokens.leave(sum(lengths))
        self._pace.note(sum(lengths), full=self._queued_rows > 0)
        prefix = batch.prefix_tokens
        computed = padded_tokens(lengths, prefix)
        real = prefix + sum(lengths) - prefix * len(lengths)
        self._recorder.add(metrics.TOKENS, sum(lengths))
        self._recorder.add(metrics.SHARED, prefix * (len(lengths) - (not batch.was_cached)))
        self._recorder.add(metrics.PADDING, computed - real)
        self._recorder.observe(metrics.BATCH_ROWS, len(batch.rows))
        self._recorder.observe(metrics.ENGINE, engine_s)
        self._gauge()
        for request in {request for request, _ in batch.places}:
            request.engine_s += engine_s
            if not request.started:
                request.started = started
                self._recorder.observe(metrics.QUEUE_WAIT, started - request.submitted)
        for (request, i), outcome in zip(batch.places, outcomes, strict=True):
            request.outcomes[i] = outcome
            request.missing -= 1
            if not request.missing and not request.done.done():
                request.done.set_result(None)

    def _run(self, rows: Sequence[Sequence[int]], prefix_tokens: int) -> list[Outcome]:
        """In the worker thread. A batch that fails is halved until only the guilty row fails."""
        try:
            rewards = self._engine.run(rows, prefix_tokens)
            assert len(rewards) == len(rows), "an engine gives one reward per row"
        except Exception as error:  # whatever the runtime raises: isolate the row, keep serving
            if prefix_tokens:  # its states may be what failed: no row is blamed for that
                return self._run(rows, 0)
            if len(rows) == 1:
                log.exception("the engine failed on a row of %d tokens", len(rows[0]))
                return [EngineFailure(f"the engine failed on this row: {type(error).__name__}")]
            half = len(rows) // 2
            return self._run(rows[:half], 0) + self._run(rows[half:], 0)
        return [
            float(reward)
            if np.isfinite(reward)
            else NonFiniteReward(f"the model gave {reward}; its weights or this input are broken")
            for reward in rewards
        ]
