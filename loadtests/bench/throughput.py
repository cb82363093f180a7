"""Pairs per second of every system on every workload.

All systems of a workload follow each other in every round, so that a machine that drifts drifts
under all of them; their order turns from round to round.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from loadtests.bench import measure, servers
from loadtests.bench.measure import Measured, check
from loadtests.bench.plan import Bench, Row
from loadtests.bench.servers import ONE_RUN, Server
from loadtests.bench.workloads import THROUGHPUT, Request, Workload

CALIBRATION_PAIRS = {"singles": 96, "batches": 96, "groups": 64, "long": 16}
"enough for a few batches of the largest size that is tried"
ALONE_TOKENS = 6000
"of every workload, rows with so many tokens are also scored each in an engine run of its own"

COUNTED_S = 1.0
"the kernel counts CPU time in ticks of 10 ms: over less, what the rest took is not told"


def throughput(bench: Bench, names: Sequence[str]) -> list[Row]:
    """Rows of every round, workload and system."""
    rows = []
    speeds = {
        (name, server.name): calibrate(bench, name, server)
        for server in bench.baselines
        for name in names
    }
    for turn in range(bench.sizes.rounds):
        for number, name in enumerate(names):
            write = bench.writer(turn, number)
            workload = THROUGHPUT[name](write, bench.sizes.pairs[name])
            rows += _one_round(bench, turn, workload, speeds)
    return rows


def calibrate(bench: Bench, name: str, server: Server) -> dict[str, float]:
    """Its pairs/s on a few pairs; for `@serve.batch`, of the best size and wait, and which."""
    pairs = min(CALIBRATION_PAIRS[name], bench.sizes.pairs[name])
    workload = THROUGHPUT[name](bench.writer(99, len(name)), pairs)
    settings = bench.sizes.batching if server.name == "serve_batch" else ((0, 0),)
    tried = []
    with bench.only(server):
        for size, wait_ms in settings:
            if size:
                servers.set_batching(server, size, wait_ms)
            rate = measure.over_http(server, workload).pairs_per_s
            tried.append({"pairs_per_s": rate, "size": size, "wait_ms": wait_ms})
    rates = ", ".join(f"{t['size']}/{t['wait_ms']} ms {t['pairs_per_s']:.1f}" for t in tried)
    bench.say(f"{name}: {server.name}, size/wait and pairs/s: {rates}")
    return max(tried, key=lambda each: each["pairs_per_s"])


def _one_round(bench: Bench, turn: int, workload: Workload, speeds: dict[Any, Any]) -> list[Row]:
    systems: list[Server | None] = [bench.service, None, *bench.baselines]
    start = turn % len(systems)
    measured: dict[str, Measured] = {}
    with bench.only(None):
        rates = bench.offline.rates()
    for system in [*systems[start:], *systems[:start]]:
        with bench.only(system):
            if system is None:
                measured["offline"] = _offline(bench, workload)
            elif system is bench.service:
                measured["service"] = _service(bench, workload)
            else:
                part = _part(bench, workload, system, speeds[workload.name, system.name])
                measured[system.name] = measure.over_http(system, part)
    with bench.only(None):
        _check(bench, workload, measured)
        rows = [_row(bench, turn, workload, name, m, rates) for name, m in measured.items()]
    for row in rows:
        bench.say(_line(row))
    return rows


def _offline(bench: Bench, workload: Workload) -> Measured:
    run = bench.offline.run(workload.requests)
    return Measured(run.seconds, len(workload.pairs), rewards=run.rewards, other_cpu=run.other_cpu)


def _service(bench: Bench, workload: Workload) -> Measured:
    """With what it counted of padding and prefixes itself."""
    before = bench.service.totals()
    measured = measure.over_http(bench.service, workload)
    bench.note_memory()
    return replace(measured, counted=_difference(before, bench.service.settled()))


def _part(bench: Bench, workload: Workload, server: Server, best: dict[str, float]) -> Workload:
    """As much of a workload as a baseline does in its time."""
    if best["size"]:
        servers.set_batching(server, int(best["size"]), best["wait_ms"])
    wanted = best["pairs_per_s"] * bench.sizes.baseline_s
    least = 16 if workload.name in ("groups", "long") else 32
    return workload.first(min(len(workload.pairs), max(least, round(wanted / least) * least)))


def _check(bench: Bench, workload: Workload, measured: dict[str, Measured]) -> None:
    """Raises WrongReward: the service in one bit, a baseline beyond its tolerance."""
    offline = measured["offline"].rewards
    for name, each in measured.items():
        check(each.rewards, offline, exact=name in ("service", ONE_RUN))
    some = _some(workload.requests)
    alone = iter(bench.offline.alone(some))
    check([np.concatenate([next(alone)[1] for _ in r]) for r in some], offline, exact=True)


def _some(requests: Sequence[Request]) -> list[Request]:
    some, tokens = [], 0
    for request in requests:
        some.append(request)
        tokens += sum(len((pair.prompt + pair.response).split()) for pair in request)
        if tokens > ALONE_TOKENS:
            break
    return some


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
        "other_cpu": m.other_cpu if m.seconds >= COUNTED_S else None,
        "server_cpu": {name: spent / m.seconds for name, spent in m.cpu_s.items() if spent},
        **m.counted,
    }


def _line(row: Row) -> str:
    latency = f"p50 {row['p50_ms']:6.0f} ms" if row["p50_ms"] else ""
    others = f"; others took {row['other_cpu']:.2f} cores" if (row["other_cpu"] or 0) > 0.1 else ""
    return (
        f"round {row['round'] + 1} {row['workload']:8} {row['system']:11} "
        f"{row['pairs_per_s']:7.1f} pairs/s {row['of_roofline']:6.1%} of the roofline "
        f"{latency}{others}"
    )


def _difference(before: dict[str, float], after: dict[str, float]) -> Row:
    """What the service counted: shares of padding and of tokens that a shared prefix saved."""
    grown = {name: value - before.get(name, 0.0) for name, value in after.items()}
    tokens = grown.get("reward_tokens_total", 0.0)
    saved = grown.get("reward_shared_tokens_total", 0.0)
    padding = grown.get("reward_padding_tokens_total", 0.0)
    runs = grown.get("reward_batch_rows_count", 0.0)
    rows = grown.get("reward_rows_total", 0.0)  # a Ray histogram's sum is made of bucket middles
    return {
        "padding_share": padding / (tokens - saved + padding) if tokens else None,
        "prefix_hit_rate": saved / tokens if tokens else None,
        "rows_per_run": rows / runs if runs else None,
    }
