"""A run that goes wrong stops with a clear message and keeps the last good checkpoint."""

import math
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

from service.errors import TrainingError
from tests.conftest import CONFIGS
from training.checkpoint import read
from training.config import read_config
from training.demo.data import write
from training.fit import last_whole_checkpoint
from training.pipeline import train
from training.run import Run
from training.watch import Watch


def _watch(entries: list[tuple[float, float, float]]) -> Watch:
    watch = Watch(learning_rate=1e-3)
    for step, (loss, norm, margin) in enumerate(entries):
        watch.observe(step, loss, norm, margin, "checkpoint-40")
    return watch


HEALTHY = [(0.70 - 0.01 * i, 2.0 + 0.1 * (i % 3), 0.5 + 0.02 * i) for i in range(12)]


def test_an_ordinary_course_is_left_alone() -> None:
    _watch(HEALTHY)
    _watch([(math.log(2), 1e-3, 1e-4)] * 5 + HEALTHY)  # begins with small margins
    _watch([*HEALTHY, (5.0, 900.0, 3.0), (0.6, 2.0, 1.0)])  # one odd batch


@pytest.mark.parametrize(
    ("ending", "message"),
    [
        # the course published for OPT-350m at learning rates of 5e-5 and above: loss .6931
        ([(0.6931, 1e-5, 1e-5)] * 3, r"all margins are below 0.001: .* collapsed"),
        ([(0.6, 500.0, 1.0)] * 3, "gradients explode: norm 500, usually 2.1"),
        ([(2.5, 5.0, 4.0), (3.0, 5.0, 4.0), (9.0, 5.0, 4.0)], "diverges: 9, it began with 0.7"),
        ([(0.6, math.nan, 1.0)], "gradient norm nan"),
    ],
)
def test_each_way_of_going_wrong_has_its_name(ending: list, message: str) -> None:
    with pytest.raises(TrainingError, match=message) as raised:
        _watch(HEALTHY + ending)
    assert "last good checkpoint is checkpoint-40" in str(raised.value)
    assert "fit.learning_rate (it is 0.001)" in str(raised.value)


def test_a_run_in_which_every_comparison_is_a_tie_is_stopped(tmp_path: Path) -> None:
    """One token of response is kept, the template's newline: all responses become the same."""
    write(tmp_path / "data.jsonl", prompts=120, seed=0)
    settings = [f"out={tmp_path / 'run'}", f"data.train={tmp_path / 'data.jsonl'}"]
    with pytest.raises(TrainingError, match=r"loss is 0\.6931 and all margins are below"):
        train(read_config(CONFIGS / "tiny.toml", [*settings, "text.max_response_tokens=1"]))


def test_a_rate_that_diverges_is_stopped_and_the_checkpoint_before_it_opens(
    tmp_path: Path,
) -> None:
    write(tmp_path / "data.jsonl", prompts=400, seed=0)
    settings = [
        f"out={tmp_path / 'run'}", f"data.train={tmp_path / 'data.jsonl'}", "fit.epochs=4",
        "fit.learning_rate=0.5", "fit.warmup_ratio=0.9", "fit.evaluations=160",
        "fit.max_grad_norm=1000",
    ]  # fmt: skip
    with pytest.raises(TrainingError, match=r"diverges|explode|collapsed") as raised:
        train(read_config(CONFIGS / "tiny.toml", settings))
    kept = str(raised.value).split("last good checkpoint is ")[1].split(". Lower")[0]
    assert read(Path(kept)).config.num_labels == 1


def test_a_full_disk_leaves_the_checkpoint_before_and_the_run_goes_on(tmp_path: Path) -> None:
    """The kernel refuses to let any file grow past a limit that is set in mid-run."""
    write(tmp_path / "data.jsonl", prompts=400, seed=2)
    run = Run(tmp_path / "run")
    options = [
        part
        for setting in (f"out={run.path}", f"data.train={tmp_path / 'data.jsonl'}",
                        "fit.evaluations=6", "fit.groups_per_step=2")
        for part in ("--set", setting)
    ]  # fmt: skip
    command = [sys.executable, "-m", "training", "fit", str(CONFIGS / "tiny.toml"), *options]
    first = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 200
    while (whole := last_whole_checkpoint(run.checkpoints)) is None:
        assert first.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    resource.prlimit(first.pid, resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
    output, _ = first.communicate(timeout=200)
    assert first.returncode == 70, output
    assert "could not be written" in output and "give the same command again" in output
    survivor = last_whole_checkpoint(run.checkpoints)
    assert survivor is not None and int(survivor.split("-")[-1]) >= int(whole.split("-")[-1])
    assert [path.name for path in run.checkpoints.iterdir()] == [Path(survivor).name]
    read(Path(survivor))

    second = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert second.returncode == 0, second.stderr
    assert run.report.is_file()
