"""What one run must show. Pure: a result with its medians in, goals out."""

from dataclasses import dataclass
from typing import Any

VLLM_BYTES = 6.1 * 1024**3
"memory of vLLM on CPU with the same model (2 cores of an AMD EPYC, 20 Nov 2026)"


@dataclass(frozen=True, slots=True)
class Goal:
    what: str
    measured: float
    goal: float
    reached: bool


def goals(result: dict[str, Any]) -> list[Goal]:
    """Those that the run measured; what it left out is not mentioned."""
    return [*_throughput(result["medians"]), *_others(result)]


def _throughput(medians: dict[str, Any]) -> list[Goal]:
    found = []
    service = {workload: systems["service"] for workload, systems in medians.items()}
    for workload, least in (("groups", 0.83), ("groups", 0.75), ("singles", 0.70), ("long", 0.75)):
        if workload in service:
            share = service[workload]["of_roofline"]
            found.append(_at_least(f"{workload}: service / roofline", share, least))
    for workload in ("singles", "batches", "groups"):
        if workload in service:
            share = service[workload]["over"]["offline"]
            found.append(_at_least(f"{workload}: service / offline limit", share, 0.92))
    if ratio := service.get("groups", {}).get("over", {}).get("serve_batch"):
        found.append(_at_least("groups: service / best @serve.batch", ratio, 4.0))
    return found


def _others(result: dict[str, Any]) -> list[Goal]:
    found = []
    if one := result.get("one"):
        beyond = one["beyond_engine_p50_ms"]
        found.append(_at_most("one: p50 of latency beyond the engine, ms", beyond, 2.0))
    if mixed := result.get("mixed"):
        ratio = mixed["during_p99_ms"] / mixed["alone_p99_ms"]
        found.append(_at_most("mixed: p99 of singles, with / without the POST", ratio, 3.0))
    if no_op := result.get("no_op"):
        found.append(_at_least("engine of no cost / no-op application", no_op["ratio"], 0.6))
    share = result["pss_bytes"] / VLLM_BYTES
    return [*found, _at_most("memory of the service / vLLM's", share, 0.25)]


def _at_least(what: str, measured: float, goal: float) -> Goal:
    return Goal(what, measured, goal, measured >= goal)


def _at_most(what: str, measured: float, goal: float) -> Goal:
    return Goal(what, measured, goal, measured <= goal)
