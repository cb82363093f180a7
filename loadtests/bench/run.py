"""`make bench`: every system on every workload, in one run, the ratios against the goals.

    python -m loadtests.bench.run [--quick] [--workloads singles,groups] [--rounds 3] [--out DIR]
    python -m loadtests.bench.run --soak 200000
    python -m loadtests.bench.run --compositions 10000

Ends with 1 when a reward is not the offline one to the bit. Goals that are missed are printed.
"""

import argparse
import contextlib
import datetime
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from loadtests.bench import compositions, model, others, report, servers, soak, throughput
from loadtests.bench.measure import WrongReward
from loadtests.bench.offline import Offline
from loadtests.bench.plan import FULL, QUICK, Bench, Sizes
from loadtests.bench.workloads import THROUGHPUT
from service import bundle as bundles

RESULTS = Path(__file__).parents[1] / "results"
ROOM = Path("runs/bench")
OTHERS = ("one", "mixed", "no-op")


def bench(
    bundle: Path,
    names: Sequence[str],
    sizes: Sizes,
    systems: Sequence[str],
    python: str | Path = sys.executable,
) -> dict[str, Any]:
    """Everything but the report; `python` runs the service. Raises WrongReward."""
    started = time.perf_counter()

    def say(text: str) -> None:
        print(f"{time.perf_counter() - started:6.0f} s  {text}", flush=True)

    words = model.words(bundle)
    architecture = bundles.load(bundle).manifest.architecture
    result: dict[str, Any] = {"rows": [], "architecture": architecture.model_dump()}
    with contextlib.ExitStack() as stack:
        offline = Offline(bundle)
        stack.callback(offline.close)
        starting = [servers.beside(name, bundle, python) for name in systems]
        service, *baselines = stack.enter_context(
            servers.together(servers.service(bundle, python=python), *starting)
        )
        say("started")
        b = Bench(words, architecture, sizes, offline, service, baselines, seed=1, say=say)
        result["rows"] = throughput.throughput(b, [name for name in names if name in THROUGHPUT])
        with b.only(service):
            if "one" in names:
                result["one"] = others.one_client(b)
            if "mixed" in names:
                result["mixed"] = others.mixed(b)
        b.note_memory()
        result["pss_bytes"] = sum(b.peak_pss.values())
        result["pss_by_process"] = b.peak_pss
        result["fingerprint"] = offline.fingerprint()
    if "no-op" in names:
        result["no_op"] = others.no_op(bundle, words, sizes, say)
    result["seconds"] = time.perf_counter() - started
    return result


def save(out: Path, name: str, result: dict[str, Any]) -> None:
    """Of one of the two long runs; exits with 1 where it missed its goal."""
    file = out / f"{name}-{_stamp()}.json"
    report.save(file, result)
    print(f"{name}: {report.figures(result)}; {file}")
    if not result["reached"]:
        sys.exit(1)


def _stamp() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d-%H%M")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a tiny model and little of all")
    parser.add_argument("--bundle", type=Path, help="measure this bundle instead")
    workloads, baselines = (*THROUGHPUT, *OTHERS), ("serve_batch", "one_by_one")
    parser.add_argument("--workloads", default=workloads, type=_some(workloads))
    known = (*baselines, servers.ONE_RUN)
    parser.add_argument("--systems", default=baselines, type=_some(known), help="baselines")
    parser.add_argument("--rounds", type=int)
    parser.add_argument(
        "--service-python",
        type=Path,
        default=sys.executable,
        metavar="PATH",
        help="the interpreter that runs the service, where it has an environment of its own",
    )
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--soak", type=int, metavar="REQUESTS")
    parser.add_argument("--compositions", type=int, metavar="RUNS")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # servers are stopped all the same
    os.environ |= servers.PATIENCE
    try:
        _run(arguments)
    except WrongReward as error:
        sys.exit(f"wrong reward: {error}")


def _some(known: Sequence[str]) -> Callable[[str], list[str]]:
    """Of an option: some of the known names, with commas between them; or "none"."""

    def parse(text: str) -> list[str]:
        names = [] if text == "none" else text.split(",")
        if unknown := set(names) - set(known):
            raise argparse.ArgumentTypeError(
                f"{', '.join(sorted(unknown))}: not of {', '.join(known)}"
            )
        return names

    return parse


def _run(arguments: argparse.Namespace) -> None:
    def bundle(shape: model.Shape) -> Path:
        return arguments.bundle or model.build(shape, ROOM)

    if arguments.soak:
        save(arguments.out, "soak", soak.soak(bundle(model.QUICK), arguments.soak, print))
    if runs := arguments.compositions:
        result = compositions.compositions(bundle(model.BENCH), runs, print)
        save(arguments.out, "compositions", result)
    if arguments.soak or arguments.compositions:
        return
    sizes = QUICK if arguments.quick else FULL
    if arguments.rounds:
        sizes = replace(sizes, rounds=arguments.rounds)
    shape = model.QUICK if arguments.quick else model.BENCH
    result = bench(
        bundle(shape), arguments.workloads, sizes, arguments.systems, arguments.service_python
    )
    report.write(arguments.out / f"bench-{_stamp()}", result)


if __name__ == "__main__":
    main()
