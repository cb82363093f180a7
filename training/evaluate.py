"""How good the rewards are, and how sure of it one can be. Pure: rewards in, numbers out."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from service.errors import DataError
from training import calibration
from training.best_of_n import curve
from training.data import Group
from training.length import length_bias
from training.outcomes import Outcomes, outcomes
from training.uncertainty import RESAMPLES, by_prompt, estimate, interval, ratio
from training.watch import TIE


def evaluate(
    groups: Sequence[Group],
    rewards: Sequence[np.ndarray],
    resamples: int = RESAMPLES,
    seed: int = 0,
    gold: Sequence[np.ndarray] | None = None,
    leaked: Sequence[bool] | None = None,
) -> dict[str, Any]:
    """Accuracy, calibration, length bias, subsets, best-of-n, and an alarm; JSON.

    rewards: per group, (K,), one per response. Accuracy is over all comparisons, not a mean of
    batch means; a tie of rewards counts one half; comparisons whose target is 1/2 have no right
    answer and do not count. 95 % intervals are the bootstrap's, resampled by prompt; resamples=0
    leaves out all that has one. gold: what best-of-n is measured by, per group (K,); the data's
    true rewards where there are any. leaked: per group, whether the training data has its prompt;
    the accuracy without those is then given too.
    """
    found = outcomes(groups, rewards)
    report = _summary(groups, rewards, found)
    if not resamples:
        return report
    report["accuracy_95"] = interval(found.sums(found.correct), ratio, resamples, seed)
    report |= _calibration(found)
    report["length"] = length_bias(groups, rewards, found)
    report["subsets"] = _subsets(found)
    if leaked is not None and any(leaked):
        clean = ~np.array(leaked)
        report["accuracy_without_leaked"] = estimate(found.sums(found.correct)[clean]) | {
            "prompts": int(clean.sum())
        }
    if all(group.true_rewards for group in groups):
        true = [np.array(group.true_rewards) for group in groups]
        report["true_reward_accuracy"] = _accuracy(outcomes(groups, true))
        report["spearman_within_prompt"] = spearman_within_prompt(rewards, true)
        gold = gold or true
    if gold is not None:
        report["best_of_n"] = curve(rewards, gold)
    return report


def spearman_within_prompt(
    rewards: Sequence[np.ndarray], true_rewards: Sequence[np.ndarray]
) -> float | None:
    """Mean over prompts of Spearman's rank correlation with the true reward.

    A prompt whose true rewards are all equal has none and is left out, None where all are; one
    whose rewards are all equal counts 0.
    """
    ranks = [
        0.0 if np.ptp(got) == 0 else float(spearmanr(got, true).statistic)
        for got, true in zip(rewards, true_rewards, strict=True)
        if np.ptp(true) > 0
    ]
    return float(np.mean(ranks)) if ranks else None


def _summary(
    groups: Sequence[Group], rewards: Sequence[np.ndarray], found: Outcomes
) -> dict[str, Any]:
    """What needs no resampling.

    choices: the comparisons that accuracy is over, which are not ties.
    loss: in the Bradley-Terry model, ties included, per prompt the mean over its comparisons, then
    over prompts. The margins of the data, smoothing and other likelihoods are means of training and
    not in it, so that runs compare, and ln 2 is guessing; the trained loss is in the run's log.
    collapsed: within each prompt the rewards are all but equal.
    """
    values = np.concatenate(rewards)
    losses = calibration.loss(found.margin, found.target)
    return {
        "prompts": len(groups),
        "comparisons": len(found.margin),
        "choices": int((found.target != 0.5).sum()),
        "accuracy": _accuracy(found),
        "margin": float(found.margin.mean()),
        "loss": float(ratio(by_prompt(found.prompt, losses, np.ones(len(losses)))).mean()),
        "reward_mean": float(np.mean(values)),
        "reward_std": float(np.std(values)),
        "collapsed": math.sqrt(np.square(found.margin).mean()) < TIE,
    }


def _accuracy(found: Outcomes) -> float:
    accuracy = float(ratio(found.sums(found.correct).sum(0)))
    if math.isnan(accuracy):
        raise DataError("every comparison is a tie: nothing can be right; give data with choices")
    return accuracy


def _calibration(found: Outcomes) -> dict[str, Any]:
    """Brier score, calibration error beside that of a calibrated model, fitted temperature."""
    confidences = calibration.confidence(found.margin)
    shares = calibration.observed(found.margin, found.target)
    mean, limit = calibration.ece_if_calibrated(confidences, shares)
    return {
        "brier": estimate(found.sums(calibration.brier(found.margin, found.target))),
        "temperature": calibration.temperature(found.margin, found.target, found.prompt),
        "ece": {
            "value": calibration.expected_calibration_error(confidences, shares),
            "if_calibrated": mean,
            "if_calibrated_97.5": limit,
        },
    }


def _subsets(found: Outcomes) -> dict[str, dict[str, Any]]:
    """Accuracy, None where all are ties, Brier score and calibration error of each named subset."""
    report = {}
    for name in sorted(set(found.subset) - {""}):
        inside = found.subset == name
        margin, target = found.margin[inside], found.target[inside]
        members = by_prompt(found.prompt, inside)[:, 0] > 0
        report[str(name)] = {
            "prompts": int(members.sum()),
            "comparisons": int(inside.sum()),
            "choices": int((target != 0.5).sum()),
            "accuracy": estimate(found.sums(found.correct, inside)[members]),
            "brier": float(calibration.brier(margin, target).mean()),
            "ece": calibration.expected_calibration_error(
                calibration.confidence(margin), calibration.observed(margin, target)
            ),
        }
    return report
