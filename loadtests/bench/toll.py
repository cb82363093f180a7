"""What Serve takes from the cores before an engine gets any: the bound on all that runs behind it.

python -m loadtests.bench.toll [--rate 150] [--rounds 9]      two minutes, nothing else running

Matrix products run on every core, a process each, while an application that does nothing is stopped
(SIGSTOP), has nothing to do, or answers so many requests/s of *singles*: how many products remain.
"""

import argparse
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from multiprocessing.pool import Pool

import numpy as np
import uvloop

from loadtests.bench import measure, model, servers
from loadtests.bench.clients import open_loop
from loadtests.bench.processes import paused
from loadtests.bench.run import ROOM
from loadtests.bench.servers import Server
from loadtests.bench.workloads import Writer, singles
from service.machine import usable_cpus

SECONDS = 4.0
SIDE = 512


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rate", type=float, default=150.0, help="requests/s")
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    os.environ |= servers.PATIENCE | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    bundle, rate = model.build(model.BENCH, ROOM), arguments.rate
    words = model.words(bundle)
    with (
        multiprocessing.get_context("spawn").Pool(usable_cpus()) as cores,
        servers.together(servers.module("baselines.no_op", bundle)) as [server],
    ):
        products(cores, lambda: None)  # libraries are loaded
        rounds = [remaining(cores, server, words, rate) for _ in range(arguments.rounds)]
    idle, loaded = ([round(each, 3) for each in part] for part in zip(*rounds, strict=True))
    print(f"idle: {statistics.median(idle)} of the products remain; {idle}")
    print(f"{rate:g} requests/s: {statistics.median(loaded)}; {loaded}")


def remaining(cores: Pool, server: Server, words: list[str], rate: float) -> tuple[float, float]:
    """Shares of the products that remain beside an idle application, and beside a loaded one."""
    count = int(rate * SECONDS)
    bodies = [measure.body(request) for request in singles(Writer(words, 1), count).requests]
    times = [i / rate for i in range(count)]

    def load() -> None:
        answers = uvloop.run(open_loop(server.score, bodies, times))
        assert all(answer.status == 200 for answer in answers)

    def alone() -> float:
        with paused([server.pid]):
            return products(cores, lambda: None)

    before, idle = alone(), products(cores, lambda: None)
    between, loaded = alone(), products(cores, load)
    return 2 * idle / (before + between), 2 * loaded / (between + alone())


def products(cores: Pool, beside: Callable[[], None]) -> float:
    """How many all cores get done a second, beside something."""
    running = cores.map_async(_products, [SECONDS] * usable_cpus(), chunksize=1)
    beside()
    return sum(running.get())


def _products(seconds: float) -> float:
    a, b = np.random.default_rng(0).random((2, SIDE, SIDE), np.float32)
    out, done, started = np.empty_like(a), 0, time.perf_counter()
    while (spent := time.perf_counter() - started) < seconds:
        np.matmul(a, b, out=out)
        done += 1
    return done / spent


if __name__ == "__main__":
    main()
