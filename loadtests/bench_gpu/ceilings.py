"""What the device can do at most, by PyTorch: a large matrix product and a copy. Knows no model."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

WARM, TIMED = 3, 10


@dataclass(frozen=True, slots=True)
class Ceilings:
    flop_per_s: float
    "of a cube of `cube` in `dtype`, random numbers: zeros are faster, for they toggle no bits"
    bytes_per_s: float
    "copied on the device, read and written both counted"
    cube: int
    dtype: str


def ceilings(device: str) -> Ceilings:
    """On a GPU an 8192 cube in bf16 and a copy of 4 GiB; on a CPU, to try the code, small ones."""
    cuda = device == "cuda"
    cube, dtype = (8192, torch.bfloat16) if cuda else (512, torch.float32)
    a, b = torch.randn(2, cube, cube, device=device).to(dtype)
    out = torch.empty_like(a)
    source = torch.randint(
        0, 255, ((1 << 32) if cuda else (1 << 24),), dtype=torch.uint8, device=device
    )
    target = torch.empty_like(source)
    product_s = seconds(lambda: torch.mm(a, b, out=out), device)
    copy_s = seconds(lambda: target.copy_(source), device)
    return Ceilings(
        2.0 * cube**3 / product_s,
        2.0 * len(source) / copy_s,
        cube,
        str(dtype).removeprefix("torch."),
    )


def seconds(work: Callable[[], Any], device: str) -> float:
    """Of the fastest of some calls, after some that do not count: what disturbs only slows down."""
    taken = []
    for turn in range(WARM + TIMED):
        synchronize(device)
        started = time.perf_counter()
        work()
        synchronize(device)
        if turn >= WARM:
            taken.append(time.perf_counter() - started)
    return min(taken)


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def release(device: str) -> None:
    """Give back what PyTorch keeps of freed memory: it is not alone on the device."""
    if device == "cuda":
        torch.cuda.empty_cache()
