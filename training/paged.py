"""The packed variants, bf16-paged and fp16-paged: for GPUs, their rounding measured first.

The graph runs on CUDA alone, so an export without a GPU cannot run it. What is measured is torch
on the CPU with the same weights in 16 bits, rounded where the graph rounds; that the graph computes
what torch does is tested in fp32, with its operator in numpy (tests/service/test_paged_engine.py),
and was measured on GPUs with random weights: no further from fp32 than torch in bf16 (README, GPU).
A replica replays the golden scores on its GPU before it is ready, as with every variant.

fp16 keeps three bits more than bf16 and ends at 65,504: a model whose numbers are larger somewhere
is refused, and has bf16.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
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

MAX_DISTANCE = 0.1
"of the rewards' standard deviation: what a golden score may be off at most"


@dataclass(frozen=True, slots=True)
class Kind:
    """A packed variant."""

    precision: Literal["bf16", "fp16"]
    dtype: torch.dtype
    tolerance: float
    "of the rewards' standard deviation: what a golden score may be off at least"


KINDS = {
    # On the demo's model golden scores were off by 0.026, the mean of squares over 500 completions
    # by 0.027 (2 cores of an AMD EPYC, 21 Nov 2026).
    "bf16-paged": Kind("bf16", torch.bfloat16, 0.02),
    "fp16-paged": Kind("fp16", torch.float16, 0.0025),
}


def refuse_paged(model: AnyRewardModel) -> None:
    """Raise TrainingError where there can be no such variant, before anything is computed."""
    if isinstance(model, EncoderRewardModel):
        raise TrainingError(
            f"paged variants are for causal models; in {model.config.model_type}, an encoder, "
            "every token sees every other, so no prompt's states could be shared; export without "
            "--variant bf16-paged and fp16-paged"
        )
    refuse_unpaged(model)


def add_paged(
    bundle: Bundle, name: str, model: AnyRewardModel, mean: float, rows: Sequence[Sequence[int]]
) -> Bundle:
    """Add the variant of this name to a bundle that holds fp32, or refuse.

    rows: token ids of completions, at least two of different reward. Written into the manifest:
    the rank correlation (Spearman) of their rewards in 16 bits with those in fp32, the tolerance of
    golden scores, and, in `evaluation`, how far they were off and what that was measured with.
    """
    refuse_paged(model)
    assert not isinstance(model, EncoderRewardModel)
    kind, graph = KINDS[name], f"model.{name}.onnx"
    copied = rounded(model, kind.dtype)
    golden = bundle.golden()
    every = [*rows, *(row.ids for row in golden)]
    exact = predict(model, every) - np.float32(mean)
    try:
        coarse = predict(copied, every) - np.float32(mean)
    except TrainingError as error:  # fp32 has a reward for each
        raise TrainingError(
            f"{kind.precision} does not hold this model's numbers: {error.message}; export without "
            f"--variant {name}"
        ) from error
    off = np.abs(coarse - exact)
    std = float(exact[: len(rows)].std())
    golden_off = max(
        abs(r - row.reward) for r, row in zip(coarse[len(rows) :], golden, strict=True)
    )
    spearman = float(spearmanr(exact[: len(rows)], coarse[: len(rows)]).statistic)
    if not golden_off <= MAX_DISTANCE * std or not spearman >= MIN_SPEARMAN:
        raise TrainingError(
            f"{kind.precision} changes the rewards too much: golden scores by "
            f"{golden_off / std:.3f} of their standard deviation (at most {MAX_DISTANCE}), rank "
            f"correlation with fp32 {spearman:.4f} (at least {MIN_SPEARMAN}); export without "
            f"--variant {name}"
        )
    export_paged_graph(copied, mean, bundle.path / graph)
    variant = Variant(
        name=name,
        graph=graph,
        data=(f"{graph}.data",),
        precision=kind.precision,
        devices=("cuda",),
        tolerance=max(kind.tolerance * std, ROOM * golden_off),
        bit_invariant=False,
        spearman=spearman,
    )
    measured = {
        "measured_with": f"torch in {kind.precision} on the CPU; the graph itself was not run",
        "completions": len(rows),
        "std": std,
        "golden_distance": float(golden_off),
        "largest_distance": float(off[: len(rows)].max()),
        "rms_distance": float(np.sqrt((off[: len(rows)] ** 2).mean())),
    }
    return with_variant(bundle, variant, {name: measured})
