"""Text that a chat template was applied to, back to messages. Knows the common turn markers.

It reads what trainers render: ChatML (Qwen and many others), Llama 3, Gemma. What it cannot read it
refuses; nothing is guessed.
"""

import json
import re
from collections.abc import Sequence
from typing import Any

from pydantic import TypeAdapter, ValidationError

from service.errors import InvalidRequest
from service.pairs import Pair
from service.text import Message

TURNS = (
    (re.compile(r"<\|im_start\|>(\w+)\n"), "<|im_end|>"),
    (re.compile(r"<\|start_header_id\|>(\w+)<\|end_header_id\|>\n\n"), "<|eot_id|>"),
    (re.compile(r"<start_of_turn>(\w+)\n"), "<end_of_turn>"),
)
"how a turn begins, its role, and how it ends"
ROLES = {"model": "assistant"}
"Gemma's name"
_MARK = r"(?:<[|｜][^|｜<>]{1,64}[|｜]>|<bos>|</?s>|<eos>|<pad>|<end_of_turn>)"
_ANY = re.compile(_MARK)
_ONLY = re.compile(rf"\s*(?:{_MARK}\s*)*")
_LAST = re.compile(rf"(?:{_MARK}\s*)+$")
_MESSAGES = TypeAdapter(tuple[Message, ...])


def prompt_in(text: str, prompt: str) -> str:
    """What of `text` is the prompt's, "" where it does not begin with it.

    A decoded text may have BOS or blanks before the prompt that the prompt's own text has not.
    """
    start = text.find(prompt) if prompt else -1
    return text[: start + len(prompt)] if start >= 0 and _ONLY.fullmatch(text[:start]) else ""


def as_pair(text: str, prompt: str, label: Any, field: str) -> Pair:
    """The conversation that `text` was rendered from, for the bundle's own template.

    The messages are those of the label, where it holds some; else they are read in the prompt.
    Raises InvalidRequest, naming `field`, where they cannot be read.
    """
    begin = prompt_in(text, prompt)
    if prompt and not begin:
        raise InvalidRequest(
            f"{field}: the text does not begin with its prompt, so template=chat cannot tell the "
            "response from it",
            field=field,
        )
    if not prompt:
        turns = _turns(text, field)
        if not turns or turns[-1].role != "assistant":
            raise _unreadable(field, "the text does not end with a turn of the assistant")
        return Pair(tuple(turns[:-1]), turns[-1].content)
    response = without_ending(text[len(begin) :])
    if messages := messages_in(label):
        return Pair(messages, response)
    before, opened = _open_turn(_prompt_turns(begin, field))
    return Pair(before, opened + response)


def without_ending(response: str) -> str:
    """A response without the special tokens at its end; the template writes its own."""
    return _LAST.sub("", response)


def messages_in(label: Any) -> tuple[Message, ...]:
    """The messages of a label that is a list of them, or JSON of one; else none."""
    if isinstance(label, str) and label.lstrip().startswith("["):
        try:
            label = json.loads(label)
        except ValueError:
            return ()
    try:
        return _MESSAGES.validate_python(label)
    except ValidationError:
        return ()


def _prompt_turns(prompt: str, field: str) -> list[Message]:
    """Turns of a rendered prompt; a prompt without any marker is one turn of the user."""
    if turns := _turns(prompt, field):
        return turns
    plain = _ONLY.match(prompt)
    rest = prompt[plain.end() :] if plain else prompt
    if _ANY.search(rest):
        raise _unreadable(field, "its special tokens are none of ChatML, Llama 3 or Gemma")
    return [Message(role="user", content=rest)]


def _turns(text: str, field: str) -> list[Message]:
    """Turns in order, the last one perhaps without its end; none where there are no markers."""
    for opening, ending in TURNS:
        found = list(opening.finditer(text))
        if found and _ONLY.fullmatch(text[: found[0].start()]):
            ends = [*(match.start() for match in found[1:]), len(text)]
            return [
                _turn(match[1], text[match.end() : end], ending, end == len(text), field)
                for match, end in zip(found, ends, strict=True)
            ]
    return []


def _turn(role: str, content: str, ending: str, last: bool, field: str) -> Message:
    body, mark, rest = content.rpartition(ending)
    if not mark and last:
        body, rest = content, ""
    if (not mark and not last) or not _ONLY.fullmatch(rest):
        raise _unreadable(field, f"a turn does not end with {ending}")
    try:
        return Message.model_validate({"role": ROLES.get(role, role), "content": body})
    except ValidationError:
        raise _unreadable(field, f"role {role!r} is unknown") from None


def _open_turn(turns: Sequence[Message]) -> tuple[tuple[Message, ...], str]:
    """The turns before the one that the policy goes on with, and what is written of that one."""
    if turns and turns[-1].role == "assistant":
        return tuple(turns[:-1]), turns[-1].content
    return tuple(turns), ""


def _unreadable(field: str, why: str) -> InvalidRequest:
    return InvalidRequest(
        f"{field}: template=chat cannot read the conversation: {why}; send the messages as JSON in "
        "the label, or score the text as it is with template=raw",
        field=field,
    )
