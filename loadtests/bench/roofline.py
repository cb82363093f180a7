"""The least work that rewards need, and how fast this machine does such work. Knows no server.

Work: every distinct token prefix is computed once. Linear layers take 2 FLOP per parameter and
token, attention takes 4 x layers x width for every query and key it compares (2 for the scores, 2
for the weighted sum), where width is heads x head size. Embedding, norms and softmax count nothing.
That is the roofline. A reward is read at one token, so the last layer could do with the keys and
values of all tokens and the rest of it for that token alone: `pruned_flop` counts that.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from service.manifest import Architecture

CUBE = 2048
"side of the square matrices; 4096 and the model's own shapes are within 6 % of it"
SECONDS = 0.25
"per library and call"


@dataclass(frozen=True, slots=True)
class Work:
    """Tokens and query-key comparisons of distinct prefixes; rows and the keys their ends see."""

    tokens: int
    compared: int
    rows: int = 0
    read: int = 0

    def flop(self, sizes: Architecture) -> float:
        linear = sizes.parameters - sizes.vocab_size * sizes.hidden_size
        width = sizes.heads * sizes.head_dim
        return 2.0 * linear * self.tokens + 4.0 * sizes.layers * width * self.compared

    def pruned_flop(self, sizes: Architecture) -> float:
        """With the last layer computed for the last token of every distinct row alone."""
        linear = (sizes.parameters - sizes.vocab_size * sizes.hidden_size) / sizes.layers
        states = 2 * sizes.hidden_size * sizes.kv_heads * sizes.head_dim
        width = sizes.heads * sizes.head_dim
        saved = 2.0 * (linear - states) * (self.tokens - self.rows)
        return self.flop(sizes) - saved - 4.0 * width * (self.compared - self.read)


def distinct(rows: Sequence[Sequence[int]]) -> Work:
    """The work of a trie over the rows: a token that follows the same tokens is computed once.

    The token at position p (from 0) is compared with p + 1 keys. Sorted rows lie in the order of
    the trie, so what a row adds begins where it leaves the row before it.

    >>> distinct([[5, 6, 7], [5, 6, 8, 9]])
    Work(tokens=5, compared=13, rows=2, read=7)
    """
    unique = sorted(set(map(tuple, rows)))
    tokens = compared = 0
    before: tuple[int, ...] = ()
    for row in unique:
        known = _common(before, row)
        tokens += len(row) - known
        compared += (len(row) * (len(row) + 1) - known * (known + 1)) // 2
        before = row
    return Work(tokens, compared, len(unique), sum(map(len, unique)))


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    for i, (a, b) in enumerate(zip(first, second, strict=False)):
        if a != b:
            return i
    return min(len(first), len(second))


class Gemm:
    """fp32 matrix products of three libraries on `threads` threads; the fastest is the ceiling."""

    def __init__(self, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        random = np.random.default_rng(0)
        a, b = random.random((2, CUBE, CUBE), np.float32)
        first, second = torch.from_numpy(a), torch.from_numpy(b)
        session = _matmul(b, threads)
        self._products: dict[str, Callable[[], Any]] = {
            "onnxruntime": lambda: session.run(None, {"a": a}),
            "numpy": lambda: a @ b,
            "torch": lambda: torch.mm(first, second),
        }
        for product in self._products.values():
            product()

    def rates(self) -> dict[str, float]:
        """FLOP/s by library: of the fastest call, since whatever disturbs only slows down."""
        return {name: _fastest(product) for name, product in self._products.items()}


def _fastest(product: Callable[[], Any]) -> float:
    seconds, until = [], time.perf_counter() + SECONDS
    while time.perf_counter() < until:
        started = time.perf_counter()
        product()
        seconds.append(time.perf_counter() - started)
    return 2.0 * CUBE**3 / min(seconds)


def _matmul(weights: np.ndarray, threads: int) -> Any:
    """A session of one MatMul with constant weights, which the runtime packs as it does a layer."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["a", "w"], ["c"])],
        "gemm",
        [value("a", TensorProto.FLOAT, [CUBE, CUBE])],
        [value("c", TensorProto.FLOAT, [CUBE, CUBE])],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(model.SerializeToString(), options)
