"""Every estimator against an answer known otherwise: brute force, closed form, simulation."""

import math
from fractions import Fraction
from itertools import combinations, product

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import expit
from scipy.stats import bootstrap, chi2, pearsonr, spearmanr
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, log_loss

from training import calibration
from training.best_of_n import curve, expected_best, kl
from training.compare import compare, mcnemar
from training.data import Comparison, Group
from training.evaluate import evaluate
from training.length import correlation, length_bias
from training.outcomes import outcomes
from training.report.figures import figures
from training.uncertainty import by_prompt, estimate, interval, ratio, resampled

SIMULATIONS = 300
COVERED = (0.91, 0.98)
"""0.95 with four standard errors of 300 simulations, sqrt(.95 * .05 / 300) = 0.013, below it, and
what discreteness adds above"""


def _clustered(rng: np.random.Generator, prompts: int, each: int) -> tuple[np.ndarray, np.ndarray]:
    """(C,) prompt, (C,) outcome of probability 0.7 on average, alike within a prompt."""
    difficulty = rng.beta(0.7 * 2, 0.3 * 2, prompts)
    prompt = np.repeat(np.arange(prompts), each)
    return prompt, (rng.random(len(prompt)) < difficulty[prompt]).astype(float)


def test_the_interval_covers_the_truth_where_comparisons_of_a_prompt_are_alike() -> None:
    rng = np.random.default_rng(0)
    by_cluster = by_comparison = 0
    for _ in range(SIMULATIONS):
        prompt, right = _clustered(rng, prompts=80, each=10)
        low, high = interval(by_prompt(prompt, right, np.ones(800)), resamples=400)
        by_cluster += low <= 0.7 <= high
        half = 1.96 * right.std() / math.sqrt(800)
        by_comparison += abs(right.mean() - 0.7) <= half
    assert COVERED[0] <= by_cluster / SIMULATIONS <= COVERED[1]
    assert by_comparison / SIMULATIONS < 0.8  # what ignoring the prompts would claim as 95 %


def test_with_one_comparison_per_prompt_the_interval_is_scipy_s() -> None:
    right = (np.random.default_rng(1).random(300) < 0.7).astype(float)
    low, high = interval(np.stack([right, np.ones(300)], 1), resamples=8000)
    theirs = bootstrap(
        (right,), np.mean, n_resamples=8000, method="percentile", rng=2
    ).confidence_interval
    # the 2.5 % point of 8,000 resamples has a standard error of 0.0007; outcomes step by 1/300
    assert (low, high) == pytest.approx((theirs.low, theirs.high), abs=0.004)


def test_resampling_draws_whole_prompts() -> None:
    """Prompts of weight 1, 10, 100, 1000: the summed weights of a resample are sums of four."""
    weights = np.array([1.0, 10, 100, 1000])
    drawn = resampled(weights[:, None], lambda sums: sums[..., 0], resamples=200)
    possible = {sum(four) for four in product(weights, repeat=4)}
    assert set(drawn) <= possible and len(set(drawn)) > 10


def test_what_is_undefined_is_none_not_a_number() -> None:
    assert estimate(np.zeros((5, 2))) == {"value": None, "low": None, "high": None}
    assert estimate(np.array([[1.0, 2.0]])) == {"value": 0.5, "low": None, "high": None}
    assert np.isnan(ratio(np.array([0.0, 0.0])))


def test_brier_score_and_loss_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(2)
    margin, target = rng.normal(size=500) * 3, rng.integers(0, 2, 500).astype(float)
    p = expit(margin)
    assert calibration.brier(margin, target).mean() == pytest.approx(brier_score_loss(target, p))
    assert calibration.loss(margin, target).mean() == pytest.approx(log_loss(target, p))


@pytest.mark.parametrize("truth", [0.5, 1.0, 2.5])
def test_the_temperature_is_that_of_a_logistic_regression(truth: float) -> None:
    rng = np.random.default_rng(3)
    logit = rng.normal(size=4000)
    target = (rng.random(4000) < expit(logit)).astype(float)
    found = calibration.temperature(logit * truth, target, np.arange(4000))
    slope = LogisticRegression(C=1e10, fit_intercept=False, tol=1e-10, max_iter=1000).fit(
        (logit * truth)[:, None], target
    )
    assert found["value"] == pytest.approx(1 / slope.coef_[0, 0], rel=1e-4)
    assert found["low"] < truth < found["high"]


def test_the_temperature_of_soft_targets_is_the_one_that_made_them() -> None:
    margin = np.random.default_rng(4).normal(size=1000)
    found = calibration.temperature(margin, expit(margin / 1.7), np.arange(1000))
    assert found["value"] == pytest.approx(1.7, rel=1e-9)


def test_the_temperature_s_interval_covers_the_truth_where_prompts_differ() -> None:
    rng = np.random.default_rng(5)
    covered = 0
    for _ in range(SIMULATIONS):
        prompt = np.repeat(np.arange(150), 8)
        # one outcome per prompt, eight copies: the strongest dependence there is
        logit = rng.normal(size=150)[prompt]
        target = (rng.random(150)[prompt] < expit(logit)).astype(float)
        found = calibration.temperature(2 * logit, target, prompt)
        covered += found["low"] <= 2 <= found["high"]
    assert COVERED[0] <= covered / SIMULATIONS <= COVERED[1]


@pytest.mark.parametrize("margin", [[1.0, 2.0], [-1.0, -2.0], [0.0, 0.0]])
def test_where_no_temperature_is_best_there_is_none(margin: list[float]) -> None:
    assert calibration.temperature(np.array(margin), np.ones(2), np.arange(2)) is None


def test_margins_a_hair_better_than_chance_have_no_temperature() -> None:
    """The interval of log T is +-62,000, and no float64 is exp of that."""
    margin = np.array([1.0, -1.0] * 500 + [1e-3])
    assert calibration.temperature(margin, np.ones(1001), np.arange(1001)) is None


def test_the_calibration_error_of_a_model_that_claims_nine_and_keeps_seven_is_two_tenths() -> None:
    correct = np.repeat([1.0, 0.0], [700, 300])
    np.random.default_rng(6).shuffle(correct)
    error = calibration.expected_calibration_error(np.full(1000, 0.9), correct, bins=1)
    assert error == pytest.approx(0.2)


def test_the_calibration_error_is_the_one_counted_bin_by_bin() -> None:
    rng = np.random.default_rng(7)
    confidences = rng.uniform(0.5, 1, 100)
    correct = rng.integers(0, 2, 100).astype(float)
    order = sorted(range(100), key=lambda i: confidences[i])
    error = sum(
        abs(correct[bin_].mean() - confidences[bin_].mean()) * 0.1
        for bin_ in (order[i : i + 10] for i in range(0, 100, 10))
    )
    assert calibration.expected_calibration_error(confidences, correct, 10) == pytest.approx(error)


def test_a_calibrated_model_stays_below_its_limit_and_an_overconfident_one_does_not() -> None:
    rng = np.random.default_rng(8)
    exceeded = 0
    for _ in range(200):
        confidences = rng.uniform(0.5, 1, 400)
        correct = (rng.random(400) < confidences).astype(float)
        _, limit = calibration.ece_if_calibrated(confidences, correct, draws=200)
        exceeded += calibration.expected_calibration_error(confidences, correct) > limit
    assert exceeded / 200 <= 0.025 + 3 * math.sqrt(0.025 * 0.975 / 200)  # 2.5 % by construction
    overconfident = (rng.random(400) < confidences - 0.15).astype(float)
    assert calibration.expected_calibration_error(confidences, overconfident) > limit


@pytest.mark.parametrize("target", [0.6, 0.4])
def test_a_calibrated_model_of_soft_targets_has_no_calibration_error(target: float) -> None:
    """Of 10 annotators 6 prefer one side, everywhere, and that is what the model says."""
    groups = [_group(i, [1, 1], [(0, 1, target)]) for i in range(100)]
    rewards = [np.array([np.log(target / (1 - target)), 0.0])] * 100
    report = evaluate(groups, rewards)
    assert report["ece"]["value"] == pytest.approx(0, abs=1e-12)
    assert report["ece"]["if_calibrated_97.5"] == pytest.approx(0, abs=1e-12)
    for bin_ in figures(groups, rewards)["reliability"]:
        assert bin_["accuracy"] == pytest.approx(bin_["confidence"]) == pytest.approx(0.6)


@pytest.mark.parametrize("votes", [1, 2, 5])
def test_the_error_of_a_calibrated_model_is_that_of_as_many_votes(votes: int) -> None:
    """Even votes tie; were ties left out, the rest would look surer than the model is."""
    rng = np.random.default_rng(13)
    errors, expected, exceeded = [], [], 0
    for _ in range(200):
        margin = rng.normal(size=400) * 1.5
        target = rng.binomial(votes, expit(margin)) / votes
        confidences = calibration.confidence(margin)
        shares = calibration.observed(margin, target)
        mean, limit = calibration.ece_if_calibrated(confidences, shares, draws=200)
        errors.append(calibration.expected_calibration_error(confidences, shares))
        expected.append(mean)
        exceeded += errors[-1] > limit
    # the mean of 200 errors, each within 20 % of its expectation: 0.2 / sqrt(200) = 1.4 %
    assert np.mean(errors) == pytest.approx(np.mean(expected), rel=0.06)
    assert exceeded / 200 <= 0.025 + 3 * math.sqrt(0.025 * 0.975 / 200)


@pytest.mark.parametrize("rewards", [[0.3, 2.0, -1.0, 0.7, 5.0], [1.0, 2.0, 2.0, 2.0, 0.0]])
def test_best_of_n_is_the_mean_over_all_subsets(rewards: list[float]) -> None:
    gold = [3.0, -1.0, 4.0, 1.5, 0.5]
    for n in range(1, 6):
        best = []
        for subset in combinations(range(5), n):
            top = max(rewards[i] for i in subset)
            best.append(np.mean([gold[i] for i in subset if rewards[i] == top]))
        # with ties the subset's best is drawn among equals; the pool's equals share their gold,
        # which over all subsets comes to the same mean
        assert expected_best(np.array(rewards), np.array(gold), n) == pytest.approx(np.mean(best))


def test_best_of_n_is_unbiased() -> None:
    """Rewards are the gold, uniform on (0, 1): the best of n is n / (n + 1) on average."""
    rng = np.random.default_rng(9)
    for n in (1, 3, 6):
        found = [expected_best(x, x, n) for x in rng.random((4000, 8))]
        spread = np.std(found) / math.sqrt(4000)
        assert np.mean(found) == pytest.approx(n / (n + 1), abs=4 * spread)


def test_best_of_n_of_a_thousand_responses_is_exact() -> None:
    """C(1099, 549) is 3e329, beyond float64."""
    k, n = 1100, 550
    gold = np.random.default_rng(14).random(k)
    exact = sum(
        Fraction(math.comb(i, n - 1), math.comb(k, n)) * Fraction(value)
        for i, value in enumerate(sorted(gold))
    )
    assert expected_best(gold, gold, n) == pytest.approx(float(exact), rel=1e-12)


def test_more_samples_than_there_are_is_refused() -> None:
    with pytest.raises(ValueError, match="n is 3, but there are 2"):
        expected_best(np.zeros(2), np.zeros(2), 3)


@pytest.mark.parametrize("n", [1, 2, 7, 64])
def test_the_divergence_of_best_of_n_is_its_integral(n: int) -> None:
    """The best of n uniform draws has density n u^(n-1) where the policy's is 1."""
    integral, _ = quad(lambda u: n * u ** (n - 1) * math.log(n * u ** (n - 1)), 1e-12, 1)
    assert kl(n) == pytest.approx(integral, abs=1e-6)


def test_the_curve_keeps_to_prompts_with_enough_responses() -> None:
    rewards = [np.arange(2.0), np.arange(4.0), np.arange(6.0)]
    found = curve(rewards, rewards)
    assert found["prompts"] == 2 and [p["n"] for p in found["points"]] == [1, 2, 3, 4]
    assert found["points"][0]["gold"]["value"] == pytest.approx((1.5 + 2.5) / 2)
    assert found["share_of_ceiling"] == pytest.approx(1.0)


def test_the_correlation_is_pearson_s_and_covers_the_truth() -> None:
    rng = np.random.default_rng(10)
    covered = 0
    for _ in range(SIMULATIONS):
        x, noise = rng.normal(size=(2, 200))
        y = 0.6 * x + 0.8 * noise  # r = 0.6
        found = correlation(np.arange(200), x, y)
        covered += found["low"] <= 0.6 <= found["high"]
    assert found["value"] == pytest.approx(pearsonr(x, y).statistic)
    assert (
        0.9 <= covered / SIMULATIONS <= COVERED[1]
    )  # percentile intervals of r run a little short


def _group(i: int, lengths: list[int], comparisons: list[tuple]) -> Group:
    return Group(
        prompt=f"p{i}",
        responses=tuple("x" * n for n in lengths),
        comparisons=tuple(Comparison(*c) for c in comparisons),
        chosen=(0,),
        lines=(i,),
    )


def test_length_bias_by_hand() -> None:
    groups = [
        _group(0, [100, 95, 10], [(0, 1), (2, 0)]),  # longer chosen, matched; shorter chosen
        _group(1, [50, 50], [(0, 1)]),  # equal
    ]
    rewards = [np.array([3.0, 1.0, 2.0]), np.array([0.0, 1.0])]  # right, wrong; wrong
    found = length_bias(groups, rewards, outcomes(groups, rewards))
    assert found["longer_wins"]["value"] == (1 + 0 + 0.5) / 3
    assert found["matched"]["value"] == 0.5 and found["matched"]["comparisons"] == 2
    assert found["longer_preferred"]["value"] == 1.0
    assert found["shorter_preferred"]["value"] == 0.0
    assert found["model_prefers_longer"]["value"] == 1.0
    lengths, values = [100, 95, 10, 50, 50], [3.0, 1.0, 2.0, 0.0, 1.0]
    assert found["spearman"]["value"] == pytest.approx(spearmanr(lengths, values).statistic)
    centred = [100 - 205 / 3, 95 - 205 / 3, 10 - 205 / 3, 0, 0], [1.0, -1.0, 0.0, -0.5, 0.5]
    assert found["within_prompt"]["value"] == pytest.approx(pearsonr(*centred).statistic)


def test_mcnemar_by_hand() -> None:
    """Armitage and Berry's two culture media: 12 against 2, exact p 0.0129."""
    better = np.repeat([1.0, -1.0, 0.0], [12, 2, 36])
    found = mcnemar(better, np.arange(50))
    assert (found["only_second_right"], found["only_first_right"]) == (12, 2)
    assert found["p"] == pytest.approx(0.0129, abs=5e-5)
    assert found["p_by_prompt"] == pytest.approx(chi2.sf((12 - 2) ** 2 / (12 + 2), 1))


def test_mcnemar_by_prompt_keeps_its_level_where_the_plain_one_does_not() -> None:
    rng = np.random.default_rng(11)
    plain = clustered = 0
    for _ in range(SIMULATIONS):
        prompt = np.repeat(np.arange(60), 10)
        favours = rng.beta(0.5, 0.5, 60)[prompt]  # neither is better, but prompts favour one
        better = np.where(rng.random(600) < favours, 1.0, -1.0)
        found = mcnemar(better, prompt)
        plain, clustered = plain + (found["p"] < 0.05), clustered + (found["p_by_prompt"] < 0.05)
    assert clustered / SIMULATIONS <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / SIMULATIONS)
    assert plain / SIMULATIONS > 0.3


def test_the_paired_difference_covers_the_truth_and_is_surer_than_two_accuracies() -> None:
    """The second is right wherever the first is, and on one in ten of the others by luck."""
    rng = np.random.default_rng(12)
    covered, widths = 0, []
    for _ in range(100):
        groups = [_group(i, [1, 1], [(0, 1)]) for i in range(400)]
        right = rng.random(400) < 0.7
        mended = right | (rng.random(400) < 0.1)
        rewards = [
            [np.array([1.0, 0.0])[:: 1 if ok else -1] for ok in side] for side in (right, mended)
        ]
        found = compare(groups, *rewards)
        difference = found["accuracy_difference"]
        covered += difference["low"] <= 0.3 * 0.1 <= difference["high"]
        first = found["accuracy"]["first"]
        widths.append((difference["high"] - difference["low"], first["high"] - first["low"]))
    assert covered / 100 >= 0.95 - 4 * 0.022
    assert np.mean([w[0] for w in widths]) < 0.5 * np.mean([w[1] for w in widths])
    same = compare(groups, rewards[0], rewards[0])
    assert same["accuracy_difference"]["value"] == 0 and same["mcnemar"]["p"] == 1
    assert same["same_favourite"]["value"] == 1
