"""Token ids -> rewards in a fixed set of padded shapes. Knows arrays; knows nothing of text.

How a GPU runs any graph that takes padded rows: encoders, and decoders without paged attention.
"""

import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from service.buckets import Buckets, Shape
from service.bundle import Bundle
from service.planner import RUN_TOKENS
from service.session import onnxruntime, open_session, out_of_memory

ELEMENT_TYPES = {"tensor(float)": 1, "tensor(float16)": 10, "tensor(bfloat16)": 16}
"onnx.TensorProto's numbers: numpy has no bfloat16"
PAST = "past_"


class PaddedEngine:
    """A causal or bidirectional graph; every run has one of a few shapes, each warmed up.

    Nothing is kept between runs and no prefix is shared: states of shared prefixes would have to
    stay on the device, block by block, which is what a paged graph is for. What does not change
    (positions, the empty past) lies on the device, bound once per shape; token ids go there and
    rewards come back with each run, some 100 KB for 16,384 tokens.

    Decoders need no mask: attention is causal, so a real token never sees one that pads.
    """

    at_once, kept_tokens = 1, 0

    def __init__(
        self,
        bundle: Bundle,
        variant: str,
        device: str,
        buckets: Buckets,
        threads: int = 0,
        gpu_memory_bytes: int = 0,
    ) -> None:
        opened = open_session(
            bundle,
            variant,
            device,
            threads,
            fixed_shapes=True,
            gpu_memory_bytes=gpu_memory_bytes,
            invariant=buckets.fixed,
        )
        self._session = opened.ort
        self.device, self.fingerprint = opened.device, opened.fingerprint
        self.ahead = 1 if self.device == "cuda" else 0
        self.buckets = buckets
        self._inputs = {entry.name: entry for entry in self._session.get_inputs()}
        sizes = bundle.manifest.architecture
        self._past_shape = sizes.kv_heads, 0, sizes.head_dim
        self._bindings: dict[Shape, Any] = {}
        self._turn = threading.Lock()

    def run(self, rows: Sequence[Sequence[int]], prefix_tokens: int = 0) -> np.ndarray:
        """B rows -> (B,) float32 rewards; `prefix_tokens` saves nothing here."""
        rewards = np.empty(len(rows), np.float32)
        try:
            for members, shape in self.buckets.runs([len(row) for row in rows]):
                rewards[members] = self._run([rows[i] for i in members], shape)
        except Exception as error:
            if not out_of_memory(error):
                raise
            with self._turn:  # another thread may be at its batch
                self._bindings.clear()
            raise MemoryError(str(error)) from error
        return rewards  # (B,)

    def cached_tokens(self, row: Sequence[int]) -> int:
        return 0

    def warm(self) -> float:
        """Run every shape once, the largest first, and again the extremes; what a run costs, in
        tokens that are computed in the same time.

        Solves time = run + tokens x token over the smallest and the largest shape.
        """
        shapes = self.buckets.shapes()
        for shape in shapes:
            self._seconds(shape)
        least, most = self._seconds(shapes[-1]), self._seconds(shapes[0])
        tokens = shapes[0][0] * shapes[0][1] - shapes[-1][0] * shapes[-1][1]
        if not tokens or most <= least:
            return RUN_TOKENS
        token = (most - least) / tokens
        return max(0.0, least / token - shapes[-1][0] * shapes[-1][1])

    def _seconds(self, shape: Shape) -> float:
        started = time.perf_counter()
        self._run([[0] * shape[1]] * shape[0], shape)
        return time.perf_counter() - started

    def _run(self, rows: Sequence[Sequence[int]], shape: Shape) -> np.ndarray:
        """(len(rows),) rewards of rows that fit the shape; the rows below them are padding."""
        ids = np.zeros(shape, np.int64)  # (B, T)
        lengths = np.ones(shape[0], np.int64)  # (B,): of a row that is padding, its first token
        for i, row in enumerate(rows):
            ids[i, : len(row)] = row
            lengths[i] = len(row)
        feeds: dict[str, np.ndarray] = {"input_ids": ids}
        if "last_index" in self._inputs:
            feeds["last_index"] = lengths - 1
        if "attention_mask" in self._inputs:
            feeds["attention_mask"] = (np.arange(shape[1]) < lengths[:, None]).astype(np.int64)
        with self._turn:
            binding = self._bindings.get(shape) or self._bind(shape)
            for name, array in feeds.items():
                binding.bind_cpu_input(name, array)
            self._session.run_with_iobinding(binding)
            (rewards,) = binding.copy_outputs_to_cpu()
        return np.asarray(rewards, np.float32)[: len(rows)]

    def _bind(self, shape: Shape) -> Any:
        """Inputs that are the same in every run of this shape, on the device."""
        ort = onnxruntime()
        binding = self._session.io_binding()
        if "position_ids" in self._inputs:
            positions = np.tile(np.arange(shape[1]), (shape[0], 1))
            on_device = ort.OrtValue.ortvalue_from_numpy(positions, self.device)
            binding.bind_ortvalue_input("position_ids", on_device)
        heads, tokens, width = self._past_shape
        for name, entry in self._inputs.items():
            if name.startswith(PAST):
                empty = ort.OrtValue.ortvalue_from_shape_and_type(
                    [shape[0], heads, tokens, width], ELEMENT_TYPES[entry.type], self.device
                )
                binding.bind_ortvalue_input(name, empty)
        binding.bind_output("reward", "cpu")
        self._bindings[shape] = binding
        return binding
