"""TRL's preference formats: explicit or implicit prompt, strings or conversational messages.

    {"prompt": "...", "chosen": "...", "rejected": "..."}                       explicit
    {"chosen": "...", "rejected": "..."}                                        implicit
    the same with lists of {"role", "content"} instead of strings               conversational
Optional: "margin", a target margin. https://huggingface.co/docs/trl/dataset_formats

The implicit prompt of two strings is what both begin with, back to where no word is cut and both
responses have text left; TRL's extract_prompt cuts inside a word. A character of a script that
writes no spaces is a word. Of two transcripts it is what stands before the last answer, as the HH
reader has it. Whole words that both responses begin with still go to the prompt, so one prompt may
come out as several and lie on both sides of a split: where that can be, give the prompt. `check`
counts prompts that begin others.
"""

import os
import re
import unicodedata
from typing import Any

from service.errors import DataError
from service.text import Message
from training.formats import hh
from training.formats.record import Columns, Record, columns

UNSPACED = re.compile(
    r"[\u0e00-\u109f\u1780-\u17ff"  # Thai, Lao, Tibetan, Burmese; Khmer
    r"\u3005-\u3007\u3040-\u312f\u31a0-\u31ff\u3400-\ua4cf"  # kana, bopomofo, ideographs, Yi
    r"\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff]"  # compatible, narrow and rare ones
)
"a character of a script that writes no spaces between words"

Side = str | list[Message]


class Preference(Columns):
    prompt: Side | None = None
    chosen: Side
    rejected: Side
    margin: float = 0.0


def read(content: dict[str, Any]) -> Record:
    record = columns(Preference, content)
    if record.prompt is not None and not record.prompt:
        raise DataError("prompt: the conversation is empty")
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
        prompt = _shared(chosen, rejected)
        chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
    return prompt or None, (chosen, rejected)


def _shared(chosen: str, rejected: str) -> str:
    """The implicit prompt; a space, as tokenizers take it, goes to the responses."""
    if hh.is_transcript(chosen) and hh.is_transcript(rejected):
        prompt = hh.before_answer(chosen, "chosen")
        return prompt if prompt == hh.before_answer(rejected, "rejected") else ""
    common = os.path.commonprefix([chosen, rejected])
    ends = range(len(common), 0, -1)
    end = next((end for end in ends if _parts(chosen, end) and _parts(rejected, end)), 0)
    return common[:end].removesuffix(" ")


def _parts(text: str, end: int) -> bool:
    """Whether something follows `end` and no word or accented letter is cut there."""
    if end == len(text) or unicodedata.category(text[end])[0] == "M":
        return False
    return not (_joins(text[end - 1]) and _joins(text[end]))


def _joins(character: str) -> bool:
    """A letter, digit or mark that makes one word with its neighbours."""
    return unicodedata.category(character)[0] in "LNM" and not UNSPACED.match(character)


def _conversations(
    prompt: Any, chosen: Any, rejected: Any
) -> tuple[tuple[Message, ...] | None, tuple[str, str]]:
    for name, side in (("chosen", chosen), ("rejected", rejected)):
        if not side or side[-1].role != "assistant":
            raise DataError(f"{name}: its last message is not the assistant's")
    turns = None if chosen[:-1] != rejected[:-1] else (*(prompt or ()), *chosen[:-1])
    return turns or None, (chosen[-1].content, rejected[-1].content)
