"""The same requests over HTTP, to the service as it is started, in processes of its own."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loadtests.bench.workloads import Workload
from loadtests.bench_gpu.inprocess import Measured

NEEDED = ("ray", "fastapi", "httptools", "uvloop")


def missing() -> list[str]:
    """What serving and asking need that is not installed here."""
    return [name for name in NEEDED if importlib.util.find_spec(name) is None]


def measure(
    bundle: Path,
    variant: str,
    device: str,
    settings: Mapping[str, Any],
    workloads: list[Workload],
) -> dict[str, Measured]:
    """By the workload's name; latencies of requests, as a client sees them."""
    from loadtests.bench import measure, servers

    sets = (f"--set={name}={value}" for name, value in settings.items())
    options = (f"--variant={variant}", f"--device={device}", *sets)
    measured = {}
    with servers.service(bundle, *options) as service:
        for workload in workloads:
            measure.over_http(service, workload.first(len(workload.pairs) // 8))  # warm
            got = measure.over_http(service, workload)
            measured[workload.name] = Measured(got.seconds, got.latencies_ms)
    return measured
