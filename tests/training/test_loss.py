"""The likelihoods against published numbers, closed forms, brute force and autograd."""

import doctest
import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from service.errors import DataError, TrainingError
from tests.conftest import CONFIGS
from training import batches, loss
from training.batches import EncodedGroup, collate
from training.config import Loss, read_config
from training.data import Comparison
from training.encoding import check_likelihood
from training.gradient import batch_loss
from training.loss import (
    bradley_terry,
    centring,
    plackett_luce,
    rao_kupper,
    scaled_bradley_terry,
    smoothed,
)

margins = st.floats(-20, 20)
REWARDS = torch.tensor([0.3, -1.2, 2.0, 0.9], dtype=torch.float64)


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize("module", [loss, batches])
def test_the_examples_in_the_docstrings_hold(module) -> None:
    result = doctest.testmod(module)
    assert result.failed == 0 and result.attempted > 0


@pytest.mark.parametrize(
    ("winner", "loser", "expected"),
    [(2.1, 0.8, 0.2410), (1.8, 1.2, 0.4375), (2.5, 1.5, 0.3133)],
)
def test_published_examples_and_their_mean(winner: float, loser: float, expected: float) -> None:
    assert bradley_terry(torch.tensor(winner - loser)).item() == pytest.approx(expected, abs=5e-5)
    assert pytest.approx(0.3306, abs=5e-5) == (0.2410 + 0.4375 + 0.3133) / 3


@pytest.mark.parametrize(("target", "margin"), [(0.5, 0.0), (0.8, 0.0), (1.0, 1.5)])
def test_soft_targets_and_target_margins(target: float, margin: float) -> None:
    got = bradley_terry(torch.tensor(0.75), target, margin).item()
    p = _sigmoid(0.75 - margin)
    assert got == pytest.approx(-target * math.log(p) - (1 - target) * math.log(1 - p), abs=1e-6)


def test_large_gaps_stay_finite() -> None:
    assert bradley_terry(torch.tensor([600.0, -600.0])).tolist() == [0.0, 600.0]


def test_half_precision_is_widened_before_anything_is_computed() -> None:
    assert bradley_terry(torch.tensor([600.0], dtype=torch.bfloat16)).dtype == torch.float32


@given(margins, st.floats(0.5, 3))
def test_a_strength_scales_the_gradient_and_not_the_optimum(margin: float, strength: float) -> None:
    """d/dm of s * -log sigmoid(m) is -s * sigmoid(-m)."""
    m = torch.tensor(margin, dtype=torch.float64, requires_grad=True)
    scaled_bradley_terry(m, strength).backward()
    assert m.grad.item() == pytest.approx(-strength * _sigmoid(-margin), abs=1e-12)


@given(margins, st.floats(0.05, 2))
def test_win_loss_and_tie_are_all_there_is(margin: float, threshold: float) -> None:
    """Rao & Kupper: P(i beats j) = a / (a + t b) with strengths a, b and t = exp(threshold)."""
    got = rao_kupper(
        torch.full((3,), margin, dtype=torch.float64), torch.tensor([1, 0.5, 0]), threshold
    )
    win, tie, lose = got.neg().exp().tolist()
    a, t = math.exp(margin), math.exp(threshold)
    assert win == pytest.approx(a / (a + t), rel=1e-9)
    assert lose == pytest.approx(1 / (1 + t * a), rel=1e-9)
    assert win + tie + lose == pytest.approx(1, abs=1e-9)


def test_equals_tie_with_probability_tanh_of_half_the_threshold() -> None:
    got = rao_kupper(torch.zeros(1), torch.tensor([0.5]), 0.5).neg().exp().item()
    assert got == pytest.approx(math.tanh(0.25), rel=1e-6)


def test_a_tie_pulls_the_rewards_together() -> None:
    m = torch.tensor(1.0, requires_grad=True)
    rao_kupper(m, torch.tensor(0.5), 0.5).backward()
    assert m.grad.item() > 0  # descending makes the margin smaller


@given(st.integers(2, 5), st.integers(0, 1000))
def test_rankings_have_probabilities_that_sum_to_one(k: int, seed: int) -> None:
    """Over all k! orders; each is the product of its choices, exp(r) / sum of exp of the rest."""
    rewards = torch.randn(k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    total = 0.0
    for order in itertools.permutations(range(k)):
        ranked = rewards[list(order)]
        brute = math.prod((ranked[i].exp() / ranked[i:].exp().sum()).item() for i in range(k - 1))
        assert plackett_luce(ranked).sum().neg().exp().item() == pytest.approx(brute, rel=1e-9)
        total += brute
    assert total == pytest.approx(1, abs=1e-9)


def test_a_ranking_of_two_is_bradley_terry() -> None:
    got = plackett_luce(torch.tensor([1.3, 0.0]))
    assert got.item() == pytest.approx(bradley_terry(torch.tensor(1.3)).item(), abs=1e-7)


@given(margins, st.floats(0, 0.49))
def test_smoothing_is_the_expected_loss_under_flipped_labels(margin: float, share: float) -> None:
    m = torch.tensor(margin, dtype=torch.float64)
    got = bradley_terry(m, smoothed(1.0, share)).item()
    expected = (1 - share) * bradley_terry(m).item() + share * bradley_terry(-m).item()
    assert got == pytest.approx(expected, rel=1e-9)


def test_the_optimum_under_smoothing_is_finite() -> None:
    """sigmoid(m) = 1 - share there, so m = log((1 - share) / share)."""
    m = torch.tensor(math.log(0.9 / 0.1), dtype=torch.float64, requires_grad=True)
    bradley_terry(m, smoothed(1.0, 0.1)).backward()
    assert m.grad.item() == pytest.approx(0, abs=1e-12)


def test_centring_sees_the_shift_that_the_likelihood_does_not() -> None:
    assert centring(torch.tensor([2.0]), torch.tensor([1.0])).tolist() == [9.0]
    assert centring(torch.tensor([0.5]), torch.tensor([-0.5])).tolist() == [0.0]


PAIRS = (Comparison(2, 3), Comparison(2, 0), Comparison(2, 1), Comparison(3, 0),
         Comparison(3, 1), Comparison(0, 1))  # fmt: skip
RANKED = [2, 3, 0, 1]


def _brute(settings: Loss, comparisons: tuple[Comparison, ...]) -> float:
    """The definition, in Python numbers, over all pairs of one group."""
    r, terms = REWARDS.tolist(), []
    if settings.likelihood == "plackett-luce":
        for i in range(3):
            rest = sum(math.exp(r[j]) for j in RANKED[i:])
            terms.append(-math.log(math.exp(r[RANKED[i]]) / rest))
    for c in comparisons if not terms else ():
        m, t = r[c.winner] - r[c.loser], c.target
        if settings.likelihood == "rao-kupper":
            h = settings.tie_threshold
            win, lose = _sigmoid(m - h), _sigmoid(-m - h)
            terms.append(-math.log({1.0: win, 0.0: lose, 0.5: 1 - win - lose}[t]))
            continue
        scaled = settings.likelihood == "scaled-bradley-terry"
        p = _sigmoid(m if scaled else m - c.target_margin)
        t = t * (1 - settings.label_smoothing) + (1 - t) * settings.label_smoothing
        terms.append(
            (c.target_margin if scaled else 1) * -(t * math.log(p) + (1 - t) * math.log(1 - p))
        )
    centred = sum((r[c.winner] + r[c.loser]) ** 2 for c in comparisons) / len(comparisons)
    return sum(terms) / len(terms) + settings.centring * centred


@pytest.mark.parametrize(
    ("settings", "comparisons"),
    [
        (Loss(), PAIRS),
        (Loss(), (Comparison(2, 3, 0.7, 0.5), Comparison(0, 1, 1.0, 1.0))),
        (Loss(label_smoothing=0.1, centring=0.01), PAIRS),
        (
            Loss(likelihood="scaled-bradley-terry"),
            (Comparison(2, 3, 1.0, 3.0), Comparison(1, 0, 1.0, 1.0)),
        ),
        (Loss(likelihood="rao-kupper"), (Comparison(2, 3, 0.5), *PAIRS[1:])),
        (Loss(likelihood="plackett-luce", centring=0.5), PAIRS),
    ],
)
def test_a_group_has_the_loss_of_its_definition(settings: Loss, comparisons: tuple) -> None:
    group = EncodedGroup([[1]] * 4, comparisons)
    batch = collate([group], ranked=settings.likelihood == "plackett-luce")
    got = batch_loss(REWARDS, batch, settings).item()
    assert got == pytest.approx(_brute(settings, comparisons), abs=1e-6)  # weights are fp32


def test_a_prompt_weighs_one_however_many_responses_it_has() -> None:
    nine = tuple(Comparison(i, j) for i, j in itertools.combinations(range(9), 2))
    groups = [EncodedGroup([[1]] * 2, (Comparison(0, 1),)), EncodedGroup([[1]] * 9, nine)]
    weight = collate(groups, prompt_weight=1.0).weight
    assert weight[0].item() == 1
    assert weight[1:].tolist() == pytest.approx([1 / math.comb(9, 2)] * 36)


@pytest.mark.parametrize(
    ("likelihood", "comparison", "message"),
    [
        ("scaled-bradley-terry", Comparison(0, 1, line=7), "line 7: .* margin, but that is 0.0"),
        ("rao-kupper", Comparison(0, 1, 0.7, line=7), "line 7: .* this one is 0.7"),
        ("plackett-luce", Comparison(0, 1, line=7), "line 7: .* 1 comparisons do not rank 3"),
        ("rao-kupper", Comparison(0, 1, 1.0, 0.5, 7), "line 7: .* no margin, but .* is 0.5; rem"),
        ("plackett-luce", Comparison(0, 1, 1.0, 0.5, 7), "line 7: .* no margin, but .* is 0.5"),
    ],
)
def test_data_that_a_likelihood_cannot_use_is_refused(likelihood, comparison, message) -> None:
    group = EncodedGroup([[1], [2], [3]], (comparison,))
    with pytest.raises(DataError, match=message):
        check_likelihood([group], Loss(likelihood=likelihood))


def test_smoothing_where_it_has_no_meaning_is_refused() -> None:
    settings = ["loss.likelihood=plackett-luce", "loss.label_smoothing=0.1"]
    with pytest.raises(TrainingError, match="label_smoothing has no meaning in plackett-luce"):
        read_config(CONFIGS / "tiny.toml", settings)
