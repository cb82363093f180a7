"""Token ids -> rewards of a bidirectional model. Knows arrays; knows nothing of text."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from service.bundle import Bundle
from service.engine import _onnxruntime, _out_of_memory, resolve_device
from service.errors import BundleError, DeviceUnavailable
from service.machine import instruction_set, usable_cpus
from service.manifest import Variant
from service.planner import MIN_TOKENS


class EncoderEngine:
    """An encoder graph on ONNX Runtime: rows padded on the right, with a mask.

    Every token attends to every other, so the states of a prompt depend on its response: a shared
    prefix is computed with each row and nothing is kept between runs.
    """

    def __init__(self, bundle: Bundle, variant: str, device: str, threads: int = 0) -> None:
        if bundle.manifest.architecture.kind != "bidirectional":
            raise BundleError(f"not a bidirectional model: {bundle.manifest.name}")
        chosen = bundle.manifest.variant(variant)
        self.device = resolve_device(device, chosen.devices)
        threads = threads or usable_cpus()
        self._session = _open(bundle, chosen, self.device, threads)
        self.fingerprint = (
            f"onnxruntime-{_onnxruntime().__version__} {self.device} {instruction_set()} "
            f"threads={threads}"
        )

    def run(self, rows: Sequence[Sequence[int]], prefix_tokens: int = 0) -> np.ndarray:
        """B rows -> (B,) float32 rewards; `prefix_tokens` saves nothing here."""
        longest = max(MIN_TOKENS, max(map(len, rows)))
        ids = np.zeros((len(rows), longest), np.int64)  # (B, T)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = row
        lengths = np.array([[len(row)] for row in rows])  # (B, 1)
        mask = (np.arange(longest) < lengths).astype(np.int64)
        try:
            (rewards,) = self._session.run(["reward"], {"input_ids": ids, "attention_mask": mask})
        except Exception as error:
            if not _out_of_memory(error):
                raise
            raise MemoryError(str(error)) from error
        return np.asarray(rewards, np.float32)  # (B,)

    def cached_tokens(self, row: Sequence[int]) -> int:
        return 0


def _open(bundle: Bundle, variant: Variant, device: str, threads: int) -> Any:
    ort = _onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3
    cuda: list[Any] = [("CUDAExecutionProvider", {"use_tf32": "0"})] if device == "cuda" else []
    file = os.fspath(bundle.file(variant.graph))
    try:
        session = ort.InferenceSession(file, options, providers=[*cuda, "CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has a dozen classes for it
        raise BundleError(
            f"{variant.graph}: ONNX Runtime cannot open it: {error}", field=variant.graph
        ) from error
    if cuda and session.get_providers()[0] != "CUDAExecutionProvider":
        raise DeviceUnavailable(
            "device cuda was asked for, but ONNX Runtime could not start its CUDA provider; "
            "use --device cpu"
        )
    return session
