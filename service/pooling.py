"""The shapes of vLLM's and SGLang's pooling endpoints. Knows no HTTP and no scoring."""

import time
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Tag

from service.errors import InvalidRequest
from service.pairs import Asked, TokenIds
from service.request import Ids
from service.scorer import Result
from service.wire import Answer, Template, Wire, asked_text


def _input_form(value: Any) -> str | None:
    """By the first element of a list, so that an error names what differs from it."""
    if isinstance(value, str):
        return "<text>"
    if not isinstance(value, list):
        return None
    first = value[0] if value else ""
    if isinstance(first, str):
        return "<texts>"
    return "<lists of token ids>" if isinstance(first, list) else "<token ids>"


InputField = Annotated[
    Annotated[str, Tag("<text>")]
    | Annotated[list[str], Tag("<texts>")]
    | Annotated[list[Ids], Tag("<lists of token ids>")]
    | Annotated[Ids, Tag("<token ids>")],
    Discriminator(
        _input_form,
        custom_error_type="input_form",
        custom_error_message="neither a text, nor token ids, nor a list of either",
    ),
]


class Pooling(Wire):
    """What vLLM's and SGLang's pooling endpoints have in common."""

    name: ClassVar[str] = "input"
    input: InputField
    "one text or several, rendered; or token ids, scored as they are"
    model: str = ""

    def asked(self, template: Template) -> list[Asked]:
        several: list[Any] = [*self.input] if isinstance(self.input, list) else [self.input]
        return [self._one(each, template, f"input[{i}]") for i, each in enumerate(several)]

    def _one(self, each: str | Ids, template: Template, field: str) -> Asked:
        if isinstance(each, str):
            return asked_text(each, "", None, template, field)
        if template == "chat":
            raise InvalidRequest(
                f"{field}: token ids are scored as they are; template=chat needs text", field=field
            )
        return TokenIds(each)


class Classify(Pooling):
    """vLLM `/classify` and SGLang `/v1/classify`."""

    use_activation: Literal[False] | None = None
    "a reward is never put through a sigmoid"

    def answer(self, answer: Answer) -> "ClassifyAnswer":
        return ClassifyAnswer(
            id=f"classify-{answer.request_id}",
            created=int(time.time()),
            model=answer.model,
            data=[Class(index=i, probs=[reward]) for i, reward in enumerate(answer.rewards)],
            usage=_usage(answer.results),
        )


class Usage(Wire):
    prompt_tokens: int
    total_tokens: int
    completion_tokens: int = 0


class Class(Wire):
    index: int
    label: str = "reward"
    probs: list[float]
    "one number, the reward"
    num_classes: int = 1


class ClassifyAnswer(Wire):
    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    data: list[Class]
    usage: Usage


class Embeddings(Pooling):
    """SGLang's and OpenAI's `/v1/embeddings`."""

    def answer(self, answer: Answer) -> "EmbeddingsAnswer":
        return EmbeddingsAnswer(
            model=answer.model,
            data=[Embedding(index=i, embedding=[r]) for i, r in enumerate(answer.rewards)],
            usage=_usage(answer.results),
        )


class Embedding(Wire):
    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float]
    "one number, the reward"


class EmbeddingsAnswer(Wire):
    object: Literal["list"] = "list"
    model: str
    data: list[Embedding]
    usage: Usage


def _usage(results: Sequence[Result]) -> Usage:
    tokens = sum(result.tokens for result in results)
    return Usage(prompt_tokens=tokens, total_tokens=tokens)
