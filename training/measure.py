"""A run or a bundle on preference data: scores it, then evaluates the scores."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from service.config import ServiceConfig
from service.scorer import Pair, Scorer, score_offline
from training.checkpoint import read
from training.data import Group
from training.evaluate import evaluate
from training.fit import encode_groups
from training.predict import predict_groups
from training.run import Run


def evaluate_bundle(bundle: Path, groups: Sequence[Group]) -> dict[str, Any]:
    """Through the code that serves."""
    scorer = Scorer.open(ServiceConfig(bundle=bundle))
    try:
        pairs = [Pair(group.prompt, response) for group in groups for response in group.responses]
        flat = np.array([result.reward for result in score_offline(scorer, pairs)], np.float32)
    finally:
        scorer.close()
    return evaluate(groups, np.split(flat, np.cumsum([len(g.responses) for g in groups])[:-1]))


def evaluate_run(run: Run, groups: Sequence[Group]) -> dict[str, Any]:
    """Through torch."""
    model = read(run.model)
    encoded, _ = encode_groups(run.encoder(), groups)
    mean = np.float32(model.config.mean)
    return evaluate(groups, [rewards - mean for rewards in predict_groups(model, encoded)])
