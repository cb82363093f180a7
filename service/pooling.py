"""The shapes of vLLM's and SGLang's pooling endpoints. Knows no HTTP and no scoring."""

import time
from collections.abc import Sequence
from typing import Any, Literal

from service.errors import InvalidRequest
from service.pairs import Asked, TokenIds
from service.scorer import Result
from service.wire import Answer, Template, Wire, asked_text

TokenList = tuple[int, ...]


class Pooling(Wire):
    """What vLLM's and SGLang's pooling endpoints have in common."""

    input: str | list[str] | list[TokenList] | TokenList
    "one text or several, rendered; or token ids, scored as they are"
    model: str = ""

    def asked(self, template: Template) -> list[Asked]:
        several: list[Any] = [*self.input] if isinstance(self.input, list) else [self.input]
        return [self._one(each, template, f"input[{i}]") for i, each in enumerate(several)]

    def _one(self, each: str | TokenList, template: Template, field: str) -> Asked:
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
