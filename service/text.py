"""Conversation -> token ids: template, tokenizer, length limits. The only place where that is done.

Training and serving both encode through `Encoder`. Knows text and ids; knows nothing of models.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict

from service.bundle import Bundle
from service.errors import BundleError, InvalidRequest, TooLong
from service.manifest import TextRules
from service.rendering import Rendering, Turn, turn_of
from service.sealed import Opening, SealedTokenizer, Tokens


def _whole(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{text[error.start]!a} at {error.start} is half of a character (a lone surrogate), "
            "which no tokenizer takes; send all of it"
        ) from None
    return text


Text = Annotated[str, AfterValidator(_whole)]
"what has a form in UTF-8; Python's own strings, those of its json among them, may have none"


class Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text


_NONE = array("i")

Prompt = str | Sequence[Message]
Truncation = Literal["prompt", "error"]


@dataclass(slots=True)
class Encoded:
    """Token ids of one (prompt, response) pair, and what the limits took from it."""

    packed: "array[int]"  # (T,)
    prompt_tokens: int  # ids[:prompt_tokens] belong to the prompt
    tokens_cut: int = 0

    @property
    def ids(self) -> list[int]:
        return self.packed.tolist()

    @property
    def truncated(self) -> bool:
        return self.tokens_cut > 0


class Encoder:
    """Encodes pairs by a bundle's rules. Thread-safe.

    The text of a special token *inside* a message is ordinary text (service/rendering.py).
    """

    def __init__(self, tokenizer_json: str, template: str | None, rules: TextRules) -> None:
        self.rules = rules
        self._tokenizer = SealedTokenizer(tokenizer_json)
        self._rendering = None if template is None else Rendering(self._tokenizer, template, rules)
        for token_id in (rules.bos_id, *rules.ending_ids):
            if token_id is not None and not self._tokenizer.knows(token_id):
                raise BundleError(
                    f"text rules name token id {token_id}; the tokenizer has no such id"
                )
        self._bos = array("i", [] if rules.bos_id is None else [rules.bos_id])
        self._ending = array("i", rules.ending_ids)

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
        return [
            self._limit(tokens, self._length(opening), truncation, field)
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
        prompt_length = self._length(opening) if prompt else 0
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
        bos = self._missing_bos(tokens.ids)
        ids = bos + tokens.ids
        first = 1 if ids and ids[0] == self.rules.bos_id else 0
        prompt_tokens = max(len(bos) + tokens.inside, first)
        response = ids[prompt_tokens:] + (_NONE if templated else self._ending)
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
            packed=kept + response[response_cut:],
            prompt_tokens=len(kept),
            tokens_cut=prompt_cut + response_cut,
        )

    def _length(self, opening: Opening) -> int:
        return len(self._missing_bos(opening.ids)) + len(opening.ids)

    def _missing_bos(self, ids: "array[int]") -> "array[int]":
        return _NONE if ids[:1] == self._bos else self._bos

    def _render(
        self, prompt: Prompt, responses: Sequence[str], fields: Sequence[str]
    ) -> tuple[Opening, list[str]]:
        """What the texts begin with, and for each response the whole text."""
        if not prompt:
            raise InvalidRequest(f"{fields[0]}: the conversation is empty", field=fields[0])
        if self._rendering is None:
            if not isinstance(prompt, str):
                raise InvalidRequest(
                    f"{fields[0]}: the bundle has no chat template, so prompt must be a string, "
                    "not a list of messages",
                    field=fields[0],
                )
            opening = self._tokenizer.opening(prompt)
            return opening, [prompt + response for response in responses]
        turns = _turns(prompt)
        return self._rendering.opening(turns, fields[0]), [
            self._rendering.text([*turns, turn_of("assistant", response)], field)
            for response, field in zip(responses, fields, strict=True)
        ]


def _turns(prompt: Prompt) -> list[Turn]:
    """As templates take them. A string is one turn of the user."""
    if isinstance(prompt, str):
        return [turn_of("user", prompt)]
    return [turn_of(message.role, message.content) for message in prompt]
