"""Intervals from resampling whole prompts. Pure; knows sums per prompt, not what they are sums of.

Comparisons of one prompt share its difficulty and its responses, so they are not independent:
prompts are drawn with replacement, each with everything that belongs to it (the cluster bootstrap,
Davison and Hinkley 1997, section 3.8; Field and Welsh 2007).
"""

from collections.abc import Callable

import numpy as np

RESAMPLES = 1000

Statistic = Callable[[np.ndarray], np.ndarray]
"(..., S) sums -> (...)"


def ratio(sums: np.ndarray) -> np.ndarray:
    """(..., 2) numerator and denominator -> (...); NaN where there is nothing to divide by."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return sums[..., 0] / np.where(sums[..., 1] == 0, np.nan, sums[..., 1])


def resampled(
    sums: np.ndarray, statistic: Statistic = ratio, resamples: int = RESAMPLES, seed: int = 0
) -> np.ndarray:
    """(G, S) sums per prompt -> (R,) the statistic of the summed-up sums of each resample."""
    rng = np.random.default_rng(seed)
    prompts = len(sums)
    drawn = np.empty((resamples, sums.shape[1]))  # (R, S)
    for row in drawn:
        counts = np.bincount(rng.integers(prompts, size=prompts), minlength=prompts)  # (G,)
        row[:] = counts.astype(np.float64) @ sums
    return statistic(drawn)


def interval(
    sums: np.ndarray, statistic: Statistic = ratio, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float] | None:
    """95 % percentile interval; None with fewer than two prompts or where it is undefined."""
    if len(sums) < 2:
        return None
    values = resampled(sums, statistic, resamples, seed)
    values = values[np.isfinite(values)]
    if not len(values):
        return None
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def estimate(
    sums: np.ndarray, statistic: Statistic = ratio, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, object]:
    """{"value", "low", "high"}: the statistic and its interval; None for what is undefined."""
    value = float(statistic(sums.sum(0)))
    bounds = interval(sums, statistic, resamples, seed) or (None, None)
    return {"value": value if np.isfinite(value) else None, "low": bounds[0], "high": bounds[1]}


def by_prompt(prompt: np.ndarray, *columns: np.ndarray) -> np.ndarray:
    """(C,) index of each row's prompt and (C,) columns -> (G, S) their sums per prompt."""
    return np.stack([np.bincount(prompt, column) for column in columns], axis=1)
