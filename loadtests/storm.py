"""A storm of cancellations: half of the callers leave, the others must not notice.

    python -m loadtests.storm BUNDLE [--requests 2000] [--rounds 3]

The warm-up sends as many as a round and waits for all of them: the allocators keep the most that
was ever needed at once. Each round sends all requests at once and drops every second one at a
random moment. Then 500 more are asked. Fails on a wrong reward, an error, or anything left behind
in the replica: a task on its event loop, a thread, a queued row, memory that grows from round to
round.
"""

import argparse
import asyncio
import contextlib
import functools
import operator
import random
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import aiohttp
import psutil
from prometheus_client.parser import text_string_to_metric_families

from loadtests.asking import Ask, asks, outcome
from loadtests.run import expected
from training.demo.walk import Service, serving

COUNTING = {"RAY_SERVE_EVENT_LOOP_MONITORING_INTERVAL_S": "0.7"}
"how often Ray counts tasks; by default every 5 s, and its count is on the page for one of them"
SETTLE_S = 4.0
"that long at most until the page shows a count of afterwards"
LATER, AT_ONCE = 500, 32
LEAVING = 0.25
"share of the requests whose callers leave before the answer, at least: half of them try"
PER_CALLER = 0.1
"threads for each caller that left, from which on gRPC's pools hold something for them"
GROUPS_EACH = 4
PREFIX_CACHE_BYTES = 16 * 1024 * 1024
"""of the service: the warm-up fills it, so what grows after it is left over. At the default every
round adds prompts whose callers had left in the round before (601, 644, 668 MB after three rounds,
26 Nov 2026)"""
MEMORY_SLACK = 0.05
"share by which memory may grow after the first round: the allocators' own variation"
GRPC_POOLS = (
    *("grpc_global_tim", "timer_manager", "event_engine", "lifeguard"),
    *("default-executo", "resolver-execut", "grpcpp_sync_ser"),
)
"""Threads of gRPC's own, as the kernel names them. It starts one more whenever more of Ray's
timers, closures or calls are due at once than threads are idle, at any time and whoever asks ("The
number of timer threads is always increasing", its timer_manager.cc). Every other pool is whole
after the warm-up: ours from the start (service/threads.py), the tokenizer's with its first batch.
"""
COUNTS, READ_EVERY_S = 5, 1.6
"not every second, when Serve's own checks come: they shall not be in every count"


@dataclass(frozen=True, slots=True)
class Left:
    """What the replica holds when nobody asks."""

    tasks: int
    threads: Counter[str]
    "by the name that the kernel has; without one of its own, that of the thread that started it"
    connections: int
    queued_rows: int
    queued_tokens: int
    memory_mb: int


async def storm(service: Service, requests: Sequence[Ask], spread_s: float, seed: int) -> Counter:
    """Outcomes of the callers that stayed, and how many left while they waited."""
    rng = random.Random(seed)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:

        async def one(i: int, ask: Ask) -> str:
            asking = asyncio.create_task(outcome(session, service.url, ask))
            if i % 2:
                await asyncio.wait([asking], timeout=rng.uniform(0, spread_s))
                if not asking.done():
                    asking.cancel()
                    await asyncio.gather(asking, return_exceptions=True)
                    return "left"
            return await asking

        return Counter(await asyncio.gather(*(one(i, ask) for i, ask in enumerate(requests))))


def stormy(service: Service, requests: Sequence[Ask], spread_s: float, seed: int) -> Counter:
    """A storm in which enough left. The time they take to it is from a warm-up: where that was
    slowed down by something else, most are answered before, and it takes less."""
    got = asyncio.run(storm(service, requests, spread_s, seed))
    if set(got) - {"right", "left"} or got["left"] >= LEAVING * len(requests) or spread_s < 0.1:
        return got
    return stormy(service, requests, spread_s / 2, seed)


async def calm(service: Service, requests: Sequence[Ask], at_once: int) -> Counter:
    """The same without anybody leaving."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=at_once)) as session:
        return Counter(
            await asyncio.gather(*(outcome(session, service.url, ask) for ask in requests))
        )


def left(service: Service, replica: psutil.Process) -> Left:
    """With the least of some counts of tasks and threads: Serve's health checks and reports come
    and go on the same loop, and OpenTelemetry starts a thread for every export of Ray's metrics
    (CollectAndExportOnce, its periodic_exporting_metric_reader.cc); what is left over stays. A
    count of tasks that is not on the page is waited for."""
    states: list[Left] = []
    for _ in range(20):
        state = _left(service, replica)
        if state.tasks:
            states.append(state)
        if len(states) == COUNTS:
            return replace(
                state,
                tasks=min(each.tasks for each in states),
                threads=functools.reduce(operator.and_, (each.threads for each in states)),
            )
        time.sleep(READ_EVERY_S)
    raise AssertionError("Ray does not say how many tasks there are")


def _left(service: Service, replica: psutil.Process) -> Left:
    with urllib.request.urlopen(f"{service.url}/metrics") as page:
        text = page.read().decode()
    values: Counter = Counter()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            ours = family.name != "ray_serve_event_loop_tasks" or (
                sample.labels.get("component") == "replica"
            )
            values[family.name] += int(sample.value) if ours and sample.name == family.name else 0
    return Left(
        tasks=values["ray_serve_event_loop_tasks"],
        threads=_threads(replica),
        connections=sum(
            connection.status == psutil.CONN_ESTABLISHED and connection.laddr.port < 32000
            for connection in replica.net_connections("tcp")
        ),
        queued_rows=values["ray_reward_queue_rows"],
        queued_tokens=values["ray_reward_queue_tokens"],
        memory_mb=replica.memory_info().rss >> 20,
    )


def _threads(process: psutil.Process) -> Counter[str]:
    names: Counter[str] = Counter()
    for thread in Path(f"/proc/{process.pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            names[(thread / "comm").read_text().strip()] += 1
    return names


def replica_of(service: Service) -> psutil.Process:
    [replica] = [
        process
        for process in psutil.Process(service.process.pid).children(recursive=True)
        if "ServeReplica:default:reward" in "".join(process.cmdline())
    ]
    return replica


def run(bundle: Path, requests: int, rounds: int) -> list[str]:
    """What went wrong; empty: nothing."""
    groups = expected(bundle, GROUPS_EACH * requests)
    wrong: list[str] = []
    option = f"--set=prefix_cache_bytes={PREFIX_CACHE_BYTES}"
    with serving(bundle, option, environment=COUNTING) as service:
        replica = replica_of(service)
        started = time.perf_counter()
        warm = asyncio.run(calm(service, asks(groups, GROUPS_EACH, requests, 0), requests))
        spread_s = (time.perf_counter() - started) / 2
        print(f"warmed up: {dict(warm)}")
        time.sleep(SETTLE_S)
        states = [left(service, replica)]
        print(states[0])
        for number in range(1, rounds + 1):
            got = stormy(service, asks(groups, GROUPS_EACH, requests, number), spread_s, number)
            after = asyncio.run(calm(service, asks(groups, 2, LATER, -number), AT_ONCE))
            time.sleep(SETTLE_S)
            states.append(left(service, replica))
            print(f"round {number}: {dict(got)}, {LATER} more: {dict(after)}\n{states[-1]}")
            wrong += _judge(got, after, requests, number)
    return wrong + leftovers(states, requests)


def _judge(got: Counter, after: Counter, requests: int, number: int) -> list[str]:
    wrong = []
    if set(got) - {"right", "left"} or got["right"] < requests // 2:
        wrong.append(f"round {number}: {dict(got)}")
    if got["left"] < requests * LEAVING:
        wrong.append(f"round {number}: only {got['left']} left while they waited: no storm")
    if after != Counter(right=LATER):
        wrong.append(f"round {number}, afterwards: {dict(after)}")
    return wrong


def leftovers(states: Sequence[Left], requests: int) -> list[str]:
    """What there is more of in the last state than in the first; there were so many requests
    between one state and the next."""
    before, last = states[0], states[-1]
    wrong = [
        f"{name}: {getattr(before, name)} before, {getattr(last, name)} after"
        for name in ("tasks", "queued_rows", "queued_tokens")
        if getattr(last, name) > getattr(before, name)
    ]
    more = last.threads - before.threads
    of_grpc = sum(more.pop(name, 0) for name in GRPC_POOLS)
    if more:
        wrong.append(f"threads: {dict(more)} more")
    if of_grpc >= PER_CALLER * LEAVING * requests * (len(states) - 1):
        wrong.append(f"threads: {of_grpc} more of gRPC's")
    if last.memory_mb > states[1].memory_mb * (1 + MEMORY_SLACK):
        wrong.append(f"memory: {states[1].memory_mb} MB after round 1, {last.memory_mb} now")
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    wrong = run(arguments.bundle, arguments.requests, arguments.rounds)
    print("\n".join(["", *wrong]) if wrong else "\nnothing wrong, nothing left over")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
