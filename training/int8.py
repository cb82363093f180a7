"""The int8 variant: weights of matrix products in 8 bits, gated by what that does to the rewards.

Weights are rounded in blocks along the reduction, activations per row and block while it runs
(com.microsoft.MatMulNBits, accuracy level 4). Dynamic quantisation has one activation scale per
tensor instead: it was faster (2.6 times fp32, this 1.2), but a row's reward moved with its
batch-mates by 12 % of the rewards' standard deviation, and by nothing here (a random model of six
layers and hidden size 384, 16 rows of 128 tokens, 2 cores of an AMD EPYC, 21 Nov 2026).
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
from scipy.stats import spearmanr

from service.bundle import Bundle
from service.config import ServiceConfig
from service.errors import TrainingError
from service.manifest import Variant
from service.pairs import Pair
from service.scorer import Scorer, score_offline
from training.data import Group
from training.evaluate import evaluate
from training.strides import narrow
from training.variants import with_variant

NAME, GRAPH = "int8", "model.int8.onnx"
BLOCK = 128
MIN_SPEARMAN = 0.99
MAX_ACCURACY_LOSS = 0.01
TOLERANCE = 1e-4
"at least, as fp32's"
ROOM = 2.0
"of the largest distance measured on the golden rows: other instruction sets round otherwise"


def add_int8(bundle: Bundle, groups: Sequence[Group]) -> Bundle:
    """Add the variant to a bundle that holds fp32, measured on held-out groups, or refuse.

    Written into the manifest: the rank correlation (Spearman) of its rewards with those of fp32,
    the change in accuracy, the largest distance of a golden score, and whether bits depend on the
    batch. Raises TrainingError where the correlation is below 0.99 or accuracy falls by over 0.01.
    """
    fp32 = bundle.manifest.variant("fp32")
    _quantize(bundle.file(fp32.ragged or fp32.graph), bundle.path / GRAPH)
    fixed = _FIXED | {"ragged": GRAPH if fp32.ragged else None}
    distance = 1e9
    bundle = with_variant(bundle, Variant(tolerance=distance, **fixed))
    exact, quantized = (_rewards(bundle, variant, groups) for variant in ("fp32", NAME))
    spearman = float(spearmanr(np.concatenate(exact), np.concatenate(quantized)).statistic)
    accuracy, before = (evaluate(groups, each)["accuracy"] for each in (quantized, exact))
    if not spearman >= MIN_SPEARMAN or not before - accuracy <= MAX_ACCURACY_LOSS:
        raise TrainingError(
            f"int8 changes the rewards too much: rank correlation with fp32 {spearman:.4f} (at "
            f"least {MIN_SPEARMAN}), accuracy {accuracy:.4f} after {before:.4f} (at most "
            f"{MAX_ACCURACY_LOSS} less); export without --variant int8"
        )
    distance, invariant = _prove(bundle)
    return with_variant(
        bundle,
        Variant(
            tolerance=max(ROOM * distance, TOLERANCE),
            **fixed | {"bit_invariant": invariant},
            spearman=spearman,
            accuracy_change=accuracy - before,
        ),
    )


_FIXED = {
    "name": NAME,
    "graph": GRAPH,
    "data": (f"{GRAPH}.data",),
    "precision": "int8",
    "devices": ("cpu",),
    "bit_invariant": False,
}


def _quantizer() -> Any:
    """The runtime's class, and the root logger as it was: importing it would set that to INFO."""
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    root.setLevel(level)
    root.handlers[:] = handlers
    return MatMulNBitsQuantizer


def _quantize(source: Path, target: Path) -> None:
    model = onnx_ir.load(source)
    onnx_ir.external_data.load_to_model(model)
    narrow(model)
    quantizer = _quantizer()(
        onnx_ir.to_proto(model), bits=8, block_size=BLOCK, is_symmetric=True, accuracy_level=4
    )
    quantizer.process()
    onnx.save(
        quantizer.model.model,
        target,
        save_as_external_data=True,
        all_tensors_to_one_file=True,
        location=f"{target.name}.data",
        size_threshold=1024,  # smaller ones are shapes, which must stay in the graph
    )


def _rewards(bundle: Bundle, variant: str, groups: Sequence[Group]) -> list[np.ndarray]:
    scorer = Scorer.open(ServiceConfig(bundle=bundle.path, variant=variant, device="cpu"))
    try:
        pairs = [Pair(group.prompt, response) for group in groups for response in group.responses]
        flat = np.array([result.reward for result in score_offline(scorer, pairs)], np.float32)
    finally:
        scorer.close()
    return np.split(flat, np.cumsum([len(group.responses) for group in groups])[:-1])


def _prove(bundle: Bundle) -> tuple[float, bool]:
    """The largest distance of a golden score, and whether bits stay whatever the batch."""
    scorer = Scorer.open(ServiceConfig(bundle=bundle.path, variant=NAME, device="cpu"))
    try:
        return scorer.verify(), scorer.reproduces_bits()
    finally:
        scorer.close()
