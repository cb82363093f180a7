"""What length alone explains: of the choices, and of the rewards. Pure.

Length is in characters, so that it needs no tokenizer and compares across models. Optimising a
reward that pays for length gives long answers (Singhal et al. 2023, arXiv 2310.03716).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import rankdata

from training.data import Group
from training.outcomes import Outcomes, agreement
from training.uncertainty import by_prompt, estimate

MATCHED = 0.1
"a pair is length-matched when its lengths differ by at most this share of the longer"


def length_bias(
    groups: Sequence[Group], rewards: Sequence[np.ndarray], found: Outcomes
) -> dict[str, Any]:
    """Estimates with intervals by prompt; all but the correlations are shares of comparisons.

    longer_wins: accuracy of "the longer is better". matched: accuracy of the rewards on pairs of
    like length. longer_preferred, shorter_preferred: their accuracy where people preferred the
    longer, the shorter. model_prefers_longer: how often the rewards do, whatever people chose.
    """
    correct, target = found.correct, found.target
    longer = agreement(found.longer.astype(np.float64), target)
    unequal = found.longer != 0
    prefers = (np.sign(found.margin) * np.sign(found.longer) + 1) / 2
    close = np.abs(found.longer) <= MATCHED * found.length
    return {
        "longer_wins": estimate(found.sums(longer)),
        "matched": estimate(found.sums(correct, close)) | {"comparisons": int(close.sum())},
        "longer_preferred": estimate(found.sums(correct, longer == 1)),
        "shorter_preferred": estimate(found.sums(correct, longer == 0)),
        "model_prefers_longer": estimate(found.sums(prefers, unequal)),
        "spearman": correlation(*_ranked(groups, rewards)),
        "within_prompt": correlation(*_centred(groups, rewards)),
    }


def correlation(prompt: np.ndarray, x: np.ndarray, y: np.ndarray) -> dict[str, object]:
    """Pearson's r of (N,) and (N,) and its interval by prompt, (N,)."""
    return estimate(by_prompt(prompt, np.ones(len(x)), x, y, x * x, y * y, x * y), _pearson)


def _pearson(sums: np.ndarray) -> np.ndarray:
    n, x, y, xx, yy, xy = np.moveaxis(sums, -1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        spread = (xx - x * x / n) * (yy - y * y / n)
        return (xy - x * y / n) / np.sqrt(np.where(spread <= 0, np.nan, spread))


def _flat(groups: Sequence[Group]) -> tuple[np.ndarray, list[np.ndarray]]:
    lengths = [np.array([len(r) for r in group.responses], np.float64) for group in groups]
    return np.repeat(np.arange(len(groups)), [len(v) for v in lengths]), lengths


def _ranked(
    groups: Sequence[Group], rewards: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ranks over all completions, in (-1, 1): Pearson's r of ranks is Spearman's."""
    prompt, lengths = _flat(groups)
    ranks = [rankdata(np.concatenate(values)) for values in (rewards, lengths)]
    return prompt, *(2 * rank / (len(rank) + 1) - 1 for rank in ranks)


def _centred(
    groups: Sequence[Group], rewards: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rewards and lengths without their prompt's mean: what a policy can gain within a prompt."""
    prompt, lengths = _flat(groups)
    centred = [
        np.concatenate([v.astype(np.float64) - v.astype(np.float64).mean() for v in values])
        for values in (rewards, lengths)
    ]
    return prompt, centred[0], centred[1]
