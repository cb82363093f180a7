"""TRL's preference formats: explicit or implicit prompt, strings or conversational messages.

    {"prompt": "...", "chosen": "...", "rejected": "..."}                       explicit
    {"chosen": "...", "rejected": "..."}                                        implicit
    the same with lists of {"role", "content"} instead of strings               conversational
Optional: "margin", a target margin. https://huggingface.co/docs/trl/dataset_formats

The implicit prompt of two strings is what both begin with, back to where a word ends or, in a
transcript, to the last turn's marker; TRL's extract_prompt cuts inside a word. Whole words that
both responses begin with still go to the prompt, so one prompt may come out as several and lie on
both sides of a split: where that can be, give the prompt. `check` counts prompts that begin others.
"""

import os
from typing import Any

from service.errors import DataError
from service.text import Message
from training.formats import hh
from training.formats.record import Columns, Record, columns

Side = str | list[Message]


class Preference(Columns):
    prompt: Side | None = None
    chosen: Side
    rejected: Side
    margin: float = 0.0
    tools: Any = None


def read(content: dict[str, Any]) -> Record:
    record = columns(Preference, content)
    if record.prompt is not None and not record.prompt:
        raise DataError("prompt: the conversation is empty")
    if record.tools:
        raise DataError("tools: no template is given tools here; write them into the prompt")
    sides = record.prompt, record.chosen, record.rejected
    if len({type(side) for side in sides if side is not None}) > 1:
        raise DataError("prompt, chosen and rejected: some are strings, others lists of messages")
    prompt, responses = _strings(*sides) if isinstance(sides[1], str) else _conversations(*sides)
    return Record(
        prompt=prompt,
        responses=responses,
        comparisons=((0, 1, 1.0, record.margin),),
        subset=record.subset,
    )


def _strings(prompt: Any, chosen: Any, rejected: Any) -> tuple[str | None, tuple[str, str]]:
    if prompt is None:
        prompt = _ended(os.path.commonprefix([chosen, rejected]))
        chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
    return prompt or None, (chosen, rejected)


def _ended(common: str) -> str:
    """The prompt in a common beginning; a space, as tokenizers take it, goes to the responses."""
    if hh.is_transcript(common) and hh.ANSWER in common:
        return common[: common.rindex(hh.ANSWER) + len(hh.ANSWER)]
    return common[: max(common.rfind(" "), common.rfind("\n") + 1)]


def _conversations(
    prompt: Any, chosen: Any, rejected: Any
) -> tuple[tuple[Message, ...] | None, tuple[str, str]]:
    for name, side in (("chosen", chosen), ("rejected", rejected)):
        if not side or side[-1].role != "assistant":
            raise DataError(f"{name}: its last message is not the assistant's")
    turns = None if chosen[:-1] != rejected[:-1] else (*(prompt or ()), *chosen[:-1])
    return turns or None, (chosen[-1].content, rejected[-1].content)
