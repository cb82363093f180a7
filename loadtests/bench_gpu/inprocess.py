"""The engine without a server: the scheduler that serves, asked in a closed loop."""

import asyncio
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from service import bundle as bundles
from service import metrics
from service.config import ServiceConfig
from service.engine import Engine
from service.engines import open_engine
from service.metrics import Recorder
from service.scorer import Scorer

Rows = list[list[int]]


@dataclass(slots=True)
class Timed:
    """An engine that adds up the time in which a run of it is under way, prepared or computed."""

    engine: Engine
    seconds: float = 0.0
    runs: int = 0
    _under_way: int = 0
    _since: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def run(self, rows: Sequence[Sequence[int]], prefix_tokens: int = 0) -> np.ndarray:
        self._step(1)
        try:
            return self.engine.run(rows, prefix_tokens)
        finally:
            self._step(-1)
            self.runs += 1

    def _step(self, change: int) -> None:
        with self._lock:
            now = time.perf_counter()
            if self._under_way:
                self.seconds += now - self._since
            self._under_way, self._since = self._under_way + change, now


@dataclass(frozen=True, slots=True)
class Measured:
    seconds: float
    latencies_ms: list[float]
    "of every request"
    counted: dict[str, float] = field(default_factory=dict)
    "shares, by the service's own counters and clocks"


class InProcess:
    """A variant of a bundle on a device, warm, its golden scores reproduced."""

    def __init__(self, config: ServiceConfig) -> None:
        started = time.perf_counter()
        bundle = bundles.load(config.bundle)
        engine, limits = open_engine(bundle, config)
        self.engine = Timed(engine)
        self._recorder = Recorder()
        self.scorer = Scorer(bundle, self.engine, limits, config, self._recorder)
        self.golden_distance = self.scorer.verify()
        self.start_s = time.perf_counter() - started

    def measure(self, requests: Sequence[Rows], in_flight: int) -> Measured:
        """All requests, so many of them waiting for their rewards at a time."""
        before = dict(self._recorder.added)
        self.engine.seconds, self.engine.runs = 0.0, 0
        latencies: list[float] = []
        started = time.perf_counter()
        asyncio.run(self._closed_loop(requests, in_flight, latencies))
        seconds = time.perf_counter() - started
        grown = {
            name: self._recorder.added.get((name, ()), 0) - before.get((name, ()), 0)
            for name in (metrics.TOKENS, metrics.SHARED, metrics.PADDING)
        }
        gap = 1 - self.engine.seconds / seconds
        counted = _shares(grown) | {"runs": self.engine.runs, "loop_gap": gap}
        return Measured(seconds, latencies, counted)

    async def _closed_loop(
        self, requests: Sequence[Rows], in_flight: int, latencies: list[float]
    ) -> None:
        line = iter(requests)

        async def ask() -> None:
            for rows in line:
                sent = time.perf_counter()
                await self.scorer.scheduler.score(rows)
                latencies.append((time.perf_counter() - sent) * 1e3)

        await asyncio.gather(*(ask() for _ in range(in_flight)))

    def close(self) -> None:
        self.scorer.close()


def _shares(grown: dict[Any, float]) -> dict[str, float]:
    tokens, saved, padding = (
        grown[name] for name in (metrics.TOKENS, metrics.SHARED, metrics.PADDING)
    )
    return {
        "padding_share": padding / (tokens - saved + padding) if tokens else 0.0,
        "prefix_saving": saved / tokens if tokens else 0.0,
    }
