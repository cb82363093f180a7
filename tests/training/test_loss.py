"""The preference likelihood against published numbers and against brute force."""

import doctest
import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from training import fit, loss
from training.data import Comparison
from training.fit import EncodedGroup, batch_loss, collate
from training.loss import preference_loss


@pytest.mark.parametrize("module", [loss, fit])
def test_the_examples_in_the_docstrings_hold(module) -> None:
    result = doctest.testmod(module)
    assert result.failed == 0 and result.attempted > 0


@pytest.mark.parametrize(
    ("winner", "loser", "expected"),
    [(2.1, 0.8, 0.2410), (1.8, 1.2, 0.4375), (2.5, 1.5, 0.3133)],
)
def test_published_examples(winner: float, loser: float, expected: float) -> None:
    got = preference_loss(torch.tensor([winner, loser]), torch.tensor([0]), torch.tensor([1]))
    assert got.item() == pytest.approx(expected, abs=5e-5)


def test_their_mean_is_0_3306() -> None:
    rewards = torch.tensor([0.8, 2.1, 1.8, 1.2, 1.5, 2.5])
    got = preference_loss(rewards, torch.tensor([1, 2, 5]), torch.tensor([0, 3, 4]))
    assert got.mean().item() == pytest.approx(0.3306, abs=5e-5)


@given(st.integers(2, 9), st.integers(0, 10_000))
def test_k_wise_is_the_mean_over_all_pairs(k: int, seed: int) -> None:
    rewards = torch.randn(k, generator=torch.Generator().manual_seed(seed)) * 3
    pairs = list(itertools.combinations(range(k), 2))  # i is preferred to every later j
    brute = sum(-math.log(1 / (1 + math.exp(rewards[j] - rewards[i]))) for i, j in pairs)
    batch = collate([EncodedGroup([[1]] * k, tuple(Comparison(i, j) for i, j in pairs))])
    got = batch_loss(rewards, batch).item()
    assert got == pytest.approx(brute / math.comb(k, 2), abs=1e-6)


def test_a_prompt_weighs_the_same_however_many_responses_it_has() -> None:
    groups = [
        EncodedGroup([[1]] * 2, (Comparison(0, 1),)),
        EncodedGroup(
            [[1]] * 9, tuple(Comparison(i, j) for i, j in itertools.combinations(range(9), 2))
        ),
    ]
    weight = collate(groups)["weight"]
    assert weight[0].item() == pytest.approx(0.5)
    assert weight[1:].sum().item() == pytest.approx(0.5)


@pytest.mark.parametrize(("target", "margin"), [(0.5, 0.0), (0.8, 0.0), (1.0, 1.5)])
def test_soft_targets_and_margins(target: float, margin: float) -> None:
    rewards = torch.tensor([1.0, 0.25])
    got = preference_loss(rewards, torch.tensor([0]), torch.tensor([1]), target, margin).item()
    p = 1 / (1 + math.exp(-(0.75 - margin)))
    assert got == pytest.approx(-target * math.log(p) - (1 - target) * math.log(1 - p), abs=1e-6)


def test_large_gaps_stay_finite() -> None:
    rewards = torch.tensor([300.0, -300.0])
    both = preference_loss(rewards, torch.tensor([0, 1]), torch.tensor([1, 0]))
    assert both.tolist() == [0.0, 600.0]
