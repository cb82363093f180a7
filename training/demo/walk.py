"""The whole way on one machine: data, training, export, serving, scores over HTTP, as one story."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from service.errors import TrainingError
from training.config import read_config
from training.data import Group, read_groups
from training.demo import data
from training.evaluate import evaluate
from training.export import export
from training.pipeline import train
from training.report.page import HTML
from training.run import Run

CONFIG = Path(__file__).parent.parent / "configs" / "tiny.toml"
HELD_OUT = 600
START_TIMEOUT_S = 120


def walk(out: Path, prompts: int, console: Console) -> None:
    """Raises TrainingError when the served rewards do not reach what the demo promises."""
    steps = iter(range(1, 6))

    def say(text: str) -> None:
        console.rule(f"[bold]{next(steps)}. {text}", align="left")

    say(f"Preferences with a known true reward: {prompts} prompts")
    file = out / "data.jsonl"
    comparisons = data.write(file, prompts, seed=0)
    console.print(f"{comparisons} comparisons in {file}")

    say("A base model from scratch, then the reward model from a copy of it")
    fraction = HELD_OUT / prompts
    settings = [f"out={out}", f"data.train={file}", f"data.eval_fraction={fraction}"]
    run = train(read_config(CONFIG, settings))
    evaluation = run.read_report()["evaluation"]
    console.print(f"held-out accuracy {evaluation['accuracy']:.4f}; report in {run.path / HTML}")

    say("Export to a bundle, proved through the code that serves")
    bundle = export(run, out / "bundle")
    console.print(f"{bundle.path}\n{bundle.manifest.id}")

    say("Serve it under Ray Serve")
    groups, _ = read_groups(run.held_out)
    with serving(bundle.path) as service:
        console.print(service.url)
        rewards = score_groups(service.url, groups)
        reference = np.array(_score_reference(service.url, run))

    say("What the served rewards are worth")
    for group, got in list(zip(groups, rewards, strict=True))[:4]:
        console.print(_table(group, got))
    _judge(evaluate(groups, rewards), float(reference.mean()), console)


@dataclass(frozen=True, slots=True)
class Service:
    url: str
    grpc: str
    process: subprocess.Popen[str]


@contextmanager
def serving(
    bundle: Path,
    *options: str,
    python: str | Path = sys.executable,
    environment: Mapping[str, str] | None = None,
) -> Iterator["Service"]:
    """`reward-serve run` in a process of its own, stopped with SIGTERM at the end.

    environment: variables beside those of this process.
    """
    ports = ("--port=0", "--grpc-port=0")
    command = [python, "-m", "service", "run", str(bundle), *ports, *options]
    process = subprocess.Popen(
        command,
        env=os.environ | dict(environment or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    lines: list[str] = []
    deadline = time.monotonic() + START_TIMEOUT_S
    try:
        for line in process.stdout:
            lines.append(line)
            if ready := re.match(r"ready at (\S+) and grpc://(\S+)", line):
                break
            if time.monotonic() > deadline:
                raise TrainingError(f"the service was not ready after {START_TIMEOUT_S} s")
        else:
            raise TrainingError("the service did not start:\n" + "".join(lines[-20:]))
        yield Service(ready[1], ready[2], process)
    finally:
        if process.poll() is None:
            os.kill(process.pid, signal.SIGTERM)
        process.communicate(timeout=START_TIMEOUT_S)


def score_groups(url: str, groups: Sequence[Group]) -> list[np.ndarray]:
    """Rewards of every group, (K,) each, one request per prompt."""
    return [
        np.array(_post(url, {"prompt": group.prompt, "responses": group.responses}), np.float32)
        for group in groups
    ]


def _score_reference(url: str, run: Run) -> list[float]:
    rewards: list[float] = []
    reference = run.reference()
    for start in range(0, len(reference), 500):
        part = reference[start : start + 500]
        pairs = [{"prompt": prompt, "response": response} for prompt, response in part]
        rewards += _post(url, {"pairs": pairs})
    return rewards


def _post(url: str, body: dict[str, Any]) -> list[float]:
    request = urllib.request.Request(f"{url}/score", json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=60) as response:
        rewards: list[float] = json.load(response)["rewards"]
    return rewards


def _table(group: Group, rewards: np.ndarray) -> Table:
    assert group.true_rewards is not None
    table = Table(title=str(group.prompt), title_justify="left", title_style="bold")
    for name in ("reward", "true", "response"):
        table.add_column(name, justify="left" if name == "response" else "right")
    for i in np.argsort(-rewards):
        table.add_row(f"{rewards[i]:.2f}", f"{group.true_rewards[i]:.1f}", group.responses[i])
    return table


def _judge(report: dict[str, Any], mean: float, console: Console) -> None:
    """The promises of the demo, printed and held."""
    share = report["accuracy"] / report["true_reward_accuracy"]
    spearman = report["spearman_within_prompt"]
    promises = {
        f"accuracy {report['accuracy']:.4f} on {report['prompts']} held-out prompts is "
        f"{share:.1%} of the true reward's own {report['true_reward_accuracy']:.4f} "
        "(promised: 95 %)": share >= 0.95,
        f"Spearman within prompt {spearman:.3f} (promised: 0.8)": spearman >= 0.8,
        f"reference completions average {mean:.1e} (promised: 0 within 1e-3)": abs(mean) <= 1e-3,
        f"{report['prompts']} held-out prompts (promised: 500)": report["prompts"] >= 500,
    }
    for promise, kept in promises.items():
        console.print(("[green]kept[/]   " if kept else "[red]missed[/] ") + promise)
    if not all(promises.values()):
        raise TrainingError("the demo did not reach what it promises")
