"""The share of time in which a GPU runs a kernel, whoever launched it. Knows intervals."""

import time
from collections.abc import Callable, Iterable
from typing import Any

import torch

Interval = tuple[int, int]
"begin and end, ns"


def covered(intervals: Iterable[Interval]) -> int:
    """The length of their union.

    >>> covered([(0, 10), (5, 12), (20, 21)])
    13
    """
    total, reached = 0, -(1 << 62)
    for begin, end in sorted(intervals):
        total += max(0, end - max(begin, reached))
        reached = max(reached, end)
    return total


def busy_share(work: Callable[[], Any], device: str) -> float | None:
    """The share of kernels and copies in the time of `work`; None where the tracer sees none.

    CUPTI traces the process and not PyTorch alone, so ONNX Runtime's kernels are in it. Tracing
    costs time: rates are measured without it, and only the share is taken from here.
    """
    if device != "cuda":
        return None
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        started = time.perf_counter_ns()
        work()
        torch.cuda.synchronize()
        taken = time.perf_counter_ns() - started
    found = profile.profiler.kineto_results.events()
    on_device = [e for e in found if e.device_type() == torch.autograd.DeviceType.CUDA]
    spans = [(e.start_ns(), e.start_ns() + e.duration_ns()) for e in on_device]
    return covered(spans) / taken if spans else None
