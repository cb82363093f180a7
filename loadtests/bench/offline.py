"""The offline limit, in a process of its own: the service's scorer, all rows known, no server.

Texts are encoded before the clock starts, then every request of a workload is queued at once, so
the planner sees as much as it ever can. Its rewards are what a server's are compared with.
"""

import asyncio
import multiprocessing
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from loadtests.bench.processes import busy_seconds
from loadtests.bench.roofline import Gemm, Work, distinct
from loadtests.bench.workloads import Request
from service.config import ServiceConfig
from service.machine import usable_cpus
from service.scorer import Scorer


@dataclass(frozen=True, slots=True)
class Size:
    """What requests hold: tokens of all rows, without padding, and the work they need at least."""

    tokens: int
    work: Work


@dataclass(frozen=True, slots=True)
class Run:
    seconds: float
    rewards: tuple[np.ndarray, ...]
    "(pairs of the request,) float32, for every request"
    other_cpu: float = 0.0
    "cores that the rest of the machine took"


class _Bench:
    """Lives in the process that computes."""

    def __init__(self, bundle: Path) -> None:
        self._scorer = Scorer.open(ServiceConfig(bundle=bundle))
        self._gemm = Gemm(usable_cpus())

    def rates(self) -> dict[str, float]:
        return self._gemm.rates()

    def fingerprint(self) -> str:
        return self._scorer.engine.fingerprint

    def size(self, requests: Sequence[Request]) -> Size:
        rows = [row for request in self._encode(requests) for row in request]
        return Size(sum(map(len, rows)), distinct(rows))

    def run(self, requests: Sequence[Request]) -> Run:
        encoded = self._encode(requests)
        started, busy, own = time.perf_counter(), busy_seconds(), time.process_time()
        rewards = self._score(encoded)
        seconds = time.perf_counter() - started
        others = busy_seconds() - busy - (time.process_time() - own)
        return Run(seconds, rewards, others / seconds)

    def alone(self, requests: Sequence[Request]) -> list[tuple[float, np.ndarray]]:
        """Seconds and rewards of every row in an engine run of its own."""
        measured = []
        for row in (row for request in self._encode(requests) for row in request):
            started = time.perf_counter()
            reward = self._scorer.engine.run([row])
            measured.append((time.perf_counter() - started, np.asarray(reward, np.float32)))
        return measured

    def _encode(self, requests: Sequence[Request]) -> list[list[list[int]]]:
        return [[row.ids for row in self._scorer.encoding.encode(request)] for request in requests]

    def _score(self, encoded: Sequence[Sequence[Sequence[int]]]) -> tuple[np.ndarray, ...]:
        async def go() -> Any:
            return await asyncio.gather(*map(self._scorer.scheduler.score, encoded))

        return tuple(np.array(scored.rewards, np.float32) for scored in asyncio.run(go()))


class Offline:
    """Asks the process; its answers come back over a pipe."""

    def __init__(self, bundle: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, bundle), daemon=True)
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def _ask(self, name: str, *arguments: Any) -> Any:
        self._pipe.send((name, arguments))
        answer = self._pipe.recv()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def rates(self) -> dict[str, float]:
        return self._ask("rates")

    def fingerprint(self) -> str:
        return self._ask("fingerprint")

    def size(self, requests: Sequence[Request]) -> Size:
        return self._ask("size", requests)

    def run(self, requests: Sequence[Request]) -> Run:
        return self._ask("run", requests)

    def alone(self, requests: Sequence[Request]) -> list[tuple[float, np.ndarray]]:
        return self._ask("alone", requests)

    def close(self) -> None:
        self._pipe.send(None)
        self._process.join(timeout=20)


def _serve(pipe: Any, bundle: Path) -> None:
    bench = _Bench(bundle)
    while (asked := pipe.recv()) is not None:
        name, arguments = asked
        try:
            pipe.send(getattr(bench, name)(*arguments))
        except Exception as error:  # the parent raises it
            pipe.send(error)
    bench._scorer.close()
