"""Conversation -> token ids: template, tokenizer, length limits. The only place where that is done.

Training and serving both encode through `Encoder`. Knows text and ids; knows nothing of models.
"""

import re
import threading
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Literal

import jinja2
from cachetools import LRUCache
from pydantic import BaseModel, ConfigDict

from service.bundle import Bundle
from service.errors import BundleError, InvalidRequest, TooLong
from service.manifest import TextRules
from service.sealed import KEPT, Opening, SealedTokenizer, Tokens
from service.template import compile_template


class Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str


KEY_BYTES = 100
"what a digest takes as a key of a dictionary, about"
MAX_SHAPES = 4096
"conversation shapes whose count of special tokens is kept"

INERT = "\ue002"
"content of a message that no special token can come from"

Prompt = str | Sequence[Message]
Turn = dict[str, str]
Truncation = Literal["prompt", "error"]


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids of one (prompt, response) pair, and what the limits took from it."""

    ids: list[int]  # (T,)
    prompt_tokens: int  # ids[:prompt_tokens] belong to the prompt
    tokens_cut: int = 0

    @property
    def truncated(self) -> bool:
        return self.tokens_cut > 0


class Encoder:
    """Encodes pairs by a bundle's rules. Thread-safe.

    The text of a special token *inside* a message is ordinary text. Special tokens that the
    template writes are renamed to strings nobody can guess, in the rendered text and in the
    tokenizer alike (service/sealed.py); where a template would put one together from pieces of
    messages, the conversation is refused. Turn markers that are no special tokens, such as
    "User:", are text wherever they stand.
    """

    def __init__(self, tokenizer_json: str, template: str | None, rules: TextRules) -> None:
        self.rules = rules
        self._tokenizer = SealedTokenizer(tokenizer_json)
        self._mark = re.compile(rf"\ue000{self._tokenizer.nonce}m(\d+)\ue001")
        self._openings: LRUCache[bytes, Opening] = LRUCache(
            KEPT, getsizeof=lambda opening: opening.size + KEY_BYTES
        )
        self._lock = threading.Lock()
        self._own_specials: dict[tuple[tuple[str, bool], ...], int] = {}
        self._template = (
            None if template is None else compile_template(template, rules.template_date)
        )
        for token_id in (rules.bos_id, *rules.ending_ids):
            if token_id is not None and not self._tokenizer.knows(token_id):
                raise BundleError(
                    f"text rules name token id {token_id}; the tokenizer has no such id"
                )

    @classmethod
    def of(cls, bundle: Bundle) -> "Encoder":
        return cls(bundle.tokenizer_json(), bundle.template(), bundle.manifest.text)

    def encode(
        self, prompt: Prompt, response: str, truncation: Truncation = "prompt", field: str = "pair"
    ) -> Encoded:
        """One pair. Raises InvalidRequest or TooLong, naming `field`."""
        return self.encode_group(prompt, [response], truncation, [field])[0]

    def encode_group(
        self,
        prompt: Prompt,
        responses: Sequence[str],
        truncation: Truncation = "prompt",
        fields: Sequence[str] | None = None,
    ) -> list[Encoded]:
        """All responses to one prompt. The prompt is cut at the same place for each of them."""
        fields = fields or [f"responses[{i}]" for i in range(len(responses))]
        opening, texts = self._render(prompt, responses, fields)
        rows = self._tokenizer.encode(opening, texts)
        prompt_length = len(self._with_bos([*opening.ids]))
        return [
            self._limit(tokens, prompt_length, truncation, field)
            for tokens, field in zip(rows, fields, strict=True)
        ]

    def encode_templated(
        self,
        prompt: str,
        texts: Sequence[str],
        truncation: Truncation = "prompt",
        fields: Sequence[str] | None = None,
    ) -> list[Encoded]:
        """Texts that somebody's template was applied to, all of which begin with `prompt`.

        Special tokens in them are special, as whoever rendered them meant it; none is added, but
        BOS where the rules have one and it is not there. An empty prompt says that the response's
        share is not known: such a text is cut from its left to both limits together.
        """
        fields = fields or [f"texts[{i}]" for i in range(len(texts))]
        for text, field in zip(texts, fields, strict=True):
            if not text:
                raise InvalidRequest(f"{field}: the text is empty", field=field)
        start, *sealed = [self._tokenizer.seal(text)[0] for text in (prompt, *texts)]
        opening = self._tokenizer.opening(start)
        rows = self._tokenizer.encode(opening, sealed)
        prompt_length = len(self._with_bos([*opening.ids])) if prompt else 0
        return [
            self._limit(tokens, prompt_length, truncation, field, templated=True, whole=not prompt)
            for tokens, field in zip(rows, fields, strict=True)
        ]

    def _limit(
        self,
        tokens: Tokens,
        prompt_length: int,
        truncation: Truncation,
        field: str,
        templated: bool = False,
        whole: bool = False,
    ) -> Encoded:
        """Cut the prompt from its left and the response from its left; the ending always stays.

        How much of the prompt goes depends on the prompt alone, so a group keeps its prefix; only
        where a word crosses the border may a row have more tokens before it, and lose those too.
        A templated text has its ending already; where it is cut as a whole, BOS is its prompt.
        """
        ids = self._with_bos(tokens.ids)
        bos = len(ids) - len(tokens.ids)
        first = 1 if ids and ids[0] == self.rules.bos_id else 0
        prompt_tokens = max(bos + tokens.inside, first)
        response = ids[prompt_tokens:] + ([] if templated else [*self.rules.ending_ids])
        prompt_length = max(prompt_length, prompt_tokens) if prompt_length else 0
        prompt_cut = max(0, prompt_length - self.rules.max_prompt_tokens)
        limit = self.rules.max_tokens - first if whole else self.rules.max_response_tokens
        response_cut = max(0, len(response) - limit)
        if truncation == "error" and (prompt_cut or response_cut):
            part, length, limit = (
                ("prompt", prompt_length, self.rules.max_prompt_tokens)
                if prompt_cut
                else ("text" if whole else "response", len(response), limit)
            )
            raise TooLong(
                f"{field}: the {part} has {length} tokens, the bundle's limit is {limit}; "
                'shorten it or ask for truncation "prompt"',
                field=field,
            )
        if not (ids or response):
            raise InvalidRequest(f"{field}: the text has no tokens at all", field=field)
        kept = ids[:first] + ids[first + prompt_cut : prompt_tokens]
        return Encoded(
            ids=kept + response[response_cut:],
            prompt_tokens=len(kept),
            tokens_cut=prompt_cut + response_cut,
        )

    def _with_bos(self, ids: list[int]) -> list[int]:
        bos = self.rules.bos_id
        return ids if bos is None or ids[:1] == [bos] else [bos, *ids]

    def _render(
        self, prompt: Prompt, responses: Sequence[str], fields: Sequence[str]
    ) -> tuple[Opening, list[str]]:
        """What the texts begin with, and for each response the whole text."""
        if not prompt:
            raise InvalidRequest(f"{fields[0]}: the conversation is empty", field=fields[0])
        if self._template is None:
            if not isinstance(prompt, str):
                raise InvalidRequest(
                    f"{fields[0]}: the bundle has no chat template, so prompt must be a string, "
                    "not a list of messages",
                    field=fields[0],
                )
            opening = self._tokenizer.opening(prompt)
            return opening, [prompt + response for response in responses]
        turns = _turns(prompt)
        opening = self._opening(turns, fields[0])
        texts = []
        for response, field in zip(responses, fields, strict=True):
            conversation = [*turns, _turn("assistant", response)]
            text, specials = self._apply(conversation, field)
            self._refuse_forgery(conversation, specials, field)
            texts.append(text)
        return opening, texts

    def _opening(self, turns: Sequence[Turn], field: str) -> Opening:
        """What the rendered text begins with, whatever the response is."""
        key = blake2b(repr(turns).encode(), digest_size=16).digest()
        with self._lock:
            known = self._openings.get(key)
        if known is not None:
            return known
        asked, _ = self._apply(turns, field, generation_prompt=True)
        probe, _ = self._apply([*turns, _turn("assistant", INERT)], field)
        opening = self._tokenizer.opening(self._whole_tokens(asked[: _common(asked, probe)]))
        if opening.size + KEY_BYTES <= KEPT:
            with self._lock:
                self._openings[key] = opening
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
                _turn(turn["role"], INERT if turn["content"].strip() else turn["content"])
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
        assert self._template is not None
        hidden: list[str] = []

        def hide(match: re.Match[str]) -> str:
            hidden.append(match[0])
            return f"\ue000{self._tokenizer.nonce}m{len(hidden) - 1}\ue001"

        messages = [
            _turn(turn["role"], self._tokenizer.special.sub(hide, turn["content"]))
            for turn in turns
        ]
        try:
            text = self._template.render(
                messages=messages,
                add_generation_prompt=generation_prompt,
                **self.rules.template_variables,
            )
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
            raise InvalidRequest(
                f"{field}: the chat template refuses this conversation: {error}", field=field
            ) from error
        sealed, specials = self._tokenizer.seal(text)
        if hidden:
            sealed = self._mark.sub(lambda match: hidden[int(match[1])], sealed)
        return sealed, specials


def _turn(role: str, content: str) -> Turn:
    return {"role": role, "content": content}


def _turns(prompt: Prompt) -> list[Turn]:
    """As templates take them. A string is one turn of the user."""
    if isinstance(prompt, str):
        return [_turn("user", prompt)]
    return [_turn(message.role, message.content) for message in prompt]


def _common(first: str, second: str) -> int:
    """How many characters they begin with in common; os.path.commonprefix takes them one by one."""
    if second.startswith(first):
        return len(first)
    lengths = range(1, min(len(first), len(second)) + 1)
    return bisect_left(lengths, True, key=lambda length: first[:length] != second[:length])
