"""Token ids -> rewards. Knows arrays; knows nothing of text."""

import importlib.metadata
import math
import os
import platform
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from service.bundle import Bundle
from service.errors import BundleError, DeviceUnavailable
from service.planner import MIN_TOKENS
from service.prefix import HEAD_TOKENS, MIN_SUFFIX_TOKENS

States = dict[str, np.ndarray]


class Engine(Protocol):
    """Computes the reward of each row. Called from one thread at a time."""

    fingerprint: str
    "runtime, version and device: with the bundle id, what decides the bits"

    def run(self, rows: Sequence[Sequence[int]], prefix_tokens: int = 0) -> np.ndarray:
        """B rows of token ids, each of its own length -> (B,) float32 rewards.

        The first `prefix_tokens` tokens are the same in all rows; they may be computed once.
        """
        ...

    def cached_tokens(self, row: Sequence[int]) -> int:
        """How many of the row's first tokens the engine has states of. Safe from any thread."""
        ...


class OnnxEngine:
    """A causal graph on ONNX Runtime.

    Rows are padded on the right and there is no padding mask: attention is causal, so a real token
    never sees one that pads. Every run has at least MIN_TOKENS columns, so all of them take the
    same matrix kernels and a row's bits do not depend on its neighbours (CPU, fp32).

    A prefix that rows share runs once, alone; the rest of each row runs with its states as past,
    to the same bits. States of recent prefixes are kept, within `prefix_cache_bytes`.
    """

    def __init__(
        self,
        bundle: Bundle,
        variant: str,
        device: str,
        threads: int = 0,
        prefix_cache_bytes: int = 256 * 1024 * 1024,
    ) -> None:
        ort = _onnxruntime()
        chosen = bundle.manifest.variant(variant)
        sizes = bundle.manifest.architecture
        if sizes.kind != "causal":
            raise BundleError(f"this build serves causal models, the bundle is {sizes.kind}")
        self.device = resolve_device(device, chosen.devices)
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads or usable_cpus()
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.log_severity_level = 3
        providers: list[Any] = ["CPUExecutionProvider"]
        if self.device == "cuda":
            providers.insert(0, ("CUDAExecutionProvider", {"use_tf32": "0"}))
        try:
            self._session = ort.InferenceSession(
                os.fspath(bundle.file(chosen.graph)), options, providers=providers
            )
        except Exception as error:  # onnxruntime has a dozen classes for it
            raise BundleError(
                f"{chosen.graph}: ONNX Runtime cannot open it: {error}", field=chosen.graph
            ) from error
        if self.device == "cuda" and self._session.get_providers()[0] != "CUDAExecutionProvider":
            raise DeviceUnavailable(
                "device cuda was asked for, but ONNX Runtime could not start its CUDA provider; "
                'install the "gpu" extra and a CUDA 13 driver, or use --device cpu'
            )
        names = {entry.name for entry in self._session.get_inputs()}
        self._takes_positions = "position_ids" in names
        empty = np.zeros((1, sizes.kv_heads, 0, sizes.head_dim), np.float32)
        self._empty = {name: empty for name in names if name.startswith("past_")}
        self._states = StateCache(prefix_cache_bytes)
        self.fingerprint = (
            f"onnxruntime-{ort.__version__} {self.device} {instruction_set()} "
            f"threads={options.intra_op_num_threads}"
        )

    def run(self, rows: Sequence[Sequence[int]], prefix_tokens: int = 0) -> np.ndarray:
        past = self._prefix(tuple(rows[0][:prefix_tokens])) if prefix_tokens else self._empty
        suffixes = [row[prefix_tokens:] for row in rows]
        (rewards,) = self._session.run(["reward"], self._feeds(suffixes, prefix_tokens, past))
        return np.asarray(rewards, np.float32)  # (B,)

    def cached_tokens(self, row: Sequence[int]) -> int:
        return self._states.longest(row)

    def _prefix(self, ids: tuple[int, ...]) -> States:
        """Key and value states of a prefix, by the name of the input that takes them."""
        states = self._states.get(ids)
        if states is None:
            outputs = [name.replace("past_", "present_") for name in self._empty]
            computed = self._session.run(outputs, self._feeds([ids], 0, self._empty))
            states = dict(zip(self._empty, computed, strict=True))  # (1, KV, P, D) each
            self._states.put(ids, states)
        return states

    def _feeds(self, rows: Sequence[Sequence[int]], past_tokens: int, past: States) -> States:
        lengths = np.array([len(row) for row in rows])  # (B,)
        longest = max(MIN_TOKENS, int(lengths.max()))
        ids = np.zeros((len(rows), longest), np.int64)  # (B, T)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = row
        feeds = {"input_ids": ids, "last_index": lengths - 1}
        if self._takes_positions:
            positions = np.arange(past_tokens, past_tokens + longest)
            feeds["position_ids"] = np.tile(positions, (len(rows), 1))
        for name, state in past.items():
            feeds[name] = np.broadcast_to(state, (len(rows), *state.shape[1:]))
        return feeds


class StateCache:
    """States of recent prefixes, the least recently used dropped first, within a cap of bytes.

    Changed by the engine's thread alone; `longest` reads a snapshot and is safe from any thread.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._entries: OrderedDict[tuple[int, ...], States] = OrderedDict()
        self._known: dict[tuple[int, ...], list[tuple[int, ...]]] = {}

    def get(self, ids: tuple[int, ...]) -> States | None:
        if ids not in self._entries:
            return None
        self._entries.move_to_end(ids)
        return self._entries[ids]

    def put(self, ids: tuple[int, ...], states: States) -> None:
        size = _nbytes(states)
        if size > self._max_bytes:
            return
        self._entries[ids] = states
        self._bytes += size
        while self._bytes > self._max_bytes:
            _, dropped = self._entries.popitem(last=False)
            self._bytes -= _nbytes(dropped)
        known: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
        for entry in self._entries:
            known.setdefault(entry[:HEAD_TOKENS], []).append(entry)
        self._known = known

    def longest(self, row: Sequence[int]) -> int:
        """Tokens of the longest kept prefix that `row` begins with and goes beyond."""
        entries = self._known.get(tuple(row[:HEAD_TOKENS]), ())
        limit = len(row) - MIN_SUFFIX_TOKENS
        return max(
            (len(e) for e in entries if len(e) <= limit and tuple(row[: len(e)]) == e), default=0
        )


def _nbytes(states: States) -> int:
    return sum(state.nbytes for state in states.values())


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


def resolve_device(device: str, supported: Sequence[str]) -> str:
    """ "cpu" or "cuda" for a request of auto, cpu or cuda. Raises DeviceUnavailable."""
    ort = _onnxruntime()
    has_cuda = "CUDAExecutionProvider" in ort.get_available_providers()
    if device == "cuda" and not has_cuda:
        raise DeviceUnavailable(
            "device cuda was asked for, but this onnxruntime has no CUDA provider; "
            'install the "gpu" extra instead of "cpu", or use --device cpu'
        )
    if device == "auto":
        usable = has_cuda and "cuda" in supported and Path("/dev/nvidiactl").exists()
        device = "cuda" if usable else "cpu"
    if device not in supported:
        raise DeviceUnavailable(f"device {device}: this variant supports {', '.join(supported)}")
    return device


def _onnxruntime() -> Any:
    """The runtime, its telemetry off: the wheel would report model and graph names by default."""
    _refuse_two_runtimes()
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # read when it is imported
    import onnxruntime

    return onnxruntime


def _refuse_two_runtimes() -> None:
    """onnxruntime and onnxruntime-gpu install the same files: the later one wins, silently."""
    installed = {
        distribution.name.lower()
        for distribution in importlib.metadata.distributions()
        if distribution.name
    }
    both = {"onnxruntime", "onnxruntime-gpu"}
    if both <= installed:
        raise DeviceUnavailable(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other; "
            "pip uninstall both, then install one of the extras cpu and gpu"
        )
