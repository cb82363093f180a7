"""A score request as the edges receive it, validated the same way for every transport."""

from typing import Annotated, Any, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    model_validator,
)

from service.errors import InvalidRequest, TooLarge
from service.pairs import Asked, Pair, Templated, TokenIds
from service.text import Message, Text, Truncation


def _prompt_form(value: Any) -> str | None:
    if isinstance(value, str):
        return "<text>"
    return "<messages>" if isinstance(value, list | tuple) else None


PromptField = Annotated[
    Annotated[Text, Tag("<text>")] | Annotated[tuple[Message, ...], Tag("<messages>")],
    Discriminator(
        _prompt_form,
        custom_error_type="prompt_form",
        custom_error_message="neither a string nor a list of messages",
    ),
]


Ids = tuple[Annotated[int, Field(strict=True)], ...]
'true, 1.0 and "1" are no token ids'


class ScorePair(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    prompt: PromptField
    "a string (one user turn, where the bundle has a chat template) or a list of messages"
    response: Text

    def asked(self) -> Asked:
        return Pair(self.prompt, self.response)


class ScoreText(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    text: Text
    """prompt and response with a chat template applied to them already, ending included; special
    tokens in it are special, none is added but a missing BOS; over the limits it loses its left"""

    def asked(self) -> Asked:
        return Templated(self.text)


class ScoreTokenIds(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    input_ids: Ids
    "token ids of the bundle's tokenizer, scored exactly as they are: refused over the limits"

    def asked(self) -> Asked:
        return TokenIds(self.input_ids)


def _pair_form(value: Any) -> str:
    if isinstance(value, dict) and "prompt" not in value:
        if "text" in value:
            return "<text pair>"
        if "input_ids" in value:
            return "<token ids>"
    return "<pair>"


PairField = Annotated[
    Annotated[ScorePair, Tag("<pair>")]
    | Annotated[ScoreText, Tag("<text pair>")]
    | Annotated[ScoreTokenIds, Tag("<token ids>")],
    Discriminator(_pair_form),
]

FORMS = ("<text>", "<messages>", "<pair>", "<text pair>", "<token ids>")
TAGS = frozenset((*FORMS, "<texts>", "<lists of token ids>"))
"of unions' forms, here and in pooling.py: no names that a caller sent"

Milliseconds = Annotated[
    float,
    Field(strict=True, gt=0, le=2**53 - 1, multiple_of=1, json_schema_extra={"type": "integer"}),
]
"1500 and 1500.0, but neither true nor a text; up to what every JSON parser holds (RFC 8259, 6)"


class ScoreRequest(BaseModel):
    """Either `pairs`, or one `prompt` with a group of `responses`."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    pairs: list[PairField] | None = None
    prompt: PromptField | None = None
    responses: list[Text] | None = None
    truncation: Truncation = "prompt"
    'over its token limit a text is cut ("prompt") or refused ("error")'
    deadline_ms: Milliseconds | None = None
    "how long the caller waits: 503 after that; the service's own deadline_s, if that is sooner"

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        group = self.prompt is not None, self.responses is not None
        if (self.pairs is None and not all(group)) or (self.pairs is not None and any(group)):
            raise ValueError('give either "pairs", or "prompt" with "responses"')
        return self

    def deadline_s(self, longest_s: float) -> float:
        """Seconds from now, the service's own limit included."""
        return longest_s if self.deadline_ms is None else min(self.deadline_ms / 1e3, longest_s)

    @property
    def name(self) -> str:
        """What the caller calls the pairs: of a group, its responses."""
        return "responses" if self.pairs is None else "pairs"

    def as_pairs(self, max_pairs: int) -> list[Asked]:
        """The pairs to score. Raises InvalidRequest or TooLarge, naming the field."""
        pairs = self._group() if self.pairs is None else [pair.asked() for pair in self.pairs]
        if not pairs:
            message = f"{self.name}: there are none; send at least one"
            raise InvalidRequest(message, field=self.name)
        check_count(len(pairs), max_pairs, self.name)
        for i, pair in enumerate(pairs):
            if isinstance(pair, Pair) and not pair.prompt:
                field = "prompt" if self.pairs is None else f"pairs[{i}].prompt"
                raise InvalidRequest(f"{field}: the conversation is empty", field=field)
        return pairs

    def _group(self) -> list[Asked]:
        assert self.prompt is not None and self.responses is not None
        return [Pair(self.prompt, response) for response in self.responses]


def check_count(pairs: int, max_pairs: int, field: str) -> None:
    """Raise TooLarge where there are more than one request may have."""
    if pairs > max_pairs:
        raise TooLarge(
            f"{field}: {pairs} in one request, the limit is {max_pairs}; split it", field=field
        )


def parse_json(body: bytes) -> ScoreRequest:
    """A JSON body as a request. Raises InvalidRequest, naming the field."""
    try:
        return ScoreRequest.model_validate_json(body)
    except ValidationError as error:
        raise invalid(error) from None


def parse(content: dict[str, Any]) -> ScoreRequest:
    """The same for a request that is parsed already."""
    try:
        return ScoreRequest.model_validate(content)
    except ValidationError as error:
        raise invalid(error) from None


def invalid(error: ValidationError) -> InvalidRequest:
    """The first of pydantic's errors, with a field such as `pairs[3].prompt[0].role`."""
    first = error.errors(include_url=False, include_context=False)[0]
    field = ""
    for part in first["loc"]:
        if isinstance(part, int):
            field += f"[{part}]"
        elif part not in TAGS:
            field += f".{part}" if field else part
    message = first["msg"].removeprefix("Value error, ")
    return InvalidRequest(f"{field or 'body'}: {message}", field=field or "body")
