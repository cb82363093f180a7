"""The numbers behind the plots, and the pairs the rewards got most wrong. Pure; JSON."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.special import expit

from training import calibration
from training.data import Group, Prompt
from training.outcomes import Outcomes, outcomes
from training.run import plain
from training.uncertainty import by_prompt, estimate, ratio, resampled

MARGIN_BINS = 40
DOTS = 500
"completions drawn in the plot of reward against length"
WORST = 20
LONGEST_TEXT = 4000


def figures(groups: Sequence[Group], rewards: Sequence[np.ndarray]) -> dict[str, Any]:
    """rewards: per group, (K,). Margins are those of the preferred response over the other."""
    found = outcomes(groups, rewards)
    return {
        "margins": _margins(found),
        "reliability": _reliability(found),
        "length": _length(groups, rewards),
        "wrong": _wrong(groups, found),
    }


def _margins(found: Outcomes) -> dict[str, Any]:
    """Histogram; the outermost bins hold what lies beyond the 0.5th and 99.5th percentile too.

    0 is an edge, so that every bar is right or wrong as a whole; equal rewards count as right.
    """
    margin = _oriented(found)
    low, high = np.percentile(margin, [0.5, 99.5])
    width = max((max(high, 0.0) - min(low, 0.0)) / MARGIN_BINS, 1e-9)
    first, last = int(np.floor(min(low, 0.0) / width)), int(np.ceil(max(high, 0.0) / width))
    edges = np.arange(first, max(last, first + 1) + 1) * width
    counts, _ = np.histogram(np.clip(margin, edges[0], edges[-1]), edges)
    return {"edges": edges.tolist(), "counts": counts.tolist()}


def _reliability(found: Outcomes) -> list[dict[str, float]]:
    """Bins of equal mass: mean confidence, accuracy and its interval by prompt.

    Accuracy is here the share of the choices that fell to the model's favourite, ties and soft
    targets by their share: what the confidence claims.
    """
    confidences = calibration.confidence(found.margin)
    shares = calibration.observed(found.margin, found.target)
    member = calibration.bin_of(confidences)
    bins = []
    for i in range(int(member.max()) + 1):
        inside = member == i
        accuracy = estimate(found.sums(shares, inside))
        bins.append(
            {
                "confidence": float(confidences[inside].mean()),
                "accuracy": accuracy["value"],
                "low": accuracy["low"],
                "high": accuracy["high"],
                "comparisons": int(inside.sum()),
            }
        )
    return bins


def _length(groups: Sequence[Group], rewards: Sequence[np.ndarray]) -> dict[str, Any]:
    """A sample of (characters, reward), and the mean reward of each tenth by length."""
    lengths = np.array([len(r) for group in groups for r in group.responses])
    flat = np.concatenate(rewards).astype(np.float64)
    prompt = np.repeat(np.arange(len(groups)), [len(group.responses) for group in groups])
    shown = np.random.default_rng(0).permutation(len(flat))[:DOTS]
    edges = np.unique(np.percentile(lengths, np.arange(10, 100, 10)))
    member = np.searchsorted(edges, lengths, side="left")
    tenths = []
    for i in range(len(edges) + 1):
        inside = member == i
        if not inside.any():
            continue
        sums = by_prompt(prompt, flat * inside, inside)
        values = resampled(sums, ratio, 400)
        low, high = np.nanpercentile(values, [2.5, 97.5])
        tenths.append(
            {
                "characters": float(lengths[inside].mean()),
                "reward": float(flat[inside].mean()),
                "low": float(low),
                "high": float(high),
            }
        )
    dots = [[int(lengths[i]), round(float(flat[i]), 4)] for i in sorted(shown)]
    return {"dots": dots, "tenths": tenths}


def _wrong(groups: Sequence[Group], found: Outcomes) -> list[dict[str, Any]]:
    """The most confident mistakes, one per prompt, worst first."""
    margin = np.where(found.target >= 0.5, found.margin, -found.margin)
    margin[found.target == 0.5] = np.inf
    seen: set[int] = set()
    wrong = []
    for i in np.argsort(margin, kind="stable"):
        prompt = int(found.prompt[i])
        if margin[i] >= 0 or len(wrong) == WORST:
            break
        if prompt in seen:
            continue
        seen.add(prompt)
        group, pair = groups[prompt], (found.winner[i], found.loser[i])
        preferred, other = pair if found.target[i] > 0.5 else pair[::-1]
        wrong.append(
            {
                "prompt": _clipped(group.prompt),
                "preferred": _clip(group.responses[preferred]),
                "other": _clip(group.responses[other]),
                "margin": float(margin[i]),
                "confidence": float(expit(-margin[i])),
                "subset": str(found.subset[i]) or None,
            }
        )
    return wrong


def _oriented(found: Outcomes) -> np.ndarray:
    decided = found.target != 0.5
    return (found.margin * np.sign(found.target - 0.5))[decided]


def _clipped(prompt: Prompt) -> object:
    if isinstance(prompt, str):
        return _clip(prompt)
    return [{**turn, "content": _clip(turn["content"])} for turn in plain(prompt)]  # type: ignore[attr-defined]


def _clip(text: str) -> str:
    rest = len(text) - LONGEST_TEXT
    return text if rest <= 0 else f"{text[:LONGEST_TEXT]}\n[{rest:,} more characters]"
