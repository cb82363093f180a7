"""Completions without a choice: {"prompt": text or messages, "response": text}."""

from typing import Any

from service.errors import DataError
from service.text import Message
from training.formats.record import Columns, columns


class Completion(Columns):
    prompt: str | list[Message]
    response: str


def is_completion(content: dict[str, Any]) -> bool:
    return "response" in content and content.keys().isdisjoint({"chosen", "responses"})


def read(content: dict[str, Any]) -> tuple[str | tuple[Message, ...], str]:
    record = columns(Completion, content)
    if not record.prompt:
        raise DataError("prompt: the conversation is empty")
    prompt = record.prompt if isinstance(record.prompt, str) else tuple(record.prompt)
    return prompt, record.response
