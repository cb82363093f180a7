"""How a step is cut into passes and processes changes no gradient."""

import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import CONFIGS
from tests.training.families import tiny
from training.batches import EncodedGroup, collate, deal, plan, schedule
from training.config import Loss
from training.data import Comparison
from training.demo.data import write
from training.gradient import accumulate
from training.model import AnyRewardModel
from training.run import Run

TOLERANCE = 1e-6
"of the largest gradient; the passes run in float64, whose own rounding is 1e-9 smaller still"


@st.composite
def groups(draw) -> list[EncodedGroup]:
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    found = []
    for k in draw(st.lists(st.integers(2, 9), min_size=1, max_size=3)):
        rows = [rng.integers(3, 800, rng.integers(1, 12)).tolist() for _ in range(k)]
        order = rng.permutation(k).tolist()
        pairs = itertools.combinations(order, 2)
        found.append(EncodedGroup(rows, tuple(Comparison(i, j) for i, j in pairs)))
    return found


@pytest.fixture(scope="module")
def model() -> AnyRewardModel:
    return tiny("qwen3").double().train()


def _gradients(model: AnyRewardModel) -> torch.Tensor:
    flat = torch.cat([p.grad.flatten() for p in model.parameters()])
    model.zero_grad(set_to_none=True)
    return flat


def _brute_force(model: AnyRewardModel, groups: list[EncodedGroup]) -> tuple[float, torch.Tensor]:
    """InstructGPT's equation 1 word for word: over all pairs, every response scored alone."""
    total = torch.zeros((), dtype=torch.float64)
    for group in groups:
        rows = [torch.tensor([row]) for row in group.rows]
        rewards = [model(ids, torch.ones_like(ids)).squeeze() for ids in rows]
        for c in group.comparisons:
            loss = -torch.log(torch.sigmoid(rewards[c.winner] - rewards[c.loser]))
            total = total + loss / len(group.comparisons) / len(groups)
    total.backward()
    return total.item(), _gradients(model)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(groups(), st.sampled_from([1, 20, 40, 90, 10_000]), st.integers(1, 3))
def test_any_cut_gives_the_gradient_of_all_pairs(model, groups, max_tokens, processes) -> None:
    expected_loss, expected = _brute_force(model, groups)
    total, losses = torch.zeros_like(expected), []
    for rank in range(processes):
        loss, _ = accumulate(model, deal(groups, max_tokens, rank, processes), Loss())
        total += _gradients(model) / processes  # as DDP: the mean over processes
        losses.append(loss.item())
    assert np.mean(losses) == pytest.approx(expected_loss, rel=TOLERANCE)
    assert (total - expected).abs().max() <= TOLERANCE * expected.abs().max().clamp(min=1)


def test_a_group_over_the_budget_is_cut_and_one_within_is_not(model) -> None:
    rows = [[5] * n for n in (4, 9, 5, 3)]
    group = EncodedGroup(rows, (Comparison(0, 1), Comparison(2, 3)))
    assert [p.input_ids.shape for p in collate([group], 18).passes] == [(2, 9), (2, 4)]
    assert len(collate([group], 36).passes) == 1


@given(st.lists(st.lists(st.integers(1, 50), min_size=1, max_size=9), min_size=1, max_size=20))
def test_batches_hold_every_group_once_and_keep_to_the_budget(lengths) -> None:
    batches = plan(lengths, max_tokens=200)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        rows = [n for i in batch for n in lengths[i]]
        assert len(batch) == 1 or len(rows) * max(rows) <= 200


@given(groups(), st.integers(1, 60), st.integers(1, 4))
def test_all_processes_make_equally_many_passes(groups, max_tokens, processes) -> None:
    shares = [deal(groups, max_tokens, rank, processes) for rank in range(processes)]
    with_graph = {sum(len(b.passes) for b in s.batches) + len(s.idle) for s in shares}
    without = {
        sum(len(b.passes) for b in s.batches if len(b.passes) > 1) + len(s.idle_cached)
        for s in shares
    }
    assert len(with_graph) == 1 and min(with_graph) > 0
    assert len(without) == 1


def test_an_epoch_visits_every_group_once_and_the_next_in_another_order() -> None:
    steps = schedule(groups=10, per_step=4, epochs=2, seed=3)
    first, second = ([i for step in part for i in step] for part in (steps[:3], steps[3:]))
    assert sorted(first) == sorted(second) == list(range(10)) and first != second
    assert schedule(10, 4, 1, 3) == steps[:3]


LAUNCHERS = {
    "one": ([], []),
    "torchrun": (["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"], []),
    "ray": ([], ["--num-workers=2"]),
}


def _fit(out: Path, data: Path, launcher: str) -> Run:
    before, after = LAUNCHERS[launcher]
    sets = [f"out={out}", f"data.train={data}", "fit.max_batch_tokens=300"]
    options = [part for setting in sets for part in ("--set", setting)]
    command = [*before, "-m", "training", "fit", str(CONFIGS / "tiny.toml"), *options, *after]
    done = subprocess.run([sys.executable, *command], timeout=300, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return Run(out)


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> tuple[Path, Run]:
    path = tmp_path_factory.mktemp("one")
    write(path / "data.jsonl", prompts=150, seed=4)
    return path / "data.jsonl", _fit(path / "run", path / "data.jsonl", "one")


@pytest.mark.parametrize("launcher", ["torchrun", "ray"])
def test_two_processes_give_the_losses_of_one(launcher: str, one, tmp_path: Path) -> None:
    data, alone = one
    both = _fit(tmp_path / "run", data, launcher)
    logs = [json.loads(run.report.read_text())["log"] for run in (alone, both)]
    for name in ("loss", "eval_loss", "margin_rms"):
        expected, got = ([entry[name] for entry in log if name in entry] for log in logs)
        assert len(expected) >= 4
        assert got == pytest.approx(expected, abs=1e-5)  # fp32 sums in another order
