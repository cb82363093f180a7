"""Products over widths that are multiples of 1,024, and over 16 columns more (training/strides.py).

python -m loadtests.strides        some seconds, nothing else running
"""

import time

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from service.session import onnxruntime
from training.strides import MORE

ROWS, TURNS = 1024, 25
SHAPES = ((1024, 384), (1024, 1024), (2048, 384), (3072, 1024))
"columns on the left, columns of the weights"


def main() -> None:
    random = np.random.default_rng(0)
    for columns, outputs in SHAPES:
        sizes = columns, columns + MORE
        lefts = [random.random((ROWS, size), np.float32) for size in sizes]
        sessions = [_product(random.random((size, outputs), np.float32)) for size in sizes]
        fastest = [np.inf, np.inf]
        for _ in range(TURNS):
            for i, (session, left) in enumerate(zip(sessions, lefts, strict=True)):
                started = time.perf_counter()
                session.run(None, {"a": left})
                fastest[i] = min(fastest[i], time.perf_counter() - started)
        rates = [2e-9 * ROWS * s * outputs / f for s, f in zip(sizes, fastest, strict=True)]
        print(
            f"{ROWS} x {columns} x {outputs}: {rates[0]:.0f} GFLOP/s, over {MORE} more columns "
            f"{rates[1]:.0f}: {rates[0] / rates[1]:.2f}"
        )


def _product(weights: np.ndarray) -> object:
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["a", "w"], ["c"])],
        "product",
        [helper.make_tensor_value_info("a", TensorProto.FLOAT, [ROWS, weights.shape[0]])],
        [helper.make_tensor_value_info("c", TensorProto.FLOAT, [ROWS, weights.shape[1]])],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    ort = onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1  # a second one would still spin when the other session runs
    return ort.InferenceSession(model.SerializeToString(), options)


if __name__ == "__main__":
    main()
