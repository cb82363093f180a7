"""A score request as the edges receive it, validated the same way for every transport."""

from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Tag, ValidationError, model_validator

from service.errors import InvalidRequest, TooLarge
from service.scorer import Pair
from service.text import Message, Truncation


def _prompt_form(value: Any) -> str | None:
    if isinstance(value, str):
        return "<text>"
    return "<messages>" if isinstance(value, list | tuple) else None


PromptField = Annotated[
    Annotated[str, Tag("<text>")] | Annotated[tuple[Message, ...], Tag("<messages>")],
    Discriminator(
        _prompt_form,
        custom_error_type="prompt_form",
        custom_error_message="neither a string nor a list of messages",
    ),
]


class ScorePair(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt: PromptField
    "a string (one user turn, where the bundle has a chat template) or a list of messages"
    response: str


class ScoreRequest(BaseModel):
    """Either `pairs`, or one `prompt` with a group of `responses`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    pairs: list[ScorePair] | None = None
    prompt: PromptField | None = None
    responses: list[str] | None = None
    truncation: Truncation = "prompt"
    'over its token limit a text is cut ("prompt") or refused ("error")'

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        group = self.prompt is not None, self.responses is not None
        if (self.pairs is None and not all(group)) or (self.pairs is not None and any(group)):
            raise ValueError('give either "pairs", or "prompt" with "responses"')
        return self

    def as_pairs(self, max_pairs: int) -> list[Pair]:
        """The pairs to score. Raises InvalidRequest or TooLarge, naming the field."""
        if self.pairs is not None:
            pairs = [Pair(pair.prompt, pair.response) for pair in self.pairs]
        else:
            assert self.prompt is not None and self.responses is not None
            pairs = [Pair(self.prompt, response) for response in self.responses]
        if not pairs:
            raise InvalidRequest("pairs: there are none; send at least one", field="pairs")
        if len(pairs) > max_pairs:
            raise TooLarge(
                f"pairs: {len(pairs)} in one request, the limit is {max_pairs}; split it",
                field="pairs",
            )
        for i, pair in enumerate(pairs):
            if not pair.prompt:
                field = f"pairs[{i}].prompt"
                raise InvalidRequest(f"{field}: the conversation is empty", field=field)
        return pairs


def parse_json(body: bytes) -> ScoreRequest:
    """A JSON body as a request. Raises InvalidRequest, naming the field."""
    try:
        return ScoreRequest.model_validate_json(body)
    except ValidationError as error:
        raise _invalid(error) from None


def parse(content: dict[str, Any]) -> ScoreRequest:
    """The same for a request that is parsed already."""
    try:
        return ScoreRequest.model_validate(content)
    except ValidationError as error:
        raise _invalid(error) from None


def _invalid(error: ValidationError) -> InvalidRequest:
    """The first of pydantic's errors, with a field such as `pairs[3].prompt[0].role`."""
    first = error.errors(include_url=False, include_context=False)[0]
    field = ""
    for part in first["loc"]:
        if isinstance(part, int):
            field += f"[{part}]"
        elif part not in ("<text>", "<messages>"):
            field += f".{part}" if field else part
    message = first["msg"].removeprefix("Value error, ")
    return InvalidRequest(f"{field or 'body'}: {message}", field=field or "body")
