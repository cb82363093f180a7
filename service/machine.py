"""What this process may use of the machine: CPUs and their instructions, the GPU's name."""

import math
import os
import platform
from pathlib import Path


def usable_cpus() -> int:
    """CPUs this process may use: its affinity, and the cgroup's quota where there is one."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cgroup_quota()
    return max(1, min(cpus, math.ceil(quota) if quota else cpus))


def _cgroup_quota(root: Path = Path("/sys/fs/cgroup")) -> float | None:
    """CPUs that the tightest limit on this process's cgroup, or one above it, leaves it."""
    own = Path("/proc/self/cgroup")
    lines = own.read_text().splitlines() if own.is_file() else []
    quotas = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        base = root / controllers if controllers else root
        group = base / path.lstrip("/")
        quotas += [_quota(folder) for folder in (group, *group.parents) if folder.is_dir()]
    return min((quota for quota in quotas if quota), default=None)


def _quota(folder: Path) -> float | None:
    """One group's limit, in CPUs: cgroup v2's cpu.max, or v1's pair of files."""
    v2, v1 = folder / "cpu.max", folder / "cpu.cfs_quota_us"
    if v2.is_file():
        quota, period = v2.read_text().split()
    elif v1.is_file():
        quota, period = v1.read_text(), (folder / "cpu.cfs_period_us").read_text()
    else:
        return None
    return None if quota.strip() in ("max", "-1") else float(quota) / float(period)


def instruction_set() -> str:
    """The widest vector instructions of this CPU; they decide the kernels and so the bits."""
    info = Path("/proc/cpuinfo")
    flags = set(info.read_text().split()) if info.is_file() else set()
    known = ("amx_tile", "avx512_vnni", "avx512f", "avx2", "sve", "asimd")
    return next((flag for flag in known if flag in flags), platform.machine())


def accelerator(root: Path = Path("/proc/driver/nvidia")) -> str:
    """The first NVIDIA GPU's name in one word, such as NVIDIA-H200; "gpu" where nobody says."""
    for file in sorted(root.glob("gpus/*/information")):
        for line in file.read_text().splitlines():
            name, _, model = line.partition(":")
            if name == "Model":
                return "-".join(model.split())
    return "gpu"
