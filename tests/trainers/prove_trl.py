"""TRL 1.16.0 itself, on CPU, with a tiny policy, against the live service."""

import json
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest

from reward_client import Client
from tests.trainers.conftest import BUILD, TORCH, Trainer, finish
from tests.trainers.grpo import completions, curves, fifths
from training.demo.walk import Service, serving

STEPS = 120
SEEDS = (0, 1, 2)
RUNS = BUILD / "grpo"


@pytest.fixture(scope="module")
def trl(environment: Callable[..., Trainer]) -> Trainer:
    return environment("trl", TORCH, "trl==1.16.0", "aiohttp")  # aiohttp for AsyncGRPO


@pytest.fixture(scope="module")
def runs(trl: Trainer, service: Service, demo: Path) -> list[Path]:
    """A GRPO run for each seed, two at a time."""
    shutil.rmtree(RUNS, ignore_errors=True)
    outs = [RUNS / f"seed-{seed}" for seed in SEEDS]
    waiting = list(zip(SEEDS, outs, strict=True))
    running = []
    while waiting or running:
        while waiting and len(running) < 2:
            seed, out = waiting.pop(0)
            arguments = (service.url, demo, out, seed, STEPS, "grpo", "sync")
            running.append(trl.start("trl_grpo.py", *arguments))
        assert finish(running.pop(0), timeout_s=600) == {"steps": STEPS}
    return outs


def assert_logged_rewards_are_the_services(out: Path, client: Client) -> None:
    for step in completions(out):
        conversations = [[{"role": "user", "content": row.prompt}] for row in step]
        pairs = [(c, row.response) for c, row in zip(conversations, step, strict=True)]
        assert [row.reward for row in step] == client.score(pairs).rewards


def test_what_trl_logs_is_what_the_service_gives(runs: list[Path], client: Client) -> None:
    for out in runs:
        assert len(completions(out)) == STEPS
        assert_logged_rewards_are_the_services(out, client)


def test_reward_true_reward_objective_and_kl_rise_with_every_seed(runs: list[Path]) -> None:
    for seed, out in zip(SEEDS, runs, strict=True):
        run = curves(out)
        for name in ("reward", "true_reward", "objective", "kl"):
            first, last = fifths(getattr(run, name))
            print(f"seed {seed} {name:12} first fifth {first:7.3f}, last fifth {last:7.3f}")
            assert last > first, (seed, name)


def test_the_policy_begins_at_its_reference_and_leaves_it(runs: list[Path]) -> None:
    """At the first step the policy is the reference, so the KL is 0."""
    for out in runs:
        kl = curves(out).kl
        assert kl[0] == pytest.approx(0, abs=0.01) and fifths(kl)[1] > 0.1


def test_a_service_that_dies_in_the_middle_does_not_end_the_run(
    trl: Trainer, demo: Path, tmp_path: Path
) -> None:
    """kill -9 of everything of the service, and a new one on the same port."""
    with serving(demo / "bundle") as service:
        port = service.url.rsplit(":", 1)[1]
        run = trl.start("trl_grpo.py", service.url, demo, tmp_path, 0, 30, "grpo", "sync")
        while len(list(tmp_path.glob("completions/*"))) < 5 and run.poll() is None:
            time.sleep(0.2)
        process = psutil.Process(service.process.pid)
        for victim in [process, *process.children(recursive=True)]:
            victim.send_signal(signal.SIGKILL)
        killed_after = len(list(tmp_path.glob("completions/*")))
        service.process.wait(30)
    with serving(demo / "bundle", f"--port={port}") as again:
        assert again.url == service.url
        assert finish(run) == {"steps": 30}
        assert 5 <= killed_after < 30
        with Client(again.url) as client:
            assert_logged_rewards_are_the_services(tmp_path, client)


def test_the_async_form(
    trl: Trainer, service: Service, client: Client, demo: Path, tmp_path: Path
) -> None:
    done = trl.run("trl_grpo.py", service.url, demo, tmp_path, 0, 10, "grpo", "async")
    assert done == {"steps": 10}
    assert len(completions(tmp_path)) == 10
    assert_logged_rewards_are_the_services(tmp_path, client)


def test_rloo(trl: Trainer, service: Service, client: Client, demo: Path, tmp_path: Path) -> None:
    """RLOO takes beta * KL off the reward itself; what it logs of ours is the mean per step."""
    done = trl.run("trl_grpo.py", service.url, demo, tmp_path, 0, 10, "rloo", "sync")
    assert done == {"steps": 10}
    log = map(json.loads, (tmp_path / "log.jsonl").read_text().splitlines())
    logged = [entry["rewards/remote_reward/mean"] for entry in log]
    steps = map(json.loads, (tmp_path / "completions.jsonl").read_text().splitlines())
    means = [float(np.mean(client.score(step).rewards)) for step in steps]
    # TRL's mean of 128 float32 values against one in float64.
    assert logged == pytest.approx(means, abs=1e-5)


@pytest.mark.parametrize("form", ["sync", "async"])
def test_async_grpos_rollout_worker(
    trl: Trainer, service: Service, client: Client, demo: Path, form: str
) -> None:
    """The reward is pickled into the process that AsyncGRPO spawns, and called there per group."""
    rows = trl.run("trl_async_grpo.py", service.url, demo, form)
    assert len(rows) == 32
    pairs = [(row["prompt"], row["completion"]) for row in rows]
    assert [row["reward"] for row in rows] == client.score(pairs).rewards
