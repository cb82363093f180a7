"""A run directory: what `fit` leaves behind and `export` and `evaluate` read.

model/            raw reward model: config.json (with mean, std = 1), weights, tokenizer, template
config.json       the configuration it was begun with
text.json         the text rules it was trained under
reference.jsonl   the reference completions, as {"prompt", "response"}
held_out.jsonl    the held-out groups, as K-wise records
report.json       configuration, data, evaluation, log;   report.html   the same to look at
base/             the base model, where it was made from scratch;   checkpoints/
"""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from service.bundle import TEMPLATE, TOKENIZER
from service.errors import TrainingError
from service.manifest import TextRules
from service.text import Encoder
from training.config import TrainConfig
from training.data import Completion, Group, Prompt, read_completions


@dataclass(frozen=True, slots=True)
class Run:
    path: Path

    @property
    def model(self) -> Path:
        return self.path / "model"

    @property
    def base(self) -> Path:
        return self.path / "base"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def held_out(self) -> Path:
        return self.path / "held_out.jsonl"

    @property
    def report(self) -> Path:
        return self.path / "report.json"

    def begin(self, config: TrainConfig, inputs: dict[str, str]) -> bool:
        """Make the directory, or go on in it; True where the run in it is finished already.

        inputs: digests of what it learns from. Raises where it was begun with other settings or
        other inputs.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        file = self.path / "config.json"
        subject = {"config": config.model_dump(mode="json"), "inputs": inputs}
        content = json.dumps(subject, indent=2) + "\n"
        if not file.exists():
            write_whole(file, content)
        elif file.read_text(encoding="utf-8") != content:
            raise TrainingError(
                f"{self.path}: holds a run with other settings or other data, see its config.json; "
                "give the same ones to go on with it, or choose another --set out=DIR"
            )
        return self.report.is_file()

    @classmethod
    def open(cls, path: Path) -> "Run":
        run = cls(path)
        if not run.report.is_file():
            raise TrainingError(f"{path}: not a run directory, it has no report.json")
        return run

    def rules(self) -> TextRules:
        try:
            return TextRules.model_validate_json((self.path / "text.json").read_bytes())
        except (OSError, ValidationError) as error:
            raise TrainingError(f"{self.path / 'text.json'}: {error}") from error

    def tokenizer_json(self) -> str:
        return (self.model / TOKENIZER).read_text(encoding="utf-8")

    def template(self) -> str | None:
        file = self.model / TEMPLATE
        return file.read_text(encoding="utf-8") if file.is_file() else None

    def encoder(self) -> Encoder:
        return Encoder(self.tokenizer_json(), self.template(), self.rules())

    def write_rules(self, rules: TextRules) -> None:
        (self.path / "text.json").write_text(rules.model_dump_json(indent=2) + "\n")

    def read_report(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(self.report.read_bytes())
        return content

    def write_reference(self, completions: Sequence[Completion]) -> None:
        with (self.path / "reference.jsonl").open("w", encoding="utf-8") as file:
            for prompt, response in completions:
                file.write(json.dumps({"prompt": plain(prompt), "response": response}) + "\n")

    def reference(self) -> list[Completion]:
        return read_completions(self.path / "reference.jsonl")

    def write_held_out(self, groups: Sequence[Group]) -> None:
        with self.held_out.open("w", encoding="utf-8") as file:
            for group in groups:
                for record in as_records(group):
                    file.write(json.dumps(record) + "\n")


def write_whole(file: Path, content: str) -> None:
    """Write a file so that whoever is killed meanwhile leaves the old one or the new one."""
    unfinished = file.with_suffix(".unfinished")
    with unfinished.open("w", encoding="utf-8") as out:
        out.write(content)
        out.flush()
        os.fsync(out.fileno())
    unfinished.rename(file)


def plain(prompt: Prompt) -> object:
    return prompt if isinstance(prompt, str) else [message.model_dump() for message in prompt]


def as_records(group: Group) -> Iterator[dict[str, object]]:
    """A group in the K-wise format, training/formats/kwise.py: a record where the subset changes,
    so that the comparisons keep their order."""
    for subset, comparisons in groupby(group.comparisons, lambda c: c.subset):
        record: dict[str, object] = {
            "prompt": plain(group.prompt),
            "responses": group.responses,
            "comparisons": [[c.winner, c.loser, c.target, c.target_margin] for c in comparisons],
            "ordered": False,
        }
        if subset:
            record["subset"] = subset
        if group.true_rewards:
            record["true_rewards"] = group.true_rewards
        yield record
