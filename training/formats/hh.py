"""Anthropic HH transcripts: "\\n\\nHuman: ...\\n\\nAssistant: ..." as chosen and as rejected.

https://github.com/anthropics/hh-rlhf
"""

import re
from typing import Any

from service.errors import DataError
from service.text import Message
from training.formats.record import Columns, Record, columns

ANSWER = "\n\nAssistant:"
_TURN = re.compile(r"\n\n(Human|Assistant): ?")
_ROLE = {"Human": "user", "Assistant": "assistant"}


class Transcripts(Columns):
    chosen: str
    rejected: str


def is_transcript(text: Any) -> bool:
    return isinstance(text, str) and text.startswith("\n\nHuman:")


def read(content: dict[str, Any]) -> Record:
    record = columns(Transcripts, content)
    chosen, rejected = _turns(record.chosen, "chosen"), _turns(record.rejected, "rejected")
    return Record(
        prompt=chosen[:-1] if chosen[:-1] == rejected[:-1] else None,
        responses=(chosen[-1].content, rejected[-1].content),
        comparisons=((0, 1, 1.0, 0.0),),
        subset=record.subset,
    )


def before_answer(transcript: str, name: str) -> str:
    """All up to and with the marker of the last turn, the assistant's."""
    _turns(transcript, name)
    return transcript[: transcript.rindex(ANSWER) + len(ANSWER)]


def _turns(transcript: str, name: str) -> tuple[Message, ...]:
    """(before, role, text, role, text, ...) is what split gives; `before` must be empty."""
    if not is_transcript(transcript):
        raise DataError(f'{name}: does not begin with "\\n\\nHuman:"')
    _, *parts = _TURN.split(transcript)
    turns = tuple(
        Message.model_validate({"role": _ROLE[role], "content": text})
        for role, text in zip(parts[::2], parts[1::2], strict=True)
    )
    if turns[-1].role != "assistant":
        raise DataError(f"{name}: its last turn is not the assistant's")
    return turns
