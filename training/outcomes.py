"""Groups and their rewards, laid out flat: one entry per comparison. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from training.data import Group
from training.uncertainty import by_prompt


@dataclass(frozen=True, slots=True)
class Outcomes:
    """Comparisons, (C,) each, in the order of the groups.

    `correct` is 1 where the reward agrees with the choice, 1/2 where two rewards are equal, else 0;
    NaN where the target is 1/2 and nothing is right.
    """

    prompt: np.ndarray
    "index of the group"
    winner: np.ndarray
    loser: np.ndarray
    "indices into the group's responses"
    margin: np.ndarray
    "reward of the winner minus that of the loser, float64"
    target: np.ndarray
    longer: np.ndarray
    "characters of the winner minus those of the loser"
    length: np.ndarray
    "characters of the longer of the two"
    subset: np.ndarray
    "its name, empty where there is none"

    @property
    def correct(self) -> np.ndarray:
        return agreement(self.margin, self.target)

    def sums(self, values: np.ndarray, where: np.ndarray | None = None) -> np.ndarray:
        """(C,) -> (G, 2): per prompt the sum and the number of values that are neither NaN nor
        left out by `where`, (C,) bool; for `uncertainty.ratio`."""
        counted = np.isfinite(values) if where is None else np.isfinite(values) & where
        return by_prompt(self.prompt, np.where(counted, values, 0.0), counted)


def outcomes(groups: Sequence[Group], rewards: Sequence[np.ndarray]) -> Outcomes:
    """rewards: per group, (K,), one per response."""
    rows = [(i, c) for i, group in enumerate(groups) for c in group.comparisons]
    winner = np.array([c.winner for _, c in rows])
    loser = np.array([c.loser for _, c in rows])
    starts = np.cumsum([0, *(len(group.responses) for group in groups)])[:-1]
    prompt = np.array([i for i, _ in rows])
    flat = np.concatenate(rewards).astype(np.float64)  # (N,)
    lengths = np.array([len(r) for group in groups for r in group.responses])  # (N,)
    first, second = starts[prompt] + winner, starts[prompt] + loser
    return Outcomes(
        prompt=prompt,
        winner=winner,
        loser=loser,
        margin=flat[first] - flat[second],
        target=np.array([c.target for _, c in rows]),
        longer=lengths[first] - lengths[second],
        length=np.maximum(lengths[first], lengths[second]),
        subset=np.array([c.subset or "" for _, c in rows]),
    )


def agreement(difference: np.ndarray, target: np.ndarray) -> np.ndarray:
    """1 where the sign of `difference` is that of the choice, 1/2 where it is 0, NaN without one.

    >>> agreement(np.array([2.0, 0.0, 2.0, 2.0]), np.array([1.0, 1.0, 0.2, 0.5])).tolist()
    [1.0, 0.5, 0.0, nan]
    """
    agrees = (np.sign(difference) * np.sign(target - 0.5) + 1) / 2
    return np.where(target == 0.5, np.nan, agrees)
