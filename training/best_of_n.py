"""What is gained by sampling N responses and keeping the one with the highest reward. Pure."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from training.uncertainty import estimate


def kl(n: int) -> float:
    """KL divergence of best-of-n from the policy, nats: log n - (n - 1) / n.

    Stiennon et al. 2020 (arXiv 2009.01325, appendix G.3); an upper bound that is tight when no
    response comes twice (Beirami et al. 2024, arXiv 2401.01879).
    """
    return math.log(n) - (n - 1) / n


def expected_best(rewards: np.ndarray, gold: np.ndarray, n: int) -> float:
    """Mean gold reward of the response with the highest reward among n, over all subsets of n.

    rewards, gold (K,). The unbiased estimator of Nakano et al. 2021 (WebGPT, arXiv 2112.09332,
    appendix I): the i-th from below is best in C(i - 1, n - 1) of the C(K, n) subsets. Equal
    rewards share what falls to them.
    """
    k = len(rewards)
    if not 1 <= n <= k:
        raise ValueError(f"n is {n}, but there are {k} responses")
    below = np.arange(k - 1, 0, -1)  # the others, seen from the best down: no binomial overflows
    weights = (n / k * np.cumprod([1.0, *((below - (n - 1)) / below)]))[::-1]
    order = np.argsort(rewards, kind="stable")
    _, member = np.unique(rewards[order], return_inverse=True)
    mean_gold = np.bincount(member, gold[order]) / np.bincount(member)
    return float(weights @ mean_gold[member])


def curve(rewards: Sequence[np.ndarray], gold: Sequence[np.ndarray]) -> dict[str, Any]:
    """Points n = 1 .. N with the gold reward of best-of-n, and of a choice by the gold itself.

    N is the median number of responses; prompts with fewer are left out, so that every point is
    of the same prompts. Intervals by prompt.
    """
    largest = int(np.median([len(values) for values in rewards]))
    kept = [(r, g) for r, g in zip(rewards, gold, strict=True) if len(r) >= largest]
    points = []
    for n in range(1, largest + 1):
        best = np.array([[expected_best(r, g, n), 1.0] for r, g in kept])
        ceiling = float(np.mean([expected_best(g, g, n) for _, g in kept]))
        points.append({"n": n, "kl": kl(n), "gold": estimate(best), "ceiling": ceiling})
    return {"prompts": len(kept), "points": points, "share_of_ceiling": _share(points)}


def _share(points: list[dict[str, Any]]) -> float | None:
    """Of what a choice by the gold gains over a random one, how much the rewards gain; last n."""
    start, last = points[0]["gold"]["value"], points[-1]
    possible = last["ceiling"] - start
    return float((last["gold"]["value"] - start) / possible) if possible > 0 else None
