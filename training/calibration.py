"""Whether sigmoid(margin) is the probability of the choice that it claims to be. Pure."""

import math

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit

from training.uncertainty import by_prompt

BINS = 15
NULL_DRAWS = 400


def brier(margin: np.ndarray, target: np.ndarray) -> np.ndarray:
    """(sigmoid(margin) - target)^2 per comparison, (C,). Guessing one half scores 0.25."""
    return (expit(margin) - target) ** 2


def loss(margin: np.ndarray, target: np.ndarray) -> np.ndarray:
    """-target log sigmoid(margin) - (1 - target) log sigmoid(-margin), (C,), in nats."""
    return target * np.logaddexp(0, -margin) + (1 - target) * np.logaddexp(0, margin)


def confidence(margin: np.ndarray) -> np.ndarray:
    """Probability that the model gives to its own favourite of the two, 0.5 to 1."""
    return expit(np.abs(margin))


def observed(margin: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Share of each choice that fell to the model's favourite, (C,): what its confidence claims.

    1/2 where it has none. Of plain choices that is 1 where it is right, else 0.

    >>> observed(np.array([2.0, -2.0, 0.0]), np.array([0.75, 0.75, 1.0])).tolist()
    [0.75, 0.25, 0.5]
    """
    return 0.5 + np.sign(margin) * (target - 0.5)


def bin_of(confidences: np.ndarray, bins: int = BINS) -> np.ndarray:
    """(C,) -> (C,) index of the bin; bins hold equally many comparisons, within one."""
    order = np.argsort(confidences, kind="stable")
    found = np.empty(len(order), np.int64)
    for i, members in enumerate(np.array_split(order, min(bins, len(order)))):
        found[members] = i
    return found


def expected_calibration_error(
    confidences: np.ndarray, shares: np.ndarray, bins: int = BINS
) -> float:
    """Mean over bins, by size, of |accuracy - mean confidence| (Guo et al. 2017, eq. 3).

    shares (C,): `observed`; their mean is the accuracy, where choices are plain.

    Bins of equal mass, since those of equal width are near empty where few margins fall (Nixon et
    al. 2019). Never below 0, so a calibrated model does not score 0: see `ece_if_calibrated`.
    """
    members = bin_of(confidences, bins)
    return float(np.abs(np.bincount(members, confidences - shares)).sum() / len(confidences))


def ece_if_calibrated(
    confidences: np.ndarray,
    shares: np.ndarray,
    bins: int = BINS,
    draws: int = NULL_DRAWS,
    seed: int = 0,
) -> tuple[float, float]:
    """(mean, 97.5th percentile) of the error of a perfectly calibrated model.

    The same confidences with shares drawn from them, independently (consistency resampling,
    Broecker and Smith 2007), as widely as those of the data spread: a plain choice is drawn whole,
    votes of n people have 1/n of its variance, a probability none. An error below the second number
    is no evidence of miscalibration.
    """
    rng = np.random.default_rng(seed)
    members, spread = bin_of(confidences, bins), dispersion(confidences, shares)
    errors = []
    for _ in range(draws):
        choices = rng.random(len(members)) < confidences
        off = np.where(rng.random(len(members)) < spread, confidences - choices, 0.0)
        errors.append(np.abs(np.bincount(members, off)).sum() / len(members))
    return float(np.mean(errors)), float(np.percentile(errors, 97.5))


def dispersion(confidences: np.ndarray, shares: np.ndarray) -> float:
    """Variance of a calibrated model's shares over that of plain choices, 0 to 1.

    A share s of mean p has E[s (1 - s)] = p (1 - p) - Var s, and a plain choice Var s = p (1 - p).
    """
    plain = float((confidences * (1 - confidences)).sum())
    return max(0.0, 1 - float((shares * (1 - shares)).sum()) / plain) if plain else 0.0


def temperature(
    margin: np.ndarray, target: np.ndarray, prompt: np.ndarray
) -> dict[str, float] | None:
    """The T for which sigmoid(margin / T) has the lowest loss (Guo et al. 2017, section 4.2).

    T > 1: the margins claim too much. {"value", "low", "high"}: the interval is that of
    log T, from the sandwich variance with one score per prompt (Liang and Zeger 1986). None where
    no T is best: every choice is predicted, or the margins are no better than chance.
    """

    def score(slope: float) -> np.ndarray:
        return margin * (expit(slope * margin) - target)  # (C,), derivative of the loss

    unit = 1 / max(float(np.abs(margin).mean()), 1e-300)
    limit = (np.abs(margin) * np.abs((margin > 0) - target)).sum()  # score(slope) as slope grows
    if not score(0.0).sum() < 0 or not limit > 0 or not np.isfinite(unit):
        return None
    high = unit
    while score(high).sum() <= 0:
        high *= 2
    slope = float(brentq(lambda s: score(s).sum(), 0.0, high, xtol=1e-12 * unit))
    p = expit(slope * margin)
    curvature = float((margin**2 * p * (1 - p)).sum())
    scores = by_prompt(prompt, score(slope))[:, 0]
    prompts = len(scores)
    error = math.sqrt((scores**2).sum() * prompts / max(prompts - 1, 1)) / curvature / slope
    value = 1 / slope
    with np.errstate(over="ignore"):
        spread = float(np.exp(1.96 * error))
    if not math.isfinite(value * spread):  # a slope that nothing tells from 0
        return None
    return {"value": value, "low": value / spread, "high": value * spread}
