"""Tiny models as fp32 bundles with a packed graph beside them, for the tests of both sides."""

from pathlib import Path

import torch

from service.bundle import Bundle
from service.manifest import Normalization, Provenance, TextRules
from tests.training.families import MAX_TOKENS, tiny
from training.export import Source, write_bundle
from training.model import RewardModel
from training.paged_graph import export_paged_graph
from training.rounding import rounded
from training.run import Run

MEAN = 0.375


def source(family: str, run: Run, model: RewardModel | None = None) -> Source:
    """What a family's random bundle is made of; its text rules are the tiny run's."""
    return Source(
        name=family,
        model=model or tiny(family),
        tokenizer_json=run.tokenizer_json(),
        template=run.template(),
        rules=TextRules(
            bos_id=None,
            ending_ids=(2,),
            max_prompt_tokens=MAX_TOKENS // 2,
            max_response_tokens=MAX_TOKENS // 2,
            template_date="2026-01-01",
        ),
        normalization=Normalization(
            mean=MEAN,
            measured_mean=0.0,
            std=1.0,
            completions=1,
            reference="none: a random model",
            reference_sha256="0" * 64,
        ),
        evaluation={},
        provenance=Provenance(
            created="2026-01-01", service_version="0", base_model="random", libraries={}
        ),
    )


def written(family: str, run: Run, path: Path) -> Bundle:
    """A family's fp32 bundle, its padded graph."""
    path.mkdir()
    return write_bundle(path, source(family, run), run.reference())


def packed(family: str, path: Path, precision: torch.dtype) -> Path:
    """The packed graph of the same model."""
    path.mkdir()
    export_paged_graph(rounded(tiny(family), precision), MEAN, path / "paged.onnx")
    return path / "paged.onnx"
