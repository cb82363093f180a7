"""The shapes that trainers send and read, field by field. Knows no HTTP and no scoring.

A shape says what it asks to be scored and how it wants to be answered. Fields that a trainer sends
and that change no reward are ignored, so that its next version may add one.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, model_validator

from service.conversation import Label, as_pair, prompt_in
from service.markers import UNKNOWN
from service.pairs import Asked, Pair, Templated
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

    name: ClassVar[str]
    "what the trainer calls what is scored, for errors"

    def asked(self, template: Template) -> list[Asked]: ...
    def answer(self, answer: Answer) -> Any: ...


class Wire(BaseModel):
    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class GetReward(Wire):
    """OpenRLHF, `--reward.remote_url`."""

    name: ClassVar[str] = "query"
    query: list[str]
    "prompt and response, rendered by the policy's chat template"
    prompts: list[str] = []
    "what each query begins with; none: not known"
    labels: list[Any] = []
    "read with template=chat only, where a label may be the messages before the response"

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
            asked_text(text, prompt, Label(label, f"labels[{i}]"), template, f"query[{i}]")
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

    name: ClassVar[str] = "prompt"
    prompt: PromptField
    response: str
    label: Any = None

    def asked(self, template: Template) -> list[Asked]:
        if not isinstance(self.prompt, str):
            return [Pair(self.prompt, UNKNOWN.without_ending(self.response))]
        text = self.prompt + self.response
        return [asked_text(text, self.prompt, Label(self.label, "label"), template, "prompt")]

    def answer(self, answer: Answer) -> float:
        return answer.rewards[0]


class ScoreEvaluation(Wire):
    """LLaMA-Factory, `reward_model_type: api`."""

    name: ClassVar[str] = "messages"
    messages: list[str]
    "prompt and response, rendered"
    model: str = ""

    def asked(self, template: Template) -> list[Asked]:
        return [
            asked_text(text, "", None, template, f"messages[{i}]")
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

    name: ClassVar[str] = "responses"
    prompts: list[str]
    responses: list[str]

    @model_validator(mode="after")
    def _lengths(self) -> Self:
        if len(self.prompts) != len(self.responses):
            raise ValueError(f"{len(self.prompts)} prompts, but {len(self.responses)} responses")
        return self

    def asked(self, template: Template) -> list[Asked]:
        return [
            asked_text(prompt + response, prompt, None, template, f"prompts[{i}]")
            for i, (prompt, response) in enumerate(zip(self.prompts, self.responses, strict=True))
        ]

    def answer(self, answer: Answer) -> "AlignAnythingAnswer":
        return AlignAnythingAnswer(rewards=answer.rewards)


class AlignAnythingAnswer(Wire):
    rewards: list[float]


def asked_text(
    text: str, prompt: str, label: Label | None, template: Template, field: str
) -> Asked:
    """What a rendered text asks for; "" for a prompt, None for a label that was not sent."""
    if template == "chat":
        return as_pair(text, prompt, label, field)
    return Templated(text, prompt_in(text, prompt))
