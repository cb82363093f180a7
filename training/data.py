"""Preference records -> comparison groups. Knows text and choices; knows nothing of models.

A group is one prompt with its K unique responses and every comparison recorded among them, so a
plain pair is a group of K = 2. Records that share a prompt become one group.
"""

import hashlib
import json
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

from service.errors import DataError
from service.text import Message
from training.formats import Reader, completion, reader_for
from training.formats.record import Record
from training.formats.source import at_line, read_rows
from training.issues import Action, IssueKind, Issues

Prompt = str | tuple[Message, ...]
Completion = tuple[Prompt, str]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Indices into the group's responses; target = P(winner preferred)."""

    winner: int
    loser: int
    target: float = 1.0
    target_margin: float = 0.0
    line: int = 0
    subset: str | None = None


@dataclass(frozen=True, slots=True)
class Group:
    prompt: Prompt
    responses: tuple[str, ...]
    comparisons: tuple[Comparison, ...]
    chosen: tuple[int, ...]
    "the response each record preferred over all its others; the reference completions"
    lines: tuple[int, ...]
    true_rewards: tuple[float, ...] | None = None


def read_records(path: str | Path, format: str = "auto") -> Iterator[Record]:
    """Records of a source (training/formats/source.py). Errors name the source and the line."""
    path = Path(path)
    read: Reader | None = None
    for number, content in read_rows(path):
        with at_line(path, number):
            read = read or reader_for(content, format)
            record = read(content)
        yield record.at(number)


def read_groups(
    path: str | Path,
    format: str = "auto",
    actions: Mapping[IssueKind, Action] = MappingProxyType({}),
) -> tuple[list[Group], Issues]:
    """Comparison groups of a source, in the order of their first record.

    `actions` says for each kind of issue "keep" (count it), "drop" or "error".
    """
    return group_records(read_records(path, format), str(path), actions)


def group_records(
    records: Iterable[Record],
    source: str,
    actions: Mapping[IssueKind, Action] = MappingProxyType({}),
) -> tuple[list[Group], Issues]:
    """As `read_groups`; `source` is what errors name."""
    issues = Issues()
    by_prompt: dict[Prompt, _Merging] = {}
    for record in records:
        if record.prompt is None:
            action = actions.get("different_prompts", "error")
            issues.add("different_prompts", record.line, action, source)
            continue
        group = by_prompt.setdefault(record.prompt, _Merging(record.prompt))
        group.add(record, issues, actions, source)
    groups = [group.done() for group in by_prompt.values() if group.comparisons]
    if not groups:
        raise DataError(f"{source}: no comparisons in it")
    return groups, issues


@dataclass
class _Merging:
    """A group while its records arrive."""

    prompt: Prompt
    index: dict[str, int] = field(default_factory=dict)
    comparisons: list[Comparison] = field(default_factory=list)
    choices: set[tuple[str, str]] = field(default_factory=set)
    "(preferred, other) of every comparison so far that is not a tie"
    chosen: list[int] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    true_rewards: dict[int, float] = field(default_factory=dict)

    def add(
        self, record: Record, issues: Issues, actions: Mapping[IssueKind, Action], file: str
    ) -> None:
        kept = 0
        for winner, loser, target, margin in record.comparisons:
            kind = self._issue(record, winner, loser, target)
            if kind and issues.add(kind, record.line, actions.get(kind, "keep"), file):
                continue
            pair = self._place(record, winner), self._place(record, loser)
            self.comparisons.append(Comparison(*pair, target, margin, record.line, record.subset))
            self._remember(record.responses[winner], record.responses[loser], target)
            kept += 1
        if not kept:
            return
        self.chosen.append(self._place(record, record.preferred()))
        self.lines.append(record.line)

    def _place(self, record: Record, i: int) -> int:
        place = self.index.setdefault(record.responses[i], len(self.index))
        if record.true_rewards:
            self.true_rewards[place] = record.true_rewards[i]
        return place

    def _remember(self, winner: str, loser: str, target: float) -> None:
        if target != 0.5:
            self.choices.add((winner, loser) if target > 0.5 else (loser, winner))

    def _issue(self, record: Record, winner: int, loser: int, target: float) -> IssueKind | None:
        first, second = record.responses[winner], record.responses[loser]
        if first == second:
            return "identical"
        if target == 0.5:
            return None
        preferred, other = (first, second) if target > 0.5 else (second, first)
        return "contradictory" if (other, preferred) in self.choices else None

    def done(self) -> Group:
        complete = len(self.true_rewards) == len(self.index)
        return Group(
            prompt=self.prompt,
            responses=tuple(self.index),
            comparisons=tuple(self.comparisons),
            chosen=tuple(self.chosen),
            lines=tuple(self.lines),
            true_rewards=tuple(self.true_rewards[i] for i in range(len(self.index)))
            if complete
            else None,
        )


def find_identical_when_cut(
    groups: Sequence[Group],
    rows: Sequence[Sequence[Sequence[int]]],
    issues: Issues,
    action: Action,
    file: str,
) -> list[Group]:
    """Groups without the comparisons that the token limits made void, where `action` is "drop".

    rows: per group, the token ids of its responses.
    """
    kept = []
    for group, ids in zip(groups, rows, strict=True):
        comparisons = tuple(
            c
            for c in group.comparisons
            if c.winner == c.loser
            or ids[c.winner] != ids[c.loser]
            or not issues.add("identical_when_cut", c.line, action, file)
        )
        lines = {c.line for c in comparisons}
        records = [(i, line) for i, line in zip(group.chosen, group.lines, strict=True)]
        chosen, own = (
            zip(*[r for r in records if r[1] in lines], strict=True) if lines else ((), ())
        )
        if comparisons:
            kept.append(replace(group, comparisons=comparisons, chosen=chosen, lines=own))
    return kept


def split_by_prompt(
    groups: Sequence[Group], fraction: float, seed: int
) -> tuple[list[Group], list[Group]]:
    """(training, held out). A prompt is on one side only, since a group holds all of it."""
    order = list(range(len(groups)))
    random.Random(seed).shuffle(order)
    held_out = set(order[: max(1, round(len(groups) * fraction))])
    if len(held_out) == len(groups):
        raise DataError(f"{len(groups)} prompts are too few to hold any out for evaluation")
    return (
        [g for i, g in enumerate(groups) if i not in held_out],
        [g for i, g in enumerate(groups) if i in held_out],
    )


def read_completions(path: Path) -> list[Completion]:
    """Every row of a source as a completion. Errors name the source and the line."""
    completions = []
    for number, content in read_rows(path):
        with at_line(path, number):
            completions.append(completion.read(content))
    return completions


def reference_completions(groups: Iterable[Group]) -> list[Completion]:
    """The chosen responses, one per record: what the normalisation averages to 0."""
    return [(group.prompt, group.responses[i]) for group in groups for i in group.chosen]


def completions_sha256(completions: Sequence[Completion]) -> str:
    """Digest of a set of completions, whatever file it came from."""
    digest = hashlib.sha256()
    for prompt, response in completions:
        turns = prompt if isinstance(prompt, str) else [m.model_dump() for m in prompt]
        digest.update(json.dumps([turns, response]).encode() + b"\n")
    return digest.hexdigest()
