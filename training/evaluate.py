"""How good the rewards are. Pure: groups and their rewards in, numbers out."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from training.data import Group

LN2 = math.log(2)


def evaluate(
    groups: Sequence[Group], rewards: Sequence[np.ndarray], resamples: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Accuracy, its interval, margin, loss, and an alarm.

    rewards: per group, (K,), one per response. Accuracy is over all comparisons, not a mean of
    batch means; a tie of rewards counts one half; comparisons whose target is 1/2 have no right
    answer and do not count. The 95 % interval is the bootstrap's, resampled by prompt
    (resamples=0: none). Where the data has true rewards: Spearman within prompt, and what accuracy
    the true reward itself reaches on these noisy choices.
    """
    correct, counted, margins, losses = _comparisons(groups, rewards)
    comparisons = float(counted.sum())
    report: dict[str, Any] = {
        "prompts": len(groups),
        "comparisons": int(sum(len(group.comparisons) for group in groups)),
        "accuracy": float(correct.sum() / comparisons) if comparisons else math.nan,
        "margin": float(np.mean(np.concatenate(margins))),
        "loss": float(losses.mean()),
        "reward_mean": float(np.mean(np.concatenate(rewards))),
        "reward_std": float(np.std(np.concatenate(rewards))),
    }
    if resamples and comparisons:
        report["accuracy_95"] = _interval(correct, counted, resamples, seed)
    report["collapsed"] = abs(report["loss"] - LN2) < 1e-3 and report["reward_std"] < 1e-3
    subsets = sorted({group.subset for group in groups if group.subset})
    if subsets:
        members = {name: [i for i, g in enumerate(groups) if g.subset == name] for name in subsets}
        report["subsets"] = {
            name: {
                "prompts": len(chosen),
                "accuracy": float(correct[chosen].sum() / max(counted[chosen].sum(), 1e-9)),
            }
            for name, chosen in members.items()
        }
    if all(group.true_rewards for group in groups):
        true = [np.array(group.true_rewards) for group in groups]
        right, total, _, _ = _comparisons(groups, true)
        report["true_reward_accuracy"] = float(right.sum() / total.sum())
        report["spearman_within_prompt"] = spearman_within_prompt(rewards, true)
    return report


def spearman_within_prompt(
    rewards: Sequence[np.ndarray], true_rewards: Sequence[np.ndarray]
) -> float:
    """Mean over prompts of Spearman's rank correlation with the true reward.

    A prompt whose true rewards are all equal has none and is left out; one whose rewards are all
    equal counts 0.
    """
    ranks = [
        0.0 if np.ptp(got) == 0 else float(spearmanr(got, true).statistic)
        for got, true in zip(rewards, true_rewards, strict=True)
        if np.ptp(true) > 0
    ]
    return float(np.mean(ranks))


def _comparisons(
    groups: Sequence[Group], rewards: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray, list[np.ndarray], np.ndarray]:
    """Per group: correct comparisons, counted ones, margins, mean loss."""
    correct, counted, margins, losses = [], [], [], []
    for group, values in zip(groups, rewards, strict=True):
        winner = np.array([c.winner for c in group.comparisons])
        loser = np.array([c.loser for c in group.comparisons])
        target = np.array([c.target for c in group.comparisons])
        offset = np.array([c.target_margin for c in group.comparisons])
        margin = values[winner].astype(np.float64) - values[loser]  # (C,)
        agrees = np.sign(margin) * np.sign(target - 0.5)
        decided = target != 0.5
        correct.append(((agrees + 1) / 2)[decided].sum())
        counted.append(decided.sum())
        margins.append(margin)
        logit = margin - offset
        losses.append(
            np.mean(target * np.logaddexp(0, -logit) + (1 - target) * np.logaddexp(0, logit))
        )
    return np.array(correct), np.array(counted), margins, np.array(losses)


def _interval(
    correct: np.ndarray, counted: np.ndarray, resamples: int, seed: int
) -> tuple[float, float]:
    """Percentile bootstrap over prompts: comparisons of one prompt are not independent."""
    n = len(correct)
    draws = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples)
    accuracy = (draws @ correct) / np.maximum(draws @ counted, 1e-9)  # (resamples,)
    low, high = np.percentile(accuracy, [2.5, 97.5])
    return float(low), float(high)
