"""Servers in processes of their own, started and stopped. Knows commands; knows no rewards."""

import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from training.demo.walk import serving

ROOT = Path(__file__).parents[2]
STOP_TIMEOUT_S = 60
PATIENCE = {"RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "3600"}
"""for the environment: who stood still for a minute (SIGSTOP) has missed three health checks of
Serve's and gets a new ingress, which refuses connections until it listens"""
ONE_RUN = "one_run"
"the service with one run at a time, on all cores"
SETTLING_S = 5.0
"""after the start, before anything stands still: HAProxy takes a new configuration over with a new
process, some 0.6 s after the replica is ready; one that is stopped amid it never listens"""
METRICS_DELAY_S = 2.5
"the service's series are on its page within 2 s"


@dataclass(frozen=True, slots=True)
class Server:
    name: str
    url: str
    pid: int

    @property
    def score(self) -> str:
        return f"{self.url}/score"

    def totals(self) -> dict[str, float]:
        """The service's own series, summed over their labels."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=30) as response:
            page = response.read().decode()
        sums: dict[str, float] = defaultdict(float)
        for family in text_string_to_metric_families(page):
            for sample in family.samples:
                if sample.name.startswith("ray_reward_") and "le" not in sample.labels:
                    sums[sample.name.removeprefix("ray_")] += sample.value
        return dict(sums)

    def settled(self) -> dict[str, float]:
        """The same, with everything that is answered by now."""
        time.sleep(METRICS_DELAY_S)
        return self.totals()


@contextmanager
def service(
    bundle: Path, *options: str, name: str = "service", python: str | Path = sys.executable
) -> Iterator[Server]:
    with serving(bundle, *options, python=python) as started:
        yield Server(name, started.url, started.process.pid)


def beside(name: str, bundle: Path, python: str | Path) -> AbstractContextManager[Server]:
    """What the service is compared with: a baseline, or itself with other settings."""
    if name == ONE_RUN:
        return service(bundle, "--set=runs_at_once=1", name=name, python=python)
    return module(f"baselines.{name}", bundle)


@contextmanager
def module(name: str, bundle: Path) -> Iterator[Server]:
    """`python -m loadtests.bench.NAME BUNDLE`, which prints `ready at URL`; SIGTERM ends it."""
    command = [sys.executable, "-m", f"loadtests.bench.{name}", str(bundle)]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    lines: list[str] = []
    try:
        for line in process.stdout:
            lines.append(line)
            if ready := re.match(r"ready at (\S+)", line):
                break
        else:
            raise RuntimeError(f"{name} did not start:\n" + "".join(lines[-20:]))
        yield Server(name.rpartition(".")[2], ready[1], process.pid)
    finally:
        if process.poll() is None:
            os.kill(process.pid, signal.SIGTERM)
        process.communicate(timeout=STOP_TIMEOUT_S)


def set_batching(server: Server, size: int, wait_ms: float) -> None:
    """Of the baseline on `@serve.batch`."""
    url = f"{server.url}/batching?size={size}&wait_ms={wait_ms}"
    urllib.request.urlopen(urllib.request.Request(url, method="PUT"), timeout=30).close()


@contextmanager
def together(*starting: AbstractContextManager[Server]) -> Iterator[list[Server]]:
    """Started at the same time, each in a thread of its own, settled; stopped in the same way."""
    with ThreadPoolExecutor(len(starting)) as threads:
        entered = [threads.submit(server.__enter__) for server in starting]
        try:
            servers = [each.result() for each in entered]
            time.sleep(SETTLING_S)
            yield servers
        finally:
            ended = [
                threads.submit(server.__exit__, None, None, None)
                for server, each in zip(starting, entered, strict=True)
                if each.exception() is None
            ]
            for each in ended:
                each.result()
