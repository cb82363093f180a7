"""Conversation -> the text that a chat template writes. Knows special tokens; knows no limits."""

import re
import threading
from bisect import bisect_left
from collections.abc import Sequence

import jinja2
from cachetools import LRUCache

from service.errors import InvalidRequest
from service.manifest import TextRules
from service.sealed import KEPT, Opening, SealedTokenizer
from service.template import compile_template

ENTRY = 140
"what the objects of a kept opening take beside its texts and ids, in characters: about 700 bytes"
MAX_SHAPES = 4096
"conversation shapes whose count of special tokens is kept"

INERT = "\ue002"
"content of a message that no special token can come from"

Turn = dict[str, str]
"role and content, as templates take them"


class Rendering:
    """Writes conversations by a bundle's template. Thread-safe.

    The text of a special token *inside* a message is ordinary text. Special tokens that the
    template writes are renamed to strings nobody can guess, in the rendered text and in the
    tokenizer alike (service/sealed.py); where a template would put one together from pieces of
    messages, the conversation is refused. Turn markers that are no special tokens, such as
    "User:", are text wherever they stand.
    """

    def __init__(self, tokenizer: SealedTokenizer, template: str, rules: TextRules) -> None:
        self._tokenizer = tokenizer
        self._template = compile_template(template, rules.template_date)
        self._variables = rules.template_variables
        self._mark = re.compile(rf"\ue000{tokenizer.nonce}m(\d+)\ue001")
        self._openings: LRUCache[tuple[str, ...], tuple[int, Opening]] = LRUCache(
            KEPT, getsizeof=lambda kept: kept[0]
        )
        "by roles and contents: how many characters and ids, and what begins so"
        self._lock = threading.Lock()
        self._own_specials: dict[tuple[tuple[str, bool], ...], int] = {}

    def text(self, turns: Sequence[Turn], field: str) -> str:
        """The conversation's text, sealed. Raises InvalidRequest, naming `field`."""
        text, specials = self._apply(turns, field)
        self._refuse_forgery(turns, specials, field)
        return text

    def opening(self, turns: Sequence[Turn], field: str) -> Opening:
        """What the rendered text begins with, whatever the response is."""
        key = tuple(part for turn in turns for part in turn.values())
        with self._lock:
            _, known = self._openings.get(key, (0, None))
        if known is not None:
            return known
        asked, _ = self._apply(turns, field, generation_prompt=True)
        probe, _ = self._apply([*turns, turn_of("assistant", INERT)], field)
        opening = self._tokenizer.opening(self._whole_tokens(asked[: _common(asked, probe)]))
        size = sum(map(len, key)) + opening.size + ENTRY
        if size <= KEPT:
            with self._lock:
                self._openings[key] = size, opening
        return opening

    def _whole_tokens(self, text: str) -> str:
        """Without a special token that was cut in two at the end."""
        start = text.rfind("\ue000" + self._tokenizer.nonce)
        return text if start < 0 or "\ue001" in text[start:] else text[:start]

    def _refuse_forgery(self, turns: Sequence[Turn], specials: int, field: str) -> None:
        """Raise where a template makes a special token out of pieces of messages.

        The same conversation with inert contents shows how many are the template's own.
        """
        shape = tuple((turn["role"], bool(turn["content"].strip())) for turn in turns)
        expected = self._own_specials.get(shape)
        if expected is None:
            inert = [
                turn_of(turn["role"], INERT if turn["content"].strip() else turn["content"])
                for turn in turns
            ]
            _, expected = self._apply(inert, field)
            if len(self._own_specials) < MAX_SHAPES:
                self._own_specials[shape] = expected
        if specials != expected:
            raise InvalidRequest(
                f"{field}: through the chat template, the text of its messages would make "
                f"{specials - expected} special tokens of its own",
                field=field,
            )

    def _apply(
        self, turns: Sequence[Turn], field: str, generation_prompt: bool = False
    ) -> tuple[str, int]:
        """The rendered text, its special tokens renamed, and how many it has."""
        hidden: list[str] = []

        def hide(match: re.Match[str]) -> str:
            hidden.append(match[0])
            return f"\ue000{self._tokenizer.nonce}m{len(hidden) - 1}\ue001"

        messages = [
            turn_of(turn["role"], self._tokenizer.special.sub(hide, turn["content"]))
            for turn in turns
        ]
        try:
            text = self._template.render(
                messages=messages,
                add_generation_prompt=generation_prompt,
                **self._variables,
            )
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
            raise InvalidRequest(
                f"{field}: the chat template refuses this conversation: {error}", field=field
            ) from error
        sealed, specials = self._tokenizer.seal(text)
        if hidden:
            sealed = self._mark.sub(lambda match: hidden[int(match[1])], sealed)
        return sealed, specials


def turn_of(role: str, content: str) -> Turn:
    return {"role": role, "content": content}


def _common(first: str, second: str) -> int:
    """How many characters they begin with in common; os.path.commonprefix takes them one by one."""
    if second.startswith(first):
        return len(first)
    lengths = range(1, min(len(first), len(second)) + 1)
    return bisect_left(lengths, True, key=lambda length: first[:length] != second[:length])
