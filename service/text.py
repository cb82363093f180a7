"""Conversation -> token ids: template, tokenizer, length limits. The only place where that is done.

Training and serving both encode through `Encoder`. Knows text and ids; knows nothing of models.
"""

import json
import os
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import BaseModel, ConfigDict
from tokenizers import Tokenizer

from service.bundle import TEMPLATE, TOKENIZER, Bundle
from service.errors import BundleError, InvalidRequest, TooLong
from service.manifest import TextRules


class Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str


MAX_SHAPES = 4096
"conversation shapes whose count of special tokens is kept"

Prompt = str | Sequence[Message]
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
    """Encodes pairs by a bundle's rules. Thread-safe: nothing changes after construction.

    The text of a special token *inside* a message is ordinary text. Special tokens that the
    template writes are renamed to strings nobody can guess, in the rendered text and in the
    tokenizer alike; where a template would put one together from pieces of messages, the
    conversation is refused. Turn markers that are no special tokens, such as "User:", are text
    wherever they stand.
    """

    def __init__(self, tokenizer_json: str, template: str | None, rules: TextRules) -> None:
        self.rules = rules
        self._nonce = secrets.token_hex(8)
        self._specials, self._tokenizer = _seal(tokenizer_json, self._nonce)
        longest_first = sorted(self._specials, key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        self._mark = re.compile(rf"\ue000{self._nonce}m(\d+)\ue001")
        self._own_specials: dict[tuple[tuple[str, bool], ...], int] = {}
        self._template = None if template is None else _compile(template, rules.template_date)
        for token_id in (rules.bos_id, *rules.ending_ids):
            if token_id is not None and self._tokenizer.id_to_token(token_id) is None:
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
        prompt_text, texts = self._render(prompt, responses, fields)
        encodings = self._tokenizer.encode_batch([prompt_text, *texts], add_special_tokens=False)
        prompt_length = len(self._with_bos(encodings[0].ids))
        return [
            self._limit(encoding, len(prompt_text), prompt_length, truncation, field)
            for encoding, field in zip(encodings[1:], fields, strict=True)
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
        sealed = [
            self._special.sub(lambda match: self._specials[match[0]], text)
            for text in (prompt, *texts)
        ]
        encodings = self._tokenizer.encode_batch(sealed, add_special_tokens=False)
        prompt_length = len(self._with_bos(encodings[0].ids)) if prompt else 0
        return [
            self._limit(encoding, len(sealed[0]), prompt_length, truncation, field, templated=True)
            for encoding, field in zip(encodings[1:], fields, strict=True)
        ]

    def _limit(
        self,
        encoding: Any,
        boundary: int,
        prompt_length: int,
        truncation: Truncation,
        field: str,
        templated: bool = False,
    ) -> Encoded:
        """Cut the prompt from its left and the response from its left; the ending always stays.

        How much of the prompt goes depends on the prompt alone, so a group keeps its prefix.
        A templated text has its ending already; without a boundary BOS alone is its prompt.
        """
        ids = self._with_bos(encoding.ids)
        bos = len(ids) - len(encoding.ids)
        first = 1 if ids and ids[0] == self.rules.bos_id else 0
        inside = sum(1 for _, end in encoding.offsets if end <= boundary)
        prompt_tokens = max(bos + inside, first)
        response = ids[prompt_tokens:] + ([] if templated else [*self.rules.ending_ids])
        prompt_cut = max(0, prompt_length - self.rules.max_prompt_tokens)
        whole = templated and not boundary
        limit = self.rules.max_tokens - first if whole else self.rules.max_response_tokens
        response_cut = max(0, len(response) - limit)
        if truncation == "error" and (prompt_cut or response_cut):
            part, tokens, limit = (
                ("prompt", prompt_length, self.rules.max_prompt_tokens)
                if prompt_cut
                else ("text" if whole else "response", len(response), limit)
            )
            raise TooLong(
                f"{field}: the {part} has {tokens} tokens, the bundle's limit is {limit}; "
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
    ) -> tuple[str, list[str]]:
        """The prompt's text, and for each response the whole text, which begins with it."""
        if not prompt:
            raise InvalidRequest(f"{fields[0]}: the conversation is empty", field=fields[0])
        if self._template is None:
            if not isinstance(prompt, str):
                raise InvalidRequest(
                    f"{fields[0]}: the bundle has no chat template, so prompt must be a string, "
                    "not a list of messages",
                    field=fields[0],
                )
            return prompt, [prompt + response for response in responses]
        turns = [Message(role="user", content=prompt)] if isinstance(prompt, str) else list(prompt)
        opening, _ = self._apply(turns, fields[0], generation_prompt=True)
        probe, _ = self._apply([*turns, _answer("\ue002")], fields[0])
        prompt_text = self._whole_tokens(os.path.commonprefix([opening, probe]))
        texts = []
        for response, field in zip(responses, fields, strict=True):
            text, specials = self._apply([*turns, _answer(response)], field)
            self._refuse_forgery(turns, response, specials, field)
            texts.append(text)
        return prompt_text, texts

    def _whole_tokens(self, text: str) -> str:
        """Without a special token that was cut in two at the end."""
        start = text.rfind("\ue000" + self._nonce)
        return text if start < 0 or "\ue001" in text[start:] else text[:start]

    def _refuse_forgery(
        self, turns: Sequence[Message], response: str, specials: int, field: str
    ) -> None:
        """Raise where a template makes a special token out of pieces of messages.

        The same conversation with inert contents shows how many are the template's own.
        """
        shape = tuple(
            (turn.role, bool(turn.content.strip())) for turn in (*turns, _answer(response))
        )
        expected = self._own_specials.get(shape)
        if expected is None:
            inert = [
                Message(role=turn.role, content="\ue002" if turn.content.strip() else turn.content)
                for turn in (*turns, _answer(response))
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
        self, turns: Sequence[Message], field: str, generation_prompt: bool = False
    ) -> tuple[str, int]:
        """The rendered text, its special tokens renamed, and how many it has."""
        assert self._template is not None
        hidden: list[str] = []

        def hide(match: re.Match[str]) -> str:
            hidden.append(match[0])
            return f"\ue000{self._nonce}m{len(hidden) - 1}\ue001"

        messages = [
            {"role": turn.role, "content": self._special.sub(hide, turn.content)} for turn in turns
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
        sealed, specials = self._special.subn(lambda match: self._specials[match[0]], text)
        return self._mark.sub(lambda match: hidden[int(match[1])], sealed), specials


def _answer(response: str) -> Message:
    return Message.model_construct(role="assistant", content=response)


def _seal(tokenizer_json: str, nonce: str) -> tuple[dict[str, str], Tokenizer]:
    """Rename every special token of the tokenizer; returns the renaming and the tokenizer."""
    try:
        content = json.loads(tokenizer_json)
        content["post_processor"] = content["padding"] = content["truncation"] = None
        renamed = _rename(content, nonce)
        sealed = Tokenizer.from_str(json.dumps(content))
    except Exception as error:  # tokenizers raises plain Exception
        raise BundleError(f"{TOKENIZER}: cannot be read: {error!r}", field=TOKENIZER) from error
    for token in content["added_tokens"]:
        if sealed.token_to_id(token["content"]) != token["id"]:
            raise BundleError(f"{TOKENIZER}: token id {token['id']} is not where it should be")
    return renamed, sealed


def _rename(content: dict[str, Any], nonce: str) -> dict[str, str]:
    renamed: dict[str, str] = {}
    for token in content["added_tokens"]:
        if token["special"]:
            renamed[token["content"]] = f"\ue000{nonce}s{token['id']}\ue001"
            token["content"], token["normalized"] = renamed[token["content"]], False
    model = content["model"]
    vocab = model["vocab"]
    if isinstance(vocab, dict):
        model["vocab"] = {renamed.get(token, token): index for token, index in vocab.items()}
    else:  # Unigram: [[token, score], ...]
        model["vocab"] = [[renamed.get(token, token), score] for token, score in vocab]
    if model.get("unk_token") in renamed:
        model["unk_token"] = renamed[model["unk_token"]]
    return renamed


class _Generation(Extension):
    """transformers' `{% generation %}` block, which marks what is learnt from, is its body."""

    tags = {"generation"}  # noqa: RUF012, as jinja2 declares it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _compile(template: str, date: str) -> jinja2.Template:
    """As transformers does, in a sandbox, with a frozen date."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation]
    )

    def refuse(message: str) -> NoReturn:
        raise jinja2.TemplateError(message)

    def tojson(value: object, ensure_ascii: bool = False, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    environment.globals["raise_exception"] = refuse
    environment.filters["tojson"] = tojson
    try:
        environment.globals["strftime_now"] = datetime.fromisoformat(date).strftime
        return environment.from_string(template)
    except (jinja2.TemplateError, ValueError) as error:
        raise BundleError(f"{TEMPLATE}: {error}", field=TEMPLATE) from error
