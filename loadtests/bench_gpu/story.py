"""The story of a run, model by model. Knows what is measured; leaves how to the modules around."""

import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

from loadtests.bench.roofline import Work, distinct
from loadtests.bench.workloads import Workload, Writer
from loadtests.bench_gpu import baselines, ceilings, http, kernels, models, report, ulp
from loadtests.bench_gpu.inprocess import InProcess, Measured, Rows
from loadtests.bench_gpu.workloads import WORKLOADS, Lengths
from service import bundle as bundles
from service.bundle import Bundle
from service.config import ServiceConfig
from service.manifest import Architecture
from service.text import Encoder

QUICK = 64
"times fewer pairs, a sixteenth as long each"
COMPANY_ROWS, COMPANY_RUNS = 96, 200
PARITY_ROWS = {"batches": 96, "groups": 32}
"whose rewards are held beside those of PyTorch in fp32: rows that share nothing, and two groups"
STATE_BYTES = 16 << 30
"of a paged variant: 131,072 tokens of Llama-3.1-8B, so that the budget in tokens ends a batch"
TRACED = 4
"a part of that size of a workload is traced: a trace holds every kernel"


@dataclass(slots=True)
class Bench:
    """What is asked, and what was found so far."""

    device: str
    variants: list[str]
    names: list[str]
    quick: bool
    budget: int
    room: Path
    prefix: Path
    "of the files that the result is written to"
    result: dict[str, Any]
    rewards: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)
    "of a model's PARITY_ROWS, by model and system"
    expected: dict[str, np.ndarray] = field(default_factory=dict)
    "PyTorch's in fp32 for the same rows, by model"

    def say(self, text: str) -> None:
        print(f"{time.perf_counter() - self.result['started']:6.0f} s  {text}", flush=True)

    def settings(self, variant: str) -> dict[str, Any]:
        """Of the service, beside bundle, variant and device."""
        states = {"max_state_bytes": STATE_BYTES} if variant in models.PAGED else {}
        return {"max_batch_tokens": self.budget, **states}

    def workloads(self, model: str) -> list[Workload]:
        write, lengths = Writer(models.WORDS, 1), Lengths().divided(16 if self.quick else 1)
        share = models.MODELS[model].share / (QUICK if self.quick else 1)
        return [
            WORKLOADS[name][0](write, lengths, max(4, round(WORKLOADS[name][1] * share)))
            for name in self.names
        ]


@dataclass(frozen=True, slots=True)
class Asked:
    """A workload in token ids, and the least work it needs."""

    workload: Workload
    requests: list[Rows]
    work: Work
    sizes: Architecture

    @property
    def rows(self) -> Rows:
        return [row for request in self.requests for row in request]


def bench(b: Bench, names: Sequence[str]) -> None:
    """Everything, into the result."""
    found = ceilings.ceilings(b.device)
    ceilings.release(b.device)
    b.result["ceilings"] = asdict(found)
    b.say(f"ceilings: {found.flop_per_s / 1e12:.4g} TFLOP/s, {found.bytes_per_s / 1e9:,.0f} GB/s")
    for name in names:
        for variant in b.variants:
            _try(b, f"{name} {variant}", lambda name=name, variant=variant: _one(b, name, variant))


def _one(b: Bench, name: str, variant: str) -> None:
    """A model's variant: alone, invariant, PyTorch beside it, their rewards, over HTTP.

    What fails is noted and the rest goes on: GPU time is dear.
    """
    bundle = bundles.load(models.build(name, variant, b.room))
    b.say(f"{name}: bundle with variant {variant}")
    asked = [_ask(bundle, workload) for workload in b.workloads(name)]
    parts: list[Callable[[], None]] = [
        lambda: _alone(b, name, variant, bundle, asked),
        lambda: _invariant(b, name, variant, bundle, asked),
        lambda: _torch(b, name, asked),
        lambda: _parity(b, name, asked),
        lambda: _http(b, name, variant, bundle, asked),
    ]
    for part in parts:
        _try(b, f"{name} {variant}", part)


def _try(b: Bench, what: str, part: Callable[[], None]) -> None:
    """Whatever comes of it, what there is is saved: a run may be stopped at any time."""
    try:
        part()
    except Exception as error:
        traceback.print_exc()
        b.result["failed"].append(f"{what}: {type(error).__name__}: {error}")
    b.result["seconds"] = time.perf_counter() - b.result["started"]
    report.save(b.prefix, b.result)


def _alone(b: Bench, name: str, variant: str, bundle: Bundle, asked: list[Asked]) -> None:
    engine = _open(b, bundle, variant)
    b.say(f"{name}: {engine.engine.fingerprint}, warm after {engine.start_s:.0f} s")
    for each in asked:
        _row(b, name, variant, each, engine.measure(each.requests, each.workload.in_flight))
        _trace(b, engine, each)
    _company(b, name, variant, engine, asked[0])
    b.rewards[name, variant] = _in_batches(engine.engine.run, _parity_rows(asked))
    engine.close()


def _open(b: Bench, bundle: Bundle, variant: str, **settings: Any) -> InProcess:
    settings |= b.settings(variant)
    return InProcess(
        ServiceConfig(bundle=bundle.path, variant=variant, device=b.device, **settings)
    )


def _ask(bundle: Bundle, workload: Workload) -> Asked:
    encoder = Encoder.of(bundle)
    requests = [
        [encoder.encode(pair.prompt, pair.response).ids for pair in request]
        for request in workload.requests
    ]
    work = distinct([row for request in requests for row in request])
    return Asked(workload, requests, work, bundle.manifest.architecture)


def _invariant(b: Bench, name: str, variant: str, bundle: Bundle, asked: list[Asked]) -> None:
    """What one fixed shape per length costs, and whether it keeps the bits."""
    if b.device == "cpu" or variant in models.PAGED:  # it changes nothing; it is refused
        return
    engine = _open(b, bundle, variant, invariant=True)
    first = asked[0]
    measured = engine.measure(first.requests, first.workload.in_flight)
    _row(b, name, f"{variant} invariant", first, measured)
    _company(b, name, f"{variant} invariant", engine, first)
    b.rewards[name, f"{variant} invariant"] = _in_batches(engine.engine.run, _parity_rows(asked))
    engine.close()


def _company(b: Bench, name: str, system: str, engine: InProcess, asked: Asked) -> None:
    rows = asked.rows[:COMPANY_ROWS]
    measured = ulp.in_company(engine.engine, rows, 10 if b.quick else COMPANY_RUNS)
    b.result["invariance"].append({"model": name, "system": system, **measured})


def _parity_rows(asked: list[Asked]) -> Rows:
    return [row for each in asked for row in each.rows[: PARITY_ROWS.get(each.workload.name, 0)]]


def _in_batches(run: Callable[[Rows], np.ndarray], rows: Rows) -> np.ndarray:
    return np.concatenate([run(rows[i : i + 32]) for i in range(0, len(rows), 32)])


def _trace(b: Bench, engine: InProcess, asked: Asked) -> None:
    part = asked.requests[: max(1, len(asked.requests) // TRACED)]
    share = kernels.busy_share(lambda: engine.measure(part, asked.workload.in_flight), b.device)
    b.result["rows"][-1]["device_idle"] = None if share is None else 1 - share


def _torch(b: Bench, name: str, asked: list[Asked]) -> None:
    """Both baselines on all rows at once, which is the best for them; once for all variants."""
    if any((row["model"], row["system"]) == (name, "torch padded") for row in b.result["rows"]):
        return
    dtype = torch.bfloat16 if b.device == "cuda" else torch.float32
    model = baselines.Torch(name, b.device, dtype)
    rewards = model.score(_parity_rows(asked), b.budget, True).numpy()
    b.rewards[name, f"torch {str(dtype).removeprefix('torch.')}"] = rewards
    for each in asked:
        for system, by_length in (("torch padded", False), ("torch by length", True)):
            model.score(each.rows[:64], b.budget, by_length)  # warm
            started = time.perf_counter()
            model.score(each.rows, b.budget, by_length)
            _row(b, name, system, each, Measured(time.perf_counter() - started, []))
    del model
    ceilings.release(b.device)


def _parity(b: Bench, name: str, asked: list[Asked]) -> None:
    """How far everybody's rewards are from PyTorch's in fp32, which has the same weights."""
    rows = _parity_rows(asked)
    if not rows:
        return
    if name not in b.expected:
        model = baselines.Torch(name, b.device, torch.float32)
        b.expected[name] = model.score(rows, b.budget, True).numpy()
        del model
        ceilings.release(b.device)
    expected = b.expected[name]
    std = float(expected.std())
    for model_name, system in list(b.rewards):
        if model_name == name:
            rewards = b.rewards.pop((name, system))
            off = np.abs(rewards - expected) / std
            found = {
                "rows": len(rows),
                "reward_std": std,
                "largest_of_std": float(off.max()),
                "rms_of_std": float(np.sqrt((off**2).mean())),
                "spearman": float(spearmanr(rewards, expected).statistic),
            }
            b.result["parity"].append({"model": name, "system": system, **found})


def _http(b: Bench, name: str, variant: str, bundle: Bundle, asked: list[Asked]) -> None:
    if b.quick or (absent := http.missing()):
        why = "--quick" if b.quick else f"{', '.join(absent)} not installed"
        b.result["notes"].append(f"{name} {variant}: not measured over HTTP: {why}")
        return
    workloads = [each.workload for each in asked]
    measured = http.measure(bundle.path, variant, b.device, b.settings(variant), workloads)
    for each in asked:
        _row(b, name, f"{variant} over HTTP", each, measured[each.workload.name])


def _row(b: Bench, name: str, system: str, asked: Asked, measured: Measured) -> None:
    flop, pruned = asked.work.flop(asked.sizes), asked.work.pruned_flop(asked.sizes)
    ceiling, latencies = b.result["ceilings"]["flop_per_s"], measured.latencies_ms
    row = {
        "model": name,
        "workload": asked.workload.name,
        "system": system,
        "pairs": len(asked.rows),
        "seconds": measured.seconds,
        "pairs_per_s": len(asked.rows) / measured.seconds,
        "tokens_per_s": sum(map(len, asked.rows)) / measured.seconds,
        "useful_flop_per_s": flop / measured.seconds,
        "of_ceiling": flop / measured.seconds / ceiling,
        "of_ceiling_pruned": pruned / measured.seconds / ceiling,
        "p50_ms": float(np.percentile(latencies, 50)) if latencies else None,
        "p99_ms": float(np.percentile(latencies, 99)) if latencies else None,
        **measured.counted,
    }
    b.result["rows"].append(row)
    b.say(f"{name} {row['workload']} {system}: {row['pairs_per_s']:,.1f} pairs/s")
