"""A run that is killed with -9 and started again ends with the weights of an unbroken one."""

import hashlib
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from service.errors import TrainingError
from tests.conftest import CONFIGS
from training.config import read_config
from training.demo.data import write
from training.fit import last_whole_checkpoint
from training.pipeline import train
from training.run import Run

DIVERGES = ["fit.learning_rate=1e30", "fit.max_grad_norm=1e30", "fit.evaluations=1"]


def _settings(out: Path, data: Path) -> list[str]:
    return [f"out={out}", f"data.train={data}", "fit.evaluations=6", "fit.groups_per_step=2"]


def _start(settings: list[str]) -> subprocess.Popen:
    options = [part for setting in settings for part in ("--set", setting)]
    command = [sys.executable, "-m", "training", "fit", str(CONFIGS / "tiny.toml"), *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def _sha256(run: Run) -> str:
    return hashlib.sha256((run.model / "model.safetensors").read_bytes()).hexdigest()


def test_kill_and_resume_gives_the_same_weights(tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    write(data, prompts=400, seed=2)
    whole = _start(_settings(tmp_path / "whole", data))
    output, _ = whole.communicate(timeout=300)
    assert whole.returncode == 0, output
    assert "'loss'" in output  # progress without a terminal

    settings = _settings(tmp_path / "killed", data)
    killed = Run(tmp_path / "killed")
    first = _start(settings)
    deadline = time.monotonic() + 120
    while last_whole_checkpoint(killed.checkpoints) is None:
        assert first.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert not killed.report.exists()

    second = _start(settings)
    output, _ = second.communicate(timeout=300)
    assert second.returncode == 0, output
    assert _sha256(killed) == _sha256(Run(tmp_path / "whole"))

    third = _start(settings)  # the same again: it is done
    third.communicate(timeout=60)
    assert third.returncode == 0


def test_a_checkpoint_that_was_cut_short_is_passed_over(tmp_path: Path) -> None:
    for step, state in ((20, "{}"), (100, '{"epoch": 0'), (80, "{}")):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(state)
    (tmp_path / "checkpoint-120").mkdir()
    assert last_whole_checkpoint(tmp_path) == str(tmp_path / "checkpoint-80")
    shutil.rmtree(tmp_path / "checkpoint-80")
    assert last_whole_checkpoint(tmp_path) == str(tmp_path / "checkpoint-20")


def test_an_unfinished_run_is_not_continued_with_other_settings(tmp_path: Path) -> None:
    write(tmp_path / "data.jsonl", prompts=20, seed=0)
    settings = _settings(tmp_path / "run", tmp_path / "data.jsonl")
    with pytest.raises(TrainingError, match="step"):  # unfinished: it diverges
        train(read_config(CONFIGS / "tiny.toml", [*settings, *DIVERGES]))
    with pytest.raises(TrainingError, match="with other settings or other data"):
        train(read_config(CONFIGS / "tiny.toml", [*settings, *DIVERGES, "seed=1"]))
    write(tmp_path / "data.jsonl", prompts=20, seed=9)
    with pytest.raises(TrainingError, match="with other settings or other data"):
        train(read_config(CONFIGS / "tiny.toml", [*settings, *DIVERGES]))
