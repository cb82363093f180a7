"""Text that a chat template was applied to, back to messages. Knows what trainers send beside it.

It reads what trainers render: ChatML (Qwen and many others), Llama 3, Gemma. What it cannot read it
refuses; nothing is guessed.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from pydantic import TypeAdapter, ValidationError

from service.errors import InvalidRequest
from service.markers import FAMILIES, NO_TEXT, SPECIAL, UNKNOWN, UNREAD, Markers
from service.pairs import Pair
from service.text import Message

Written = tuple[str, str]
"a turn's role, and what is written up to the next turn"
_MESSAGES = TypeAdapter(tuple[Message, ...])


@dataclass(frozen=True, slots=True)
class Label:
    """What a data set has beside a prompt: the prompt's messages, or anything else."""

    value: Any
    field: str

    def messages(self) -> tuple[Message, ...]:
        """Those before the response, where the label is a list of messages or JSON of one.

        One that ends with the assistant's is a reference answer: like every gold answer it changes
        no reward. Raises InvalidRequest where objects that have a role are no messages.
        """
        turns = self._objects()
        if not turns or turns[-1]["role"] == "assistant":
            return ()
        try:
            if isinstance(self.value, str):  # JSON again: that refuses lone surrogates
                return _MESSAGES.validate_json(self.value)
            return _MESSAGES.validate_python(turns)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in first["loc"])
            raise InvalidRequest(
                f"{self.field}{place}: {first['msg']}; with template=chat a list of objects that "
                "have a role is the conversation before the response, each with role and content "
                "and nothing else; send it so, or no label",
                field=self.field,
            ) from None

    def _objects(self) -> list[dict[str, Any]]:
        """Objects that have a role; none where the label is anything else."""
        value = self.value
        if isinstance(value, str) and value.lstrip().startswith("["):
            try:
                value = json.loads(value)
            except (ValueError, RecursionError):  # an interval such as [0, 1), brackets without end
                return []
        if not isinstance(value, list):
            return []
        return value if all(isinstance(turn, dict) and "role" in turn for turn in value) else []


def prompt_in(text: str, prompt: str) -> str:
    """What of `text` is the prompt's, "" where it does not begin with it.

    A decoded text may have BOS or blanks before the prompt that the prompt's own text has not.
    """
    start = text.find(prompt) if prompt else -1
    return text[: start + len(prompt)] if start >= 0 and NO_TEXT.fullmatch(text, 0, start) else ""


def as_pair(text: str, prompt: str, label: Label | None, field: str) -> Pair:
    """The conversation that `text` was rendered from, for the bundle's own template.

    The messages are those of the label, where it holds some; else they are read in the prompt.
    Raises InvalidRequest, naming `field` or the label's, where they cannot be read.
    """
    messages = label.messages() if label else ()
    if not prompt:
        markers, turns = _answered(text, field)
        before = messages or _messages(markers, turns[:-1], field)
        return Pair(before, markers.without_ending(turns[-1][1]))
    begin = prompt_in(text, prompt)
    if not begin:
        raise InvalidRequest(
            f"{field}: the text does not begin with its prompt, so template=chat cannot tell the "
            "response from it",
            field=field,
        )
    markers, turns = _turns(begin)
    written = text[len(begin) :]
    if markers.opens(written):
        raise _unreadable(field, "another turn begins where its prompt ends")
    response = _opened(markers, turns) + markers.without_ending(written)
    return Pair(messages or _before(begin, markers, turns, field), response)


def _answered(text: str, field: str) -> tuple[Markers, list[Written]]:
    """Turns of a text whose prompt is not known: the last one is the response."""
    markers, turns = _turns(text)
    if not turns or turns[-1][0] != "assistant":
        why = None if turns else _foreign(text)
        raise _unreadable(field, why or "the text does not end with a turn of the assistant")
    if ("assistant", "assistant") in pairwise(role for role, _ in turns):
        raise _unreadable(
            field,
            "two turns of the assistant follow each other, and only the prompt, where the endpoint "
            "takes one, would tell which of them the response begins with",
        )
    return markers, turns


def _before(
    prompt: str, markers: Markers, turns: Sequence[Written], field: str
) -> tuple[Message, ...]:
    """Messages of a rendered prompt; a prompt without any marker is one turn of the user."""
    if not turns:
        if why := _foreign(prompt):
            raise _unreadable(field, why)
        return (Message(role="user", content=NO_TEXT.sub("", prompt, count=1)),)
    role, written = turns[-1]
    if role == "assistant" and _finished(markers, written):
        raise _unreadable(field, "its prompt ends with a finished turn of the assistant")
    return _messages(markers, turns[:-1] if role == "assistant" else turns, field)


def _foreign(text: str) -> str | None:
    """Why a text without a turn is no plain text either; None where it is."""
    plain = NO_TEXT.sub("", text, count=1)
    if (begin := UNREAD.match(plain)) and f"[/{begin[1]}]" in plain:
        return (
            f"{begin[0]} ... [/{begin[1]}] looks like Mistral's or Llama 2's template, and only "
            "ChatML, Llama 3 and Gemma are read"
        )
    if SPECIAL.search(plain):
        return "its special tokens are none of ChatML, Llama 3 or Gemma"
    return None


def _turns(text: str) -> tuple[Markers, list[Written]]:
    """The family and its turns in order; none where the text does not begin with one."""
    for markers in FAMILIES:
        found = list(markers.opening.finditer(text))
        if found and NO_TEXT.fullmatch(text, 0, found[0].start()):
            ends = [*(match.start() for match in found[1:]), len(text)]
            return markers, [
                (
                    "assistant" if match[1] == markers.assistant else match[1],
                    text[match.end() : end],
                )
                for match, end in zip(found, ends, strict=True)
            ]
    return UNKNOWN, []


def _opened(markers: Markers, turns: Sequence[Written]) -> str:
    """What is written already of the turn that the policy goes on with."""
    role, written = turns[-1] if turns else ("", "")
    return written if role == "assistant" and not _finished(markers, written) else ""


def _finished(markers: Markers, written: str) -> bool:
    _, ending, rest = written.rpartition(markers.ending)
    return bool(ending) and NO_TEXT.fullmatch(rest) is not None


def _messages(markers: Markers, turns: Sequence[Written], field: str) -> tuple[Message, ...]:
    """Finished turns, without what the family's template writes of itself."""
    messages = [_message(markers, role, written, field) for role, written in turns]
    if messages and messages[0].role == "system":
        content = messages[0].content
        if preamble := markers.preamble.match(content):
            rest = content[preamble.end() :]
            messages[:1] = [Message(role="system", content=rest)] if rest else []
    return tuple(messages)


def _message(markers: Markers, role: str, written: str, field: str) -> Message:
    content, ending, rest = written.rpartition(markers.ending)
    if not ending or not NO_TEXT.fullmatch(rest):
        raise _unreadable(field, f"a turn does not end with {markers.ending}")
    try:
        return Message.model_validate({"role": role, "content": content})
    except ValidationError:
        raise _unreadable(field, f"role {role!r} is unknown") from None


def _unreadable(field: str, why: str) -> InvalidRequest:
    return InvalidRequest(
        f"{field}: template=chat cannot read the conversation: {why}; where the endpoint takes "
        "them, send the prompt, and the messages before the response as JSON in the label, or "
        "score the text as it is with template=raw",
        field=field,
    )
