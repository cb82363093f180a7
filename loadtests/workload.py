"""What the load sends: groups of responses to prompts, each with the reward it must get."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True, slots=True)
class Group:
    prompt: str
    responses: tuple[str, ...]
    rewards: tuple[float, ...]
    "what the same bundle gives them offline"

    def check(self, rewards: Sequence[float], start: int = 0) -> None:
        """Raise ValueError unless every reward has the bits of the offline one."""
        expected = self.rewards[start : start + len(rewards)]
        if np.array(rewards, np.float32).tobytes() != np.array(expected, np.float32).tobytes():
            raise ValueError(f"wrong rewards: {list(rewards)} instead of {list(expected)}")


def read(path: Path) -> list[Group]:
    with path.open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return [Group(r["prompt"], tuple(r["responses"]), tuple(r["rewards"])) for r in rows]


def write(path: Path, groups: Sequence[Group]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for group in groups:
            row = {"prompt": group.prompt, "responses": group.responses, "rewards": group.rewards}
            file.write(json.dumps(row) + "\n")
