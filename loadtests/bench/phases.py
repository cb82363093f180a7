"""What is measured, in which order. All systems of a workload follow each other in every round, so
that a machine that drifts drifts under all of them; the order turns from round to round."""

import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import uvloop

from loadtests.bench import measure, servers
from loadtests.bench.baselines.serve_batch import SIZES, WAITS_MS
from loadtests.bench.clients import closed_loop, open_loop
from loadtests.bench.measure import Measured, body, check, content
from loadtests.bench.offline import Offline, Size
from loadtests.bench.processes import pss_bytes
from loadtests.bench.servers import Server
from loadtests.bench.workloads import THROUGHPUT, Workload, Writer, big_post, one, singles
from service.manifest import Architecture

METRICS_DELAY_S = 2.5
"the service's series are on its page within 2 s"
BASELINE_S, CALIBRATION_PAIRS = 6.0, 32
ALONE_TOKENS = 6000
"rows of a workload that are also scored each in an engine run of its own"

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of everything; a full run and a quick one."""

    rounds: int
    pairs: dict[str, int]
    "of every workload, in a round"
    baseline_s: float
    one_requests: int
    mixed_rows: int
    mixed_per_s: float
    no_op_requests: int


FULL = Sizes(
    rounds=3,
    pairs={"singles": 480, "batches": 512, "groups": 320, "long": 96},
    baseline_s=BASELINE_S,
    one_requests=100,
    mixed_rows=5000,
    mixed_per_s=8.0,
    no_op_requests=6000,
)
"groups: 60 prompts in all three rounds"
QUICK = Sizes(1, {"singles": 64, "batches": 128, "groups": 64, "long": 16}, 0.5, 10, 200, 20.0, 300)


@dataclass(slots=True)
class Bench:
    """Everything that is running."""

    words: list[str]
    architecture: Architecture
    sizes: Sizes
    offline: Offline
    service: Server
    baselines: list[Server]
    seed: int
    say: Any
    peak_pss: int = 0

    def writer(self, *where: int) -> Writer:
        return Writer(self.words, hash((self.seed, *where)) % 2**32)

    def note_memory(self) -> None:
        self.peak_pss = max(self.peak_pss, pss_bytes(self.service.pid))


def throughput(bench: Bench, names: Iterable[str]) -> list[Row]:
    """Rows of every round, workload and system."""
    rows = []
    speeds = {
        (name, server.name): calibrate(bench, name, server)
        for name in names
        for server in bench.baselines
    }
    for turn in range(bench.sizes.rounds):
        for number, name in enumerate(names):
            write = bench.writer(turn, number)
            workload = THROUGHPUT[name](write, bench.sizes.pairs[name])
            rows += _one_round(bench, turn, workload, speeds)
    return rows


def calibrate(bench: Bench, name: str, server: Server) -> dict[str, float]:
    """Its pairs/s on a few pairs; for `@serve.batch`, of the best size and wait, and which."""
    pairs = CALIBRATION_PAIRS if name != "long" else 8
    workload = THROUGHPUT[name](bench.writer(99, len(name)), pairs)
    if name == "batches":
        workload = workload.first(pairs)
    if server.name != "serve_batch":
        return {"pairs_per_s": measure.over_http(server, workload).pairs_per_s}
    tried = []
    for size in SIZES if bench.sizes.rounds > 1 else SIZES[1:2]:
        for wait_ms in WAITS_MS if bench.sizes.rounds > 1 else WAITS_MS[:1]:
            servers.set_batching(server, size, wait_ms)
            rate = measure.over_http(server, workload).pairs_per_s
            tried.append({"pairs_per_s": rate, "size": size, "wait_ms": wait_ms})
    best = max(tried, key=lambda each: each["pairs_per_s"])
    bench.say(f"calibrated {name}: @serve.batch best of {_tried(tried)}")
    return best


def _tried(tried: list[dict[str, float]]) -> str:
    return ", ".join(f"{t['size']}/{t['wait_ms']} ms {t['pairs_per_s']:.1f}" for t in tried)


def _one_round(bench: Bench, turn: int, workload: Workload, speeds: dict[Any, Any]) -> list[Row]:
    rates = bench.offline.rates()
    systems: list[Server | None] = [bench.service, None, *bench.baselines]
    start = turn % len(systems)
    measured: dict[str, Measured] = {}
    before, ended = bench.service.totals(), 0.0
    for system in [*systems[start:], *systems[:start]]:
        if system is None:
            run = bench.offline.run(workload.requests)
            measured["offline"] = Measured(run.seconds, len(workload.pairs), rewards=run.rewards)
            continue
        part = workload
        if system is not bench.service:
            part = _part(bench, workload, system, speeds[workload.name, system.name])
        measured[system.name] = measure.over_http(system, part)
        if system is bench.service:
            ended = time.perf_counter()
            bench.note_memory()
    time.sleep(max(0.0, ended + METRICS_DELAY_S - time.perf_counter()))
    counted = _difference(before, bench.service.totals())
    _check(bench, workload, measured)
    rows = [_row(bench, turn, workload, name, m, rates) for name, m in measured.items()]
    for row in rows:
        if row["system"] == "service":
            row |= counted
        bench.say(_line(row))
    return rows


def _part(bench: Bench, workload: Workload, server: Server, best: dict[str, float]) -> Workload:
    """As much of a workload as a baseline does in its time."""
    if "size" in best:
        servers.set_batching(server, int(best["size"]), best["wait_ms"])
    wanted = best["pairs_per_s"] * bench.sizes.baseline_s
    least = 16 if workload.name in ("groups", "long") else 32
    return workload.first(min(len(workload.pairs), max(least, round(wanted / least) * least)))


def _check(bench: Bench, workload: Workload, measured: dict[str, Measured]) -> None:
    """Raises WrongReward: the service in one bit, a baseline beyond its tolerance."""
    offline = measured["offline"].rewards
    for name, each in measured.items():
        check(each.rewards, offline, exact=name == "service")
    count, tokens = 0, 0
    for request in workload.requests:
        tokens += sum(len((p.prompt + p.response).split()) for p in request)
        count += 1
        if tokens > ALONE_TOKENS:
            break
    alone = iter(bench.offline.alone(workload.requests[:count]))
    rewards = [
        np.concatenate([next(alone)[1] for _ in request]) for request in workload.requests[:count]
    ]
    check(rewards, offline, exact=True)


def _row(
    bench: Bench, turn: int, workload: Workload, name: str, m: Measured, rates: dict[str, float]
) -> Row:
    size: Size = bench.offline.size(workload.first(m.pairs).requests)
    flop = size.work.flop(bench.architecture)
    latencies = m.latencies_ms
    return {
        "round": turn,
        "workload": workload.name,
        "system": name,
        "pairs": m.pairs,
        "seconds": m.seconds,
        "pairs_per_s": m.pairs_per_s,
        "tokens_per_s": size.tokens / m.seconds,
        "useful_tokens_per_s": size.work.tokens / m.seconds,
        "gemm_flop_per_s": rates,
        "roofline_pairs_per_s": max(rates.values()) * m.pairs / flop,
        "of_roofline": flop / m.seconds / max(rates.values()),
        "p50_ms": m.latency_ms(50) if latencies else None,
        "p99_ms": m.latency_ms(99) if latencies else None,
        "client_cpu": m.client_cpu,
        "server_cpu": {name: spent / m.seconds for name, spent in m.cpu_s.items() if spent},
    }


def _line(row: Row) -> str:
    latency = f"p50 {row['p50_ms']:6.0f} ms" if row["p50_ms"] else ""
    return (
        f"round {row['round'] + 1} {row['workload']:8} {row['system']:11} "
        f"{row['pairs_per_s']:7.1f} pairs/s {row['of_roofline']:6.1%} of the roofline {latency}"
    )


def _difference(before: dict[str, float], after: dict[str, float]) -> Row:
    """What the service counted: shares of padding and of tokens that a shared prefix saved."""
    grown = {name: value - before.get(name, 0.0) for name, value in after.items()}
    tokens = grown.get("reward_tokens_total", 0.0)
    saved = grown.get("reward_shared_tokens_total", 0.0)
    padding = grown.get("reward_padding_tokens_total", 0.0)
    runs = grown.get("reward_batch_rows_count", 0.0)
    return {
        "padding_share": padding / (tokens - saved + padding) if tokens else None,
        "prefix_hit_rate": saved / tokens if tokens else None,
        "rows_per_run": grown.get("reward_batch_rows_sum", 0.0) / runs if runs else None,
    }


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
        import asyncio

        posting = asyncio.create_task(closed_loop(bench.service.score, big, 1))
        answers = await open_loop(bench.service.score, bodies, gaps.cumsum().tolist())
        return answers, await posting

    answers, posted = uvloop.run(go())
    expected = bench.offline.run(arrivals.requests).rewards
    check([measure.rewards(answer) for answer in answers], expected, exact=True)
    sent = [(answer.latency_s * 1e3, answer.sent) for answer in answers]
    return sent, posted[0] if posted else None


def no_op(bundle: Path, words: list[str], sizes: Sizes, say: Any) -> Row:
    """Requests/s of the service on an engine that costs nothing, and of an empty application."""
    rates: dict[str, list[Measured]] = {"null_engine": [], "no_op": []}
    with (
        servers.module("null_engine", bundle) as null,
        servers.module("baselines.no_op", bundle) as empty,
    ):
        for turn in range(sizes.rounds + 1):
            work = singles(Writer(words, 100 + turn), sizes.no_op_requests)
            for server in (null, empty) if turn % 2 else (empty, null):
                got = measure.over_http(server, Workload("no-op", work.requests, 16))
                rates[server.name] += [got] if turn else []  # the first one warms up
                say(f"no-op {server.name:11} {got.pairs_per_s:7.0f} requests/s")
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
        "client_cpu": {
            name: statistics.median(m.client_cpu for m in all_rounds)
            for name, all_rounds in rates.items()
        },
        "server_cpu": {
            name: {p: s / m[-1].seconds for p, s in m[-1].cpu_s.items() if s}
            for name, m in rates.items()
        },
    }
