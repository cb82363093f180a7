"""Token ids -> rewards. Knows arrays; knows nothing of text."""

import importlib.metadata
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from service.bundle import Bundle
from service.errors import BundleError, DeviceUnavailable
from service.machine import instruction_set, usable_cpus
from service.planner import MIN_TOKENS
from service.states import StateCache, States


class Engine(Protocol):
    """Computes the reward of each row. Called from one thread at a time."""

    fingerprint: str
    "runtime, version and device: with the bundle id, what decides the bits"
    device: str

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
        assert prefix_tokens == 0 or prefix_tokens >= MIN_TOKENS, "padding would become past"
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
