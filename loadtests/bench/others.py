"""What is not a throughput: one client alone, singles beside a big request, an engine that costs
nothing."""

import asyncio
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import uvloop

from loadtests.bench import measure, servers
from loadtests.bench.clients import closed_loop, open_loop
from loadtests.bench.measure import Measured, body, check, content
from loadtests.bench.plan import Bench, Row, Sizes
from loadtests.bench.processes import paused
from loadtests.bench.workloads import Workload, Writer, big_post, one, singles


def one_client(bench: Bench) -> Row:
    """Latency of a client that is alone, beside the engine's time in the same answer."""
    workload = one(bench.writer(7), bench.sizes.one_requests)
    bodies = [body(request) for request in workload.requests]
    answers = uvloop.run(closed_loop(bench.service.score, bodies, 1))
    run = bench.offline.alone(workload.requests)
    check([measure.rewards(a) for a in answers], [reward for _, reward in run], exact=True)
    engine = [content(answer)["timing"]["engine_ms"] for answer in answers]
    latency = [answer.latency_s * 1e3 for answer in answers]
    beyond = [a - b for a, b in zip(latency, engine, strict=True)]
    return {
        "requests": len(answers),
        "p50_ms": statistics.median(latency),
        "p99_ms": float(np.percentile(latency, 99)),
        "engine_p50_ms": statistics.median(engine),
        "beyond_engine_p50_ms": statistics.median(beyond),
        "offline_engine_p50_ms": statistics.median(seconds * 1e3 for seconds, _ in run),
    }


def mixed(bench: Bench) -> Row:
    """Singles that arrive at a modest rate, alone and during a POST of thousands of rows."""
    post = big_post(bench.writer(8, 0), bench.sizes.mixed_rows)
    expected = bench.offline.run(post.requests)
    lasts_s = 1.5 * expected.seconds
    quiet, _ = _arrivals(bench, bench.writer(8, 1), lasts_s, None)
    loud, answer = _arrivals(bench, bench.writer(8, 2), lasts_s, post)
    assert answer is not None
    check([measure.rewards(answer)], expected.rewards, exact=True)
    during = [ms for ms, sent in loud if sent < answer.received]
    alone = [ms for ms, _ in quiet]
    bench.note_memory()
    return {
        "rows": bench.sizes.mixed_rows,
        "singles_per_s": bench.sizes.mixed_per_s,
        "post_s": answer.latency_s,
        "post_offline_s": expected.seconds,
        "singles": len(during),
        "alone_p50_ms": float(np.percentile(alone, 50)),
        "alone_p99_ms": float(np.percentile(alone, 99)),
        "during_p50_ms": float(np.percentile(during, 50)),
        "during_p99_ms": float(np.percentile(during, 99)),
    }


def _arrivals(bench: Bench, write: Writer, lasts_s: float, post: Workload | None) -> Any:
    """[(latency in ms, when it was sent)] of Poisson arrivals, and the answer of the POST."""
    count = max(5, round(lasts_s * bench.sizes.mixed_per_s))
    arrivals = singles(write, count)
    gaps = np.random.default_rng(bench.seed).exponential(1 / bench.sizes.mixed_per_s, count)
    bodies = [body(request) for request in arrivals.requests]
    big = [body(request) for request in post.requests] if post else []

    async def go() -> Any:
        posting = asyncio.create_task(closed_loop(bench.service.score, big, 1))
        answers = await open_loop(bench.service.score, bodies, gaps.cumsum().tolist())
        return answers, await posting

    answers, posted = uvloop.run(go())
    expected = bench.offline.run(arrivals.requests).rewards
    check([measure.rewards(answer) for answer in answers], expected, exact=True)
    sent = [(answer.latency_s * 1e3, answer.sent) for answer in answers]
    return sent, posted[0] if posted else None


def no_op(bundle: Path, words: list[str], sizes: Sizes, say: Callable[[str], None]) -> Row:
    """Requests/s, and latency of one client, of the service on an engine that costs nothing and of
    an empty application: of *one*, that latency is Ray's and HAProxy's. One stands still while the
    other is measured."""
    rates: dict[str, list[Measured]] = {"null_engine": [], "no_op": []}
    with servers.together(
        servers.module("null_engine", bundle), servers.module("baselines.no_op", bundle)
    ) as (null, empty):
        for turn in range(sizes.rounds + 1):
            work = singles(Writer(words, 100 + turn), sizes.no_op_requests)
            for server, other in ((null, empty), (empty, null))[:: 1 if turn % 2 else -1]:
                with paused([other.pid]):
                    got = measure.over_http(server, Workload("no-op", work.requests, 16))
                rates[server.name] += [got] if turn else []  # the first one warms up
                say(f"no-op {server.name:11} {got.pairs_per_s:7.0f} requests/s")
        bodies = [body(request) for request in one(Writer(words, 99), sizes.one_requests).requests]
        alone = {}
        for server, other in (null, empty), (empty, null):
            with paused([other.pid]):
                alone[server.name] = uvloop.run(closed_loop(server.score, bodies, 1))
    ratios = [
        ours.pairs_per_s / empty.pairs_per_s
        for ours, empty in zip(rates["null_engine"], rates["no_op"], strict=True)
    ]
    return {
        "ratio": statistics.median(ratios),
        **{
            f"{name}_per_s": statistics.median(m.pairs_per_s for m in all_rounds)
            for name, all_rounds in rates.items()
        },
        "one_client_p50_ms": {
            name: statistics.median(answer.latency_s * 1e3 for answer in answers)
            for name, answers in alone.items()
        },
        "client_cpu": {
            name: statistics.median(m.client_cpu for m in all_rounds)
            for name, all_rounds in rates.items()
        },
        "server_cpu": {
            name: {p: s / m[-1].seconds for p, s in m[-1].cpu_s.items() if s}
            for name, m in rates.items()
        },
    }
