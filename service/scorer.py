"""Pairs in, normalised rewards out: text + scheduler + engine + normalisation. No Ray in here."""

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Self

import numpy as np

from service import bundle as bundles
from service import golden, metrics
from service.bundle import Bundle
from service.config import ServiceConfig
from service.encoding import Encoding
from service.engine import Engine
from service.engines import open_engine
from service.errors import DeadlineExceeded, Draining, Overloaded, RewardError
from service.metrics import Recorder
from service.pairs import Asked
from service.planner import Limits
from service.scheduler import Scheduler
from service.score_cache import ScoreCache
from service.text import Encoded, Truncation

HOPELESS = 0.8
"share of a deadline that a backlog may take at most: the estimate is of recent batches, and rough"


@dataclass(slots=True)
class Result:
    reward: float
    raw_reward: float
    tokens: int
    truncated: bool
    tokens_cut: int


@dataclass(slots=True)
class Timing:
    tokenize_ms: float
    queue_ms: float
    engine_ms: float


@dataclass(slots=True)
class Scores:
    results: list[Result]
    timing: Timing


class Scorer:
    """One bundle on one engine. Used from one event loop; `score` is safe to call concurrently."""

    def __init__(
        self,
        bundle: Bundle,
        engine: Engine,
        limits: Limits,
        config: ServiceConfig,
        recorder: Recorder | None = None,
    ) -> None:
        self.recorder = recorder or Recorder(listening=False)
        self.bundle = bundle
        self.variant = bundle.manifest.variant(config.variant)
        self.engine = engine
        self.encoding = Encoding(bundle, config.max_encoding_characters)
        self.scheduler = Scheduler(
            engine,
            limits,
            config.max_queued_tokens,
            self.recorder,
            ScoreCache(bundle.manifest.id + config.variant, config.score_cache_rows),
        )
        self.draining = False
        self._in_flight = 0

    @classmethod
    def open(cls, config: ServiceConfig, recorder: Recorder | None = None) -> Self:
        """Verify the bundle, start the engine, replay the golden scores. Raises BundleError."""
        bundle = bundles.load(config.bundle)
        engine, limits = open_engine(bundle, config)
        scorer = cls(bundle, engine, limits, config, recorder)
        scorer.verify()
        return scorer

    def verify(self) -> float:
        """Replay golden.json: ids exactly, rewards within the variant's tolerance.

        Returns the largest distance found. Runs in the calling thread, before serving.
        """
        return golden.replay(self.bundle, self.variant, self.encoding.encoder, self.engine)

    def reproduces_bits(self) -> bool:
        """Whether the golden rows get the same bits whatever they are computed with."""
        return golden.reproduces_bits([row.ids for row in self.bundle.golden()], self.engine)

    @property
    def bit_invariant(self) -> bool:
        """What the variant promises, on the device where it does."""
        return self.variant.bit_invariant and self.engine.device == "cpu"

    async def score(
        self,
        pairs: Sequence[Asked],
        truncation: Truncation = "prompt",
        deadline_s: float | None = None,
        patient: bool = False,
        name: str = "pairs",
    ) -> Scores:
        """Rewards in the order of the pairs. Nothing is queued unless every pair is valid.

        deadline_s counts from now; None: no deadline. A patient caller waits until its deadline
        where others are refused because too much is waiting. Raises InvalidRequest, TooLong,
        Overloaded, DeadlineExceeded, Draining, EngineFailure; `field` names the pair, `name[i]`.
        """
        if self.draining:
            raise Draining("this replica is shutting down; send the request again")
        self._in_flight += 1
        try:
            with ExitStack() as room:
                return await self._score(pairs, truncation, deadline_s, patient, room, name)
        finally:
            self._in_flight -= 1

    async def _score(
        self,
        pairs: Sequence[Asked],
        truncation: Truncation,
        deadline_s: float | None,
        patient: bool,
        room: ExitStack,
        name: str,
    ) -> Scores:
        started = time.perf_counter()
        try:
            encoded = await self.encoding.within(pairs, truncation, deadline_s, patient, room, name)
        except (DeadlineExceeded, asyncio.CancelledError) as error:
            reason = "deadline" if isinstance(error, DeadlineExceeded) else "caller_left"
            self.recorder.add(metrics.DROPPED, len(pairs), reason)
            raise
        tokenize_s = time.perf_counter() - started
        self.recorder.observe(metrics.TOKENIZE, tokenize_s)
        left_s = None if deadline_s is None else max(0.0, deadline_s - tokenize_s)
        try:
            rows = [row.packed for row in encoded]
            scored = await self.scheduler.score(rows, left_s, patient, entered=room.close)
        except RewardError as error:
            error.field = error.field and error.field.replace("rows[", f"{name}[")
            raise
        self.recorder.add(metrics.ROWS, len(pairs), self.bundle.manifest.id)
        self.recorder.rewards(self.bundle.manifest.id, scored.rewards)
        timing = Timing(tokenize_s * 1e3, scored.queue_ms, scored.engine_ms)
        return Scores(self._results(encoded, scored.rewards), timing)

    def refuse_hopeless(self, deadline_s: float) -> None:
        """Raise Overloaded where more is waiting than can be done in that time.

        For callers with a deadline of their own, before any work goes into their request; who has
        none waits. Five times the capacity without this: answers 39 s late, and 0.11 of the
        capacity left for right ones; with it 2 s and 0.17 (loadtests/overload.py, where load and
        service share two cores, 21 Nov 2026).
        """
        wait_s = self.scheduler.backlog_s(self.encoding.waiting_tokens)
        if wait_s > HOPELESS * deadline_s:
            raise Overloaded(
                f"about {wait_s:.1f} s of work are waiting and the deadline is {deadline_s:g} s; "
                "retry later",
                retry_after_s=max(1, round(wait_s)),
            )

    def _results(self, encoded: Sequence[Encoded], rewards: Sequence[float]) -> list[Result]:
        normalization = self.bundle.manifest.normalization
        values = np.array(rewards, np.float32)
        raw = values if normalization is None else normalization.raw(values)
        return [
            Result(reward, raw_reward, len(row.packed), row.truncated, row.tokens_cut)
            for row, reward, raw_reward in zip(encoded, rewards, raw.tolist(), strict=True)
        ]

    async def drain(self) -> None:
        """Refuse what is new, return when everything accepted is answered."""
        self.draining = True
        while self._in_flight:
            await asyncio.sleep(0.01)

    def close(self) -> None:
        self.scheduler.close()
        self.encoding.close()


def score_offline(scorer: Scorer, pairs: Sequence[Asked], chunk: int = 512) -> Iterator[Result]:
    """Score without a server, chunk by chunk, through the very path that serves."""

    async def score(part: Sequence[Asked]) -> Scores:
        return await scorer.score(part)

    for start in range(0, len(pairs), chunk):
        yield from asyncio.run(score(pairs[start : start + chunk])).results
