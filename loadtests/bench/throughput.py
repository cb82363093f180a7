"""Pairs per second of every system on every workload.

All systems of a workload follow each other in every round, so that a machine that drifts drifts
under all of them; their order turns from round to round.
"""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from loadtests.bench import measure, servers
from loadtests.bench.baselines.serve_batch import SIZES, WAITS_MS
from loadtests.bench.measure import Measured, check
from loadtests.bench.plan import Bench, Row
from loadtests.bench.servers import Server
from loadtests.bench.workloads import THROUGHPUT, Workload

CALIBRATION_PAIRS = 32
ALONE_TOKENS = 6000
"of every workload, rows with so many tokens are also scored each in an engine run of its own"


def throughput(bench: Bench, names: Sequence[str]) -> list[Row]:
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
    time.sleep(max(0.0, ended + servers.METRICS_DELAY_S - time.perf_counter()))
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
    size = bench.offline.size(workload.first(m.pairs).requests)
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
        "of_pruned_roofline": size.work.pruned_flop(bench.architecture)
        / m.seconds
        / max(rates.values()),
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
