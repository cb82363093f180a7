"""Padded runs in fixed shapes, on the CPU: the same code as on a GPU but for the device."""

import asyncio

import numpy as np
import pytest

from service import metrics
from service.buckets import Buckets
from service.bundle import Bundle
from service.metrics import Recorder
from service.padded_engine import PaddedEngine
from service.planner import PaddedBudget
from service.ragged_engine import RaggedEngine
from service.scheduler import Scheduler

BUDGET = 512


def _rows(seed: int, count: int, longest: int) -> list[list[int]]:
    random = np.random.default_rng(seed)
    return [random.integers(3, 600, n).tolist() for n in random.integers(1, longest + 1, count)]


@pytest.fixture(params=[False, True], ids=["free", "fixed"])
def engine(bundle: Bundle, request) -> PaddedEngine:
    buckets = Buckets(bundle.manifest.text.max_tokens, BUDGET, request.param)
    return PaddedEngine(bundle, "fp32", "cpu", buckets, threads=2)


def test_rewards_have_the_bits_of_rows_that_are_not_padded(bundle: Bundle, engine) -> None:
    rows = _rows(0, 60, bundle.manifest.text.max_tokens)
    expected = RaggedEngine(bundle, "fp32", 2).run(rows)
    assert engine.run(rows).tobytes() == expected.tobytes()
    assert [engine.run([row])[0] for row in rows[:8]] == expected[:8].tolist()


def test_warming_up_runs_every_shape_and_no_other_follows(bundle: Bundle, engine) -> None:
    assert engine.warm() >= 0
    assert set(engine._bindings) == set(engine.buckets.shapes())
    engine.run(_rows(1, 50, bundle.manifest.text.max_tokens))
    assert set(engine._bindings) == set(engine.buckets.shapes())


def test_the_longest_golden_rows_fit_the_buckets(bundle: Bundle, engine) -> None:
    """BOS, template and ending count to the limits that the buckets are made for."""
    rows = [row.ids for row in bundle.golden()]
    assert max(map(len, rows)) == bundle.manifest.text.max_tokens
    rewards = [row.reward for row in bundle.golden()]
    assert engine.run(rows) == pytest.approx(rewards, abs=1e-4)


def test_the_scheduler_counts_the_padding_of_the_buckets(bundle: Bundle, engine) -> None:
    recorder = Recorder()
    budget = PaddedBudget(BUDGET, 0.15, buckets=engine.buckets)
    scheduler = Scheduler(engine, budget, 100_000, recorder)
    rows = [[i] * 33 for i in range(10, 13)]
    scored = asyncio.run(scheduler.score(rows))
    scheduler.close()
    assert scored.rewards == engine.run(rows).tolist()
    # free: a batch of 2 rows, which fill a shape of 2 x 40, and a batch of 1; fixed: 8 rows of 40,
    # the largest power of two within 512 tokens
    computed = 8 * 40 if engine.buckets.fixed else 3 * 40
    assert recorder.added[metrics.PADDING, ()] == computed - 3 * 33
