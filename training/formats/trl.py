"""TRL's preference formats: explicit or implicit prompt, strings or conversational messages.

    {"prompt": "...", "chosen": "...", "rejected": "..."}                       explicit
    {"chosen": "...", "rejected": "..."}                                        implicit
    the same with lists of {"role", "content"} instead of strings               conversational
Optional: "margin", a target margin. https://huggingface.co/docs/trl/dataset_formats
"""

import os
from typing import Any

from pydantic import ValidationError

from service.errors import DataError
from service.text import Message
from training.formats.record import Record, column


def read(content: dict[str, Any]) -> Record:
    chosen, rejected = column(content, "chosen"), column(content, "rejected")
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise DataError("chosen and rejected: one is a string, the other is not")
    if isinstance(chosen, str):
        prompt, responses = _strings(content.get("prompt"), chosen, rejected)
    else:
        prompt, responses = _conversations(content.get("prompt"), chosen, rejected)
    margin = content.get("margin")
    return Record(
        prompt=prompt,
        responses=responses,
        comparisons=((0, 1, 1.0, float(margin or 0.0)),),
        subset=content.get("subset"),
    )


def messages(content: Any, name: str) -> tuple[Message, ...]:
    """A list of {"role", "content"} as Messages; raises DataError naming the first bad one."""
    if not isinstance(content, list):
        raise DataError(f"{name}: {type(content).__name__} instead of a list of messages")
    try:
        return tuple(Message.model_validate(message) for message in content)
    except ValidationError as error:
        raise DataError(f"{name}: {error.errors()[0]['msg']}") from error


def _strings(prompt: Any, chosen: str, rejected: str) -> tuple[str | None, tuple[str, str]]:
    if prompt is None:  # the common beginning, as TRL's extract_prompt; a space stays in front
        prompt = os.path.commonprefix([chosen, rejected])
        if chosen != rejected and prompt.endswith(" "):
            prompt = prompt[:-1]
        chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
    if not isinstance(prompt, str):
        raise DataError("prompt: not a string, while chosen is one")
    return prompt or None, (chosen, rejected)


def _conversations(
    prompt: Any, chosen: Any, rejected: Any
) -> tuple[tuple[Message, ...] | None, tuple[str, str]]:
    first, second = messages(chosen, "chosen"), messages(rejected, "rejected")
    turns = () if prompt is None else messages(prompt, "prompt")
    for name, side in (("chosen", first), ("rejected", second)):
        if not side or side[-1].role != "assistant":
            raise DataError(f"{name}: its last message is not the assistant's")
    if first[:-1] != second[:-1]:
        return None, (first[-1].content, second[-1].content)
    return (*turns, *first[:-1]) or None, (first[-1].content, second[-1].content)
