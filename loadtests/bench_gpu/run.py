"""`make bench-gpu`: ceilings, then the engine alone, then over HTTP, beside PyTorch, in one run.

    python -m loadtests.bench_gpu.run [--models qwen3-0.6b,llama-3.1-8b] [--variants bf16]
    python -m loadtests.bench_gpu.run --device cpu --models tiny --quick

The second tries the code where there is no GPU; what it prints are no figures of one.
"""

import argparse
import datetime
import sys
import time
from collections.abc import Iterable
from pathlib import Path

# PyTorch first: it loads CUDA's libraries, which ONNX Runtime then finds wherever they lie.
import torch

from loadtests.bench_gpu import models, report
from loadtests.bench_gpu.story import Bench, bench
from loadtests.bench_gpu.workloads import WORKLOADS
from service.engines import BATCH_TOKENS

RESULTS = Path(__file__).parents[1] / "results"
ROOM = Path("runs/bench-gpu")
GPU_VARIANTS = ",".join(["bf16", *models.PAGED])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--models", default="qwen3-0.6b,llama-3.1-8b")
    parser.add_argument("--variants", help=f"{GPU_VARIANTS}; on a CPU fp32")
    parser.add_argument("--workloads", default=",".join(WORKLOADS))
    parser.add_argument("--budget", type=int, help="tokens of a run; as the service has them")
    parser.add_argument("--quick", action="store_true", help="few pairs, and short ones")
    parser.add_argument("--room", type=Path, default=ROOM, help="where bundles are made and kept")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        sys.exit(
            "bench-gpu: PyTorch sees no GPU here; on a machine without one, "
            "`--device cpu --models tiny --quick` tries the code and measures nothing of a GPU"
        )
    _run(arguments)


def _run(arguments: argparse.Namespace) -> None:
    cuda = arguments.device == "cuda"
    names = _some(arguments.models, models.MODELS, "--models")
    now = datetime.datetime.now(datetime.UTC)
    kind = "bench-gpu" if cuda else "bench-gpu-cpu-self-test"
    b = Bench(
        arguments.device,
        _some(
            arguments.variants or (GPU_VARIANTS if cuda else "fp32"), models.VARIANTS, "--variants"
        ),
        _some(arguments.workloads, WORKLOADS, "--workloads"),
        arguments.quick,
        arguments.budget or BATCH_TOKENS[arguments.device],
        arguments.room,
        arguments.out / f"{kind}-{now:%Y-%m-%d-%H%M}",
        {
            "date": f"{now:%Y-%m-%d %H:%M} UTC",
            "command": " ".join(["python -m loadtests.bench_gpu.run", *sys.argv[1:]]),
            "machine": report.machine(arguments.device),
            "started": time.perf_counter(),
            "rows": [],
            "invariance": [],
            "parity": [],
            "failed": [],
            "notes": [] if cuda else [report.NO_GPU],
        },
    )
    bench(b, names)
    report.write(b.prefix, b.result)
    if b.result["failed"]:
        sys.exit("bench-gpu: not all of it ran: " + "; ".join(b.result["failed"]))


def _some(text: str, known: Iterable[str], option: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in known]:
        sys.exit(f"bench-gpu: {option} {unknown[0]}: not of {', '.join(known)}")
    return names


if __name__ == "__main__":
    main()
