"""Five times what the service can do, then back to normal.

    python -m loadtests.overload BUNDLE [--seconds 60] [--factor 5]

1. capacity: clients that ask without pause; 2. normal: half of it, at even intervals; 3. overload:
FACTOR times the capacity at even intervals, whatever comes back, with a deadline of 2 s; 4. normal
again; 5. a backlog with default deadlines, all at once. Fails where a request gets anything but its
right reward or a 503 with Retry-After, where latency is not normal 5 s after the overload, and
where the backlog drains at less than 0.9 of the capacity. Load and service share the machine.
"""

import argparse
import asyncio
import itertools
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import numpy as np

from loadtests.asking import Ask, asks, outcome
from loadtests.run import expected
from training.demo.walk import serving

CLIENTS = 16
DEADLINE_MS = 2000
RECOVERY_S = 5.0
BACKLOG_S = 20.0
"seconds of work at full capacity"
DIFFERENT = 2000
"requests that have no group in common: more than are ever in flight"
NORMAL = 2.0
"latency is normal where its median is at most this many times the one before: a shared machine"


@dataclass(slots=True)
class Phase:
    """What became of the requests of one phase."""

    name: str
    answers: list[tuple[float, float, str]] = field(default_factory=list)
    "(when it was asked, seconds until the answer, outcome), from the phase's start"
    seconds: float = 0.0

    def outcomes(self) -> Counter:
        return Counter(outcome for _, _, outcome in self.answers)

    def latencies(self, after_s: float = 0.0) -> np.ndarray:
        """Seconds of the right answers to what was asked after that."""
        return np.array([s for at, s, got in self.answers if got == "right" and at >= after_s])

    def rate(self) -> float:
        return self.outcomes()["right"] / self.seconds

    def __str__(self) -> str:
        latencies = self.latencies()
        p50, p99 = np.percentile(latencies, [50, 99]) * 1e3 if len(latencies) else (0, 0)
        return (
            f"{self.name:14} {self.seconds:6.1f} s  {self.rate():7.1f} right/s  "
            f"p50 {p50:7.0f} ms  p99 {p99:7.0f} ms  {dict(self.outcomes())}"
        )


class Load:
    def __init__(self, session: aiohttp.ClientSession, url: str, requests: Sequence[Ask]) -> None:
        self._session = session
        self._url = url
        self._requests: Iterator[Ask] = itertools.cycle(requests)

    async def closed(self, name: str, seconds: float, clients: int) -> Phase:
        """Clients that ask again as soon as they are answered."""
        phase, started = Phase(name), time.perf_counter()

        async def client() -> None:
            while time.perf_counter() - started < seconds:
                await self._ask(phase, started)

        await asyncio.gather(*(client() for _ in range(clients)))
        phase.seconds = time.perf_counter() - started
        return phase

    async def open(self, name: str, seconds: float, rate: float, deadline_ms: int | None) -> Phase:
        """`rate` requests per second at even intervals, answered or not."""
        phase, started = Phase(name), time.perf_counter()
        tasks = []
        for i in range(int(seconds * rate)):
            await asyncio.sleep(max(0.0, started + i / rate - time.perf_counter()))
            tasks.append(asyncio.create_task(self._ask(phase, started, deadline_ms)))
        phase.seconds = time.perf_counter() - started
        await asyncio.gather(*tasks)
        return phase

    async def at_once(self, name: str, requests: int) -> Phase:
        phase, started = Phase(name), time.perf_counter()
        await asyncio.gather(*(self._ask(phase, started) for _ in range(requests)))
        phase.seconds = time.perf_counter() - started
        return phase

    async def _ask(self, phase: Phase, started: float, deadline_ms: int | None = None) -> None:
        asked = time.perf_counter()
        got = await outcome(self._session, self._url, next(self._requests), deadline_ms)
        phase.answers.append((asked - started, time.perf_counter() - asked, got))


async def run(url: str, requests: Sequence[Ask], seconds: float, factor: float) -> list[str]:
    """What went wrong; empty: nothing."""
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        load = Load(session, url, requests)
        await load.closed("warm-up", 5, CLIENTS)
        capacity = await load.closed("capacity", 20, CLIENTS)
        rate = capacity.rate()
        normal = await load.open("normal", 10, rate / 2, None)
        overload = await load.open("overload", seconds, rate * factor, DEADLINE_MS)
        after = await load.open("normal again", 15, rate / 2, None)
        backlog = await load.at_once("backlog", int(rate * BACKLOG_S))
    for phase in (capacity, normal, overload, after, backlog):
        print(phase)
    return _judge(capacity, normal, overload, after, backlog)


def _judge(
    capacity: Phase, normal: Phase, overload: Phase, after: Phase, backlog: Phase
) -> list[str]:
    wrong = [
        f"{phase.name}: {dict(phase.outcomes())}"
        for phase in (capacity, normal, after, backlog)
        if set(phase.outcomes()) != {"right"}
    ]
    if set(overload.outcomes()) - {"right", "503"}:
        wrong.append(f"overload: {dict(overload.outcomes())}")
    before, recovered = (np.median(p.latencies(s)) for p, s in ((normal, 0), (after, RECOVERY_S)))
    print(f"\nmedian latency {before * 1e3:.0f} ms before, {recovered * 1e3:.0f} ms afterwards")
    print(f"the overload's right answers: {overload.rate() / capacity.rate():.2f} of the capacity")
    print(f"the backlog drained at {backlog.rate() / capacity.rate():.2f} of the capacity")
    if recovered > NORMAL * before:
        wrong.append(f"latency {RECOVERY_S:.0f} s after the overload is not normal")
    if backlog.rate() < 0.9 * capacity.rate():
        wrong.append("the backlog drained at less than 0.9 of the capacity")
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--factor", type=float, default=5)
    parser.add_argument("--groups", type=int, default=6, help="groups in one request")
    arguments = parser.parse_args()
    groups = expected(arguments.bundle, DIFFERENT * arguments.groups)
    requests = asks(groups, arguments.groups, DIFFERENT, seed=3)
    pairs = np.mean([len(ask.rewards) for ask in requests])
    print(f"{pairs:.1f} pairs per request")
    with serving(arguments.bundle) as service:
        wrong = asyncio.run(run(service.url, requests, arguments.seconds, arguments.factor))
    print("\n".join(["", *wrong]) if wrong else "\nnothing wrong")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
