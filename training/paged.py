"""The bf16-paged variant: a packed graph for GPUs, its rounding measured before it counts.

The graph runs on CUDA alone, so an export without a GPU cannot run it. What is measured is torch
on the CPU with the same weights in bf16, rounded where the graph rounds; that the graph computes
what torch does is tested in fp32, with its operator in numpy (tests/service/test_paged_engine.py),
and was measured on an H200 with random weights: as near to fp32 as torch in bf16 (README, GPU).
A replica replays the golden scores on its GPU before it is ready, as with every variant.
"""

from collections.abc import Sequence

import numpy as np
from scipy.stats import spearmanr

from service.bundle import Bundle
from service.errors import TrainingError
from service.manifest import Variant
from training.int8 import MIN_SPEARMAN, ROOM
from training.model import AnyRewardModel, EncoderRewardModel
from training.paged_graph import export_paged_graph, refuse_unpaged
from training.predict import predict
from training.rounding import rounded
from training.variants import with_variant

NAME, GRAPH = "bf16-paged", "model.bf16-paged.onnx"
TOLERANCE, MAX_DISTANCE = 0.02, 0.1
"""of the rewards' standard deviation: what a golden score may be off at least, and at most. bf16
keeps 8 bits: on the demo's model golden scores were off by 0.026 (2 cores of an AMD EPYC, 21 Nov
2026), the mean of squares over 500 completions by 0.027"""


def refuse_paged(model: AnyRewardModel) -> None:
    """Raise TrainingError where there can be no such variant, before anything is computed."""
    if isinstance(model, EncoderRewardModel):
        raise TrainingError(
            f"bf16-paged is for causal models; in {model.config.model_type}, an encoder, every "
            "token sees every other, so no prompt's states could be shared; export without it"
        )
    refuse_unpaged(model)


def add_paged(
    bundle: Bundle, model: AnyRewardModel, mean: float, rows: Sequence[Sequence[int]]
) -> Bundle:
    """Add the variant to a bundle that holds fp32, or refuse.

    rows: token ids of completions, at least two of different reward. Written into the manifest:
    the rank correlation (Spearman) of their rewards in bf16 with those in fp32, the tolerance of
    golden scores, and, in `evaluation`, how far bf16 was off and what that was measured with.
    """
    refuse_paged(model)
    assert not isinstance(model, EncoderRewardModel)
    copied = rounded(model)
    golden = bundle.golden()
    every = [*rows, *(row.ids for row in golden)]
    exact, coarse = (predict(each, every) - np.float32(mean) for each in (model, copied))
    off = np.abs(coarse - exact)
    std = float(exact[: len(rows)].std())
    golden_off = max(
        abs(r - row.reward) for r, row in zip(coarse[len(rows) :], golden, strict=True)
    )
    spearman = float(spearmanr(exact[: len(rows)], coarse[: len(rows)]).statistic)
    if not golden_off <= MAX_DISTANCE * std or not spearman >= MIN_SPEARMAN:
        raise TrainingError(
            f"bf16 changes the rewards too much: golden scores by {golden_off / std:.3f} of their "
            f"standard deviation (at most {MAX_DISTANCE}), rank correlation with fp32 "
            f"{spearman:.4f} (at least {MIN_SPEARMAN}); export without --variant {NAME}"
        )
    export_paged_graph(copied, mean, bundle.path / GRAPH)
    variant = Variant(
        name=NAME,
        graph=GRAPH,
        data=(f"{GRAPH}.data",),
        precision="bf16",
        devices=("cuda",),
        tolerance=max(TOLERANCE * std, ROOM * golden_off),
        bit_invariant=False,
        spearman=spearman,
    )
    measured = {
        "measured_with": "torch in bf16 on the CPU; the graph itself was not run",
        "completions": len(rows),
        "std": std,
        "golden_distance": float(golden_off),
        "largest_distance": float(off[: len(rows)].max()),
        "rms_distance": float(np.sqrt((off[: len(rows)] ** 2).mean())),
    }
    return with_variant(bundle, variant, {NAME: measured})
