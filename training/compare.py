"""Two sets of rewards for the same comparisons: is one better, or was it luck? Pure."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import binomtest, chi2

from training import calibration
from training.data import Group
from training.outcomes import outcomes
from training.uncertainty import by_prompt, estimate


def compare(
    groups: Sequence[Group], first: Sequence[np.ndarray], second: Sequence[np.ndarray]
) -> dict[str, Any]:
    """Differences, second minus first, each with its paired interval; and McNemar's test.

    first, second: per group, (K,), one reward per response. Pairing keeps what makes a prompt hard
    out of the difference, so it is far more certain than the two accuracies suggest. JSON.
    """
    a, b = outcomes(groups, first), outcomes(groups, second)
    better = b.correct - a.correct  # (C,), NaN without a right answer
    losses = [calibration.loss(o.margin, o.target) for o in (a, b)]
    briers = [calibration.brier(o.margin, o.target) for o in (a, b)]
    return {
        "prompts": len(groups),
        "comparisons": len(better),
        "accuracy": {"first": estimate(a.sums(a.correct)), "second": estimate(b.sums(b.correct))},
        "accuracy_difference": estimate(a.sums(better)),
        "loss_difference": estimate(a.sums(losses[1] - losses[0])),
        "brier_difference": estimate(a.sums(briers[1] - briers[0])),
        "same_favourite": estimate(a.sums((np.sign(a.margin) == np.sign(b.margin)) * 1.0)),
        "mcnemar": mcnemar(better[np.isfinite(better)], a.prompt[np.isfinite(better)]),
    }


def mcnemar(better: np.ndarray, prompt: np.ndarray) -> dict[str, Any]:
    """McNemar's test on (C,) differences of correctness; only their signs count.

    p: exact and two-sided (a sign test), as if comparisons were independent. p_by_prompt: with the
    net wins of a prompt as one observation, X = (sum d)^2 / sum d^2 on one degree of freedom
    (Obuchowski 1998); where every prompt has one comparison it is McNemar's without correction.
    """
    sign = np.sign(better)
    wins, losses = int((sign > 0).sum()), int((sign < 0).sum())
    net = by_prompt(prompt, sign)[:, 0]  # (G,)
    squares = float((net**2).sum())
    return {
        "only_first_right": losses,
        "only_second_right": wins,
        "p": float(binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0,
        "p_by_prompt": float(chi2.sf(net.sum() ** 2 / squares, 1)) if squares else 1.0,
    }
