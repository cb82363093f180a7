"""A run or a bundle on preference data: opens it, scores with it. A bundle is scored by the code
that serves, a run, which has no graph yet, by torch behind the same text rules."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from service import bundle as bundles
from service.config import ServiceConfig
from service.errors import TrainingError
from service.pairs import Pair
from service.scorer import Scorer, score_offline
from service.text import Encoder
from training.config import Text
from training.data import Group
from training.evaluate import evaluate
from training.run import Run


def score(source: Path, groups: Sequence[Group]) -> list[np.ndarray]:
    """Rewards of a bundle or a run directory, per group (K,) float32."""
    if is_bundle(source):
        return score_bundle(source, groups)
    return score_run(Run.open(source), groups)


def score_bundle(bundle: Path, groups: Sequence[Group]) -> list[np.ndarray]:
    """Through the code that serves."""
    scorer = Scorer.open(ServiceConfig(bundle=bundle))
    try:
        pairs = [Pair(group.prompt, response) for group in groups for response in group.responses]
        flat = np.array([result.reward for result in score_offline(scorer, pairs)], np.float32)
    finally:
        scorer.close()
    return np.split(flat, np.cumsum([len(group.responses) for group in groups])[:-1])


def score_run(run: Run, groups: Sequence[Group]) -> list[np.ndarray]:
    """Through torch."""
    from training.checkpoint import read
    from training.encoding import encode_groups
    from training.predict import predict_groups

    model = read(run.model)
    encoded = encode_groups(run.encoder(), groups)
    mean = np.float32(model.config.mean)
    return [rewards - mean for rewards in predict_groups(model, encoded)]


def evaluate_bundle(bundle: Path, groups: Sequence[Group]) -> dict[str, Any]:
    return evaluate(groups, score_bundle(bundle, groups))


def evaluate_run(run: Run, groups: Sequence[Group]) -> dict[str, Any]:
    return evaluate(groups, score_run(run, groups))


def is_bundle(source: Path) -> bool:
    return (source / bundles.MANIFEST).is_file()


def origin(source: Path) -> dict[str, Any]:
    """What a bundle or a run says of itself, for a report: name and where it comes from."""
    if is_bundle(source):
        manifest = bundles.load(source).manifest
        return {
            "name": manifest.name,
            "bundle": manifest.id,
            "scored_by": f"{manifest.name}, through the code that serves",
            "normalization": manifest.normalization
            and manifest.normalization.model_dump(mode="json"),
            "libraries": manifest.provenance.libraries,
        }
    report = Run.open(source).read_report()
    kept = ("name", "created", "scored_by", "normalization", "libraries")
    return {name: report[name] for name in kept if name in report}


def open_encoder(source: Path, limits: Mapping[str, int]) -> Encoder:
    """The encoder of a bundle, a run or a checkpoint directory; `limits` are for the last one."""
    is_run = (source / "text.json").is_file()
    if limits and (is_run or is_bundle(source)):
        raise TrainingError(
            f"{source}: has limits of its own; {', '.join(limits)} are for checkpoints"
        )
    if is_run:
        return Run(source).encoder()
    if is_bundle(source):
        return Encoder.of(bundles.load(source))
    if not (source / bundles.TOKENIZER).is_file():
        raise TrainingError(f"{source}: neither a bundle, nor a run, nor a checkpoint directory")
    from training.pipeline import open_tokenizer
    from training.rules import text_rules

    text = Text.model_validate(limits)
    tokenizer = open_tokenizer(source, text)
    rules = text_rules(tokenizer, text)
    return Encoder(tokenizer.backend_tokenizer.to_str(), tokenizer.chat_template, rules)
