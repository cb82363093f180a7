"""What a TRL run left behind: per step its log, its completions and their rewards."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet

from training.demo.truth import true_reward

BETA = 0.2
"""of the KL penalty, as in scripts/trl_grpo.py. At 0.05 the policy leaves what the reward model was
trained on: on one machine's demo the mean reward rose to 1.3, 1.7 and 2.1 at a KL of 12 to 26 nats,
with answers such as "Good question! The opposite isGood question! ...", and the true reward fell
(26 Nov 2026): Gao et al., Scaling laws for reward model overoptimization, arXiv:2210.10760"""


@dataclass(frozen=True)
class Completion:
    prompt: str
    response: str
    reward: float


@dataclass(frozen=True)
class Curves:
    """Means of every step, (S,) each."""

    reward: np.ndarray
    true_reward: np.ndarray
    kl: np.ndarray
    "per completion, in nats: TRL's mean per token times the mean length"

    @property
    def objective(self) -> np.ndarray:
        """E[r - beta log(pi / pi_SFT)] of InstructGPT (arXiv:2203.02155, eq. 2, gamma 0)."""
        return self.reward - BETA * self.kl


def completions(out: Path) -> list[list[Completion]]:
    """Of every step, from TRL's own completion tables."""
    steps = []
    for file in sorted((out / "completions").glob("*.parquet")):
        rows = parquet.read_table(file).to_pylist()
        steps.append([_completion(row) for row in rows])
    return steps


def _completion(row: dict) -> Completion:
    (turn,), (answer,) = row["prompt"], row["completion"]
    return Completion(turn["content"], answer["content"], row["remote_reward"])


def curves(out: Path) -> Curves:
    log = [json.loads(line) for line in (out / "log.jsonl").open()]
    true = [
        np.mean([true_reward(row.prompt, row.response) for row in step])
        for step in completions(out)
    ]
    kl = [entry["kl"] * entry["completions/mean_length"] for entry in log]
    return Curves(np.array([entry["reward"] for entry in log]), np.array(true), np.array(kl))


def fifths(values: np.ndarray) -> tuple[float, float]:
    """Means of the first and of the last fifth."""
    length = len(values) // 5
    return float(values[:length].mean()), float(values[-length:].mean())
