"""The shapes that trainers send and read, field by field. Knows no HTTP and no scoring.

A shape says what it asks to be scored and how it wants to be answered. Fields that a trainer sends
and that change no reward are ignored, so that its next version may add one.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, model_validator

from service.conversation import as_pair, prompt_in, without_ending
from service.errors import InvalidRequest
from service.pairs import Asked, Pair, Templated, TokenIds
from service.request import PromptField
from service.scorer import Result

Template = Literal["raw", "chat"]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a shape makes its answer of."""

    rewards: list[float]
    "normalised or raw, as the URL says"
    results: list[Result]
    model: str
    request_id: str


class Shape(Protocol):
    """A request of one trainer."""

    def asked(self, template: Template) -> list[Asked]: ...
    def answer(self, answer: Answer) -> Any: ...


class Wire(BaseModel):
    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class GetReward(Wire):
    """OpenRLHF, `--reward.remote_url`."""

    query: list[str]
    "prompt and response, rendered by the policy's chat template"
    prompts: list[str] = []
    "what each query begins with; none: not known"
    labels: list[Any] = []
    "read with template=chat only, where a label may be the conversation's messages"

    @model_validator(mode="after")
    def _lengths(self) -> Self:
        for name, values in (("prompts", self.prompts), ("labels", self.labels)):
            if values and len(values) != len(self.query):
                raise ValueError(f"{name} has {len(values)} entries, query has {len(self.query)}")
        return self

    def asked(self, template: Template) -> list[Asked]:
        prompts = self.prompts or [""] * len(self.query)
        labels = self.labels or [None] * len(self.query)
        return [
            _asked(text, prompt, label, template, f"query[{i}]")
            for i, (text, prompt, label) in enumerate(zip(self.query, prompts, labels, strict=True))
        ]

    def answer(self, answer: Answer) -> "GetRewardAnswer":
        normalized = np.array([result.reward for result in answer.results])
        return GetRewardAnswer(
            rewards=answer.rewards,
            scores=(1 / (1 + np.exp(-normalized))).tolist(),
            extra_logs=ExtraLogs(
                raw_reward=[result.raw_reward for result in answer.results],
                tokens=[float(result.tokens) for result in answer.results],
                tokens_cut=[float(result.tokens_cut) for result in answer.results],
                truncated=[float(result.truncated) for result in answer.results],
            ),
        )


class ExtraLogs(Wire):
    """The same keys in every answer: OpenRLHF makes tensors of them."""

    raw_reward: list[float]
    tokens: list[float]
    tokens_cut: list[float]
    truncated: list[float]


class GetRewardAnswer(Wire):
    rewards: list[float]
    scores: list[float]
    "sigmoid(reward), the probability to beat a completion of reward 0: for dynamic filtering"
    extra_logs: ExtraLogs


class Slime(Wire):
    """slime, `--rm-type remote_rm --rm-url`."""

    prompt: PromptField
    response: str
    label: Any = None

    def asked(self, template: Template) -> list[Asked]:
        if not isinstance(self.prompt, str):
            return [Pair(self.prompt, without_ending(self.response))]
        text = self.prompt + self.response
        return [_asked(text, self.prompt, self.label, template, "prompt")]

    def answer(self, answer: Answer) -> float:
        return answer.rewards[0]


class ScoreEvaluation(Wire):
    """LLaMA-Factory, `reward_model_type: api`."""

    messages: list[str]
    "prompt and response, rendered"
    model: str = ""

    def asked(self, template: Template) -> list[Asked]:
        return [
            _asked(text, "", None, template, f"messages[{i}]")
            for i, text in enumerate(self.messages)
        ]

    def answer(self, answer: Answer) -> "ScoreEvaluationAnswer":
        return ScoreEvaluationAnswer(
            id=f"scoreval-{answer.request_id}", model=answer.model, scores=answer.rewards
        )


class ScoreEvaluationAnswer(Wire):
    id: str
    object: Literal["score.evaluation"] = "score.evaluation"
    model: str
    scores: list[float]


class AlignAnything(Wire):
    """align-anything, RemoteRewardModel."""

    prompts: list[str]
    responses: list[str]

    @model_validator(mode="after")
    def _lengths(self) -> Self:
        if len(self.prompts) != len(self.responses):
            raise ValueError(f"{len(self.prompts)} prompts, but {len(self.responses)} responses")
        return self

    def asked(self, template: Template) -> list[Asked]:
        return [
            _asked(prompt + response, prompt, None, template, f"prompts[{i}]")
            for i, (prompt, response) in enumerate(zip(self.prompts, self.responses, strict=True))
        ]

    def answer(self, answer: Answer) -> "AlignAnythingAnswer":
        return AlignAnythingAnswer(rewards=answer.rewards)


class AlignAnythingAnswer(Wire):
    rewards: list[float]


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
            return _asked(each, "", None, template, field)
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


def _asked(text: str, prompt: str, label: Any, template: Template, field: str) -> Asked:
    if template == "chat":
        return as_pair(text, prompt, label, field)
    return Templated(text, prompt_in(text, prompt))


def _usage(results: Sequence[Result]) -> Usage:
    tokens = sum(result.tokens for result in results)
    return Usage(prompt_tokens=tokens, total_tokens=tokens)
