"""Accuracy, interval, alarm: numbers that can be derived by hand."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from training.compare import compare
from training.data import Comparison, Group
from training.evaluate import evaluate, spearman_within_prompt
from training.normalize import reference_mean
from training.report import findings
from training.report.figures import figures
from training.report.page import render
from training.tables import show_evaluation


def _group(i: int, comparisons: list[tuple], subset: str | None = None, **fields) -> Group:
    return Group(
        prompt=f"p{i}",
        responses=("a", "b", "c"),
        comparisons=tuple(Comparison(*c, subset=subset) for c in comparisons),
        chosen=(0,),
        lines=(i,),
        **fields,
    )


def test_accuracy_is_over_comparisons_with_ties_at_one_half() -> None:
    groups = [_group(0, [(0, 1), (0, 2), (1, 2)]), _group(1, [(0, 1)])]
    rewards = [np.array([1.0, 1.0, 0.0]), np.array([0.0, 1.0, 9.0])]
    report = evaluate(groups, rewards)  # tie 1/2, right, right; wrong
    assert report["accuracy"] == (0.5 + 1 + 1 + 0) / 4
    assert report["margin"] == pytest.approx((0 + 1 + 1 - 1) / 4)
    per_group = [(math.log(2) + 2 * math.log1p(math.exp(-1))) / 3, math.log1p(math.e)]
    assert report["loss"] == pytest.approx(sum(per_group) / 2)


def test_a_soft_target_turns_the_choice_round_and_one_half_does_not_count() -> None:
    groups = [_group(0, [(0, 1, 0.2), (0, 2, 0.5)])]
    report = evaluate(groups, [np.array([0.0, 1.0, 5.0])])
    assert report["accuracy"] == 1.0


def test_the_interval_is_resampled_by_prompt() -> None:
    """100 prompts of 36 equal outcomes: 3,600 comparisons are worth 100: +-0.098, not +-0.016."""
    pairs = [(0, 1)] * 36
    groups = [_group(i, pairs) for i in range(100)]
    rewards = [np.array([float(i % 2), 0.5, 0.0]) for i in range(100)]
    low, high = evaluate(groups, rewards, resamples=4000)["accuracy_95"]
    assert (high - low) / 2 == pytest.approx(1.96 * 0.5 / math.sqrt(100), rel=0.1)


def test_a_constant_reward_raises_the_alarm_and_scores_one_half() -> None:
    groups = [_group(i, [(0, 1)]) for i in range(10)]
    report = evaluate(groups, [np.zeros(3)] * 10)
    assert report["collapsed"] and report["accuracy"] == 0.5
    assert not evaluate(groups, [np.array([1.0, 0.0, 0.0])] * 10)["collapsed"]


def test_a_collapse_shows_whatever_margins_the_data_has() -> None:
    groups = [_group(i, [(0, 1, 1.0, 1.0)]) for i in range(30)]
    report = evaluate(groups, [np.zeros(3)] * 30)
    assert report["collapsed"] and report["loss"] == pytest.approx(math.log(2))


def test_rewards_that_tell_prompts_apart_and_no_responses_are_a_collapse() -> None:
    groups = [_group(i, [(0, 1)]) for i in range(30)]
    assert evaluate(groups, [np.full(3, float(i)) for i in range(30)])["collapsed"]


def test_the_loss_is_that_of_the_choices_however_they_were_trained_on() -> None:
    """A margin of the data moves what is trained, not how likely the choice is."""
    rewards = [np.array([1.0, 0.0, 0.0])] * 3
    plain, with_margins = (
        [_group(i, [(0, 1, 1.0, margin)]) for i in range(3)] for margin in (0.0, 3.0)
    )
    assert evaluate(plain, rewards)["loss"] == pytest.approx(math.log1p(math.exp(-1)))
    assert evaluate(with_margins, rewards)["loss"] == evaluate(plain, rewards)["loss"]
    worse = [np.zeros(3)] * 3
    difference = compare(with_margins, rewards, worse)["loss_difference"]["value"]
    assert difference == pytest.approx(math.log(2) - math.log1p(math.exp(-1)))


def test_ties_are_no_choices_that_accuracy_is_of() -> None:
    groups = [_group(i, [(0, 1), (0, 2, 0.5)], subset="s") for i in range(10)]
    rewards = [np.array([1.0, 0.0, 0.5])] * 10
    report = evaluate(groups, rewards)
    assert (report["comparisons"], report["choices"]) == (20, 10)
    assert report["subsets"]["s"]["choices"] == 10
    shown = {"name": "x", "evaluation": report, "figures": figures(groups, rewards)}
    assert "of 10 held-out choices" in render(shown)
    console = Console(record=True)
    show_evaluation(report, "", console)
    printed = console.export_text()
    assert "on 10 choices" in printed and "of 10\n" in printed


def test_true_rewards_give_the_ceiling_and_the_rank_correlation() -> None:
    groups = [_group(0, [(0, 1), (2, 1)], true_rewards=(2.0, 1.0, 0.0))]
    report = evaluate(groups, [np.array([5.0, 4.0, -1.0])])
    assert report["true_reward_accuracy"] == 0.5
    assert report["spearman_within_prompt"] == pytest.approx(1.0)


def test_spearman_leaves_out_prompts_without_a_ranking() -> None:
    got = [np.array([1.0, 2.0]), np.array([3.0, 3.0]), np.array([1.0, 0.0])]
    true = [np.array([0.0, 0.0]), np.array([0.0, 1.0]), np.array([1.0, 0.0])]
    assert spearman_within_prompt(got, true) == pytest.approx(0.5)


def test_a_prompt_counts_in_every_subset_that_its_comparisons_are_of() -> None:
    choices = Comparison(0, 1, subset="easy"), Comparison(2, 1, subset="hard"), Comparison(0, 2)
    groups = [replace(_group(i, []), comparisons=choices) for i in range(4)]
    subsets = evaluate(groups, [np.array([2.0, 1.0, 0.0])] * 4)["subsets"]
    assert {name: each["accuracy"]["value"] for name, each in subsets.items()} == {
        "easy": 1.0,
        "hard": 0.0,
    }
    assert all(each["prompts"] == each["comparisons"] == 4 for each in subsets.values())


def test_true_rewards_without_a_ranking_are_reported_as_absent() -> None:
    groups = [_group(i, [(0, 1)], true_rewards=(1.0, 1.0, 1.0)) for i in range(10)]
    rewards = [np.array([1.0, 0.0, 0.5])] * 10
    report = evaluate(groups, rewards)
    assert report["spearman_within_prompt"] is None
    shown = {"name": "x", "evaluation": report, "figures": figures(groups, rewards)}
    assert "Rank correlation" not in render(json.loads(json.dumps(shown, allow_nan=False)))


def test_true_rewards_that_no_choice_agrees_with_are_no_measure() -> None:
    groups = [_group(i, [(0, 1)], true_rewards=(0.0, 1.0, 2.0)) for i in range(10)]
    rewards = [np.array([1.0, 0.0, 0.5])] * 10
    report = {"evaluation": evaluate(groups, rewards)}
    assert report["evaluation"]["true_reward_accuracy"] == 0
    assert not any("true reward" in sentence for sentence in findings.meaning(report))


def test_a_subset_of_ties_alone_has_no_accuracy_and_is_not_drawn() -> None:
    groups = [_group(i, [(0, 1)], subset="choices") for i in range(10)]
    groups += [_group(i, [(0, 1, 0.5)], subset="ties") for i in range(10, 20)]
    rewards = [np.array([1.0, 0.0, 0.5])] * 20
    report = evaluate(groups, rewards)
    ties = report["subsets"]["ties"]
    assert ties["accuracy"] == {"value": None, "low": None, "high": None}
    assert ties["brier"] > 0 and ties["comparisons"] == 10
    shown = {"name": "x", "evaluation": report, "figures": figures(groups, rewards)}
    page = render(json.loads(json.dumps(shown, allow_nan=False)))
    assert ">choices</text>" in page and ">ties</text>" not in page
    console = Console(record=True)
    show_evaluation(report, "", console)
    assert "ties: no choices" in console.export_text()


def test_the_mean_is_summed_in_float64() -> None:
    rewards = np.full(10_000_001, 0.1, np.float32)
    assert reference_mean(rewards) == pytest.approx(float(np.float32(0.1)), rel=1e-12)
