"""TrainConfig: every training knob and its only default. From TOML, changed by --set key=value."""

import tomllib
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    ValidationError,
    model_validator,
)

from service.errors import TrainingError
from training.issues import Action, IssueKind

Positive = Annotated[int, Field(gt=0)]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Scratch(Section):
    """A base model from the training data alone: tokenizer, random weights, language modelling."""

    vocab_size: Positive = 2048
    layers: Positive = 4
    hidden_size: Positive = 128
    intermediate_size: Positive = 384
    heads: Positive = 4
    kv_heads: Positive = 2
    epochs: Annotated[float, Field(ge=0)] = 1.0
    "passes over the chosen responses by language modelling: the SFT step"
    learning_rate: Annotated[float, Field(gt=0)] = 2e-3
    batch_size: Positive = 32

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        if self.heads % self.kv_heads:
            raise ValueError(
                f"kv_heads is {self.kv_heads}, which does not divide heads, {self.heads}"
            )
        width = self.hidden_size // self.heads
        if width == 0 or width % 2:
            raise ValueError(
                f"hidden_size / heads is {width}; rotary positions need an even number above 0"
            )
        return self


class Lora(Section):
    """Low-rank adapters (arXiv 2106.09685) on the backbone; merged into it when training ends."""

    rank: Positive = 16
    alpha: Annotated[float, Field(gt=0)] = 32.0
    target_modules: str | tuple[str, ...] = "all-linear"


class Model(Section):
    path: Path | None = None
    "a decoder or encoder in safetensors: a local directory or a Hub id such as org/name"
    scratch: Scratch | None = None
    lora: Lora | None = None
    "low-rank adapters; without this section all weights are trained"

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.path is None) == (self.scratch is None):
            raise ValueError("give either model.path or a [model.scratch] section")
        return self


class Issues(Section):
    """What to do with an odd record: "keep" and count it, "drop" it, or stop with an "error"."""

    different_prompts: Literal["drop", "error"] = "error"
    identical: Action = "keep"
    contradictory: Action = "keep"
    identical_when_cut: Action = "keep"

    def actions(self) -> dict[IssueKind, Action]:
        return self.model_dump()  # type: ignore[return-value]


class Data(Section):
    train: Path
    eval: Path | None = None
    "held-out preferences; without it, eval_fraction of the training prompts is held out"
    eval_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.05
    format: Literal["auto", "trl", "hh", "kwise"] = "auto"
    issues: Issues = Issues()


def _day(value: object) -> object:
    """YYYY-MM-DD as text; pydantic alone would take a number for seconds since 1970."""
    return date.fromisoformat(value) if isinstance(value, str) else value


class Text(Section):
    max_prompt_tokens: Positive = 512
    max_response_tokens: Positive = 512
    template_date: Annotated[date, BeforeValidator(_day), Strict()] = date(2026, 1, 1)
    ending: Literal["auto", "eos", "none"] = "auto"
    "auto: end-of-sequence after the response where the model has no chat template"
    template: Path | None = None
    "a chat template (jinja) in place of the tokenizer's own"


class Loss(Section):
    """The likelihood of a preference and what is added to it; formulas in training/loss.py."""

    likelihood: Literal["bradley-terry", "scaled-bradley-terry", "rao-kupper", "plackett-luce"] = (
        "bradley-terry"
    )
    """bradley-terry takes soft targets and target margins; scaled-bradley-terry weighs each
    comparison by the data's margin; rao-kupper models ties; plackett-luce needs whole rankings"""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    "share of the labels taken to be flipped"
    tie_threshold: Annotated[float, Field(gt=0)] = 0.5
    "rao-kupper: equals tie with probability tanh(tie_threshold / 2)"
    centring: Annotated[float, Field(ge=0)] = 0.0
    "weight of the squared sum of the two rewards of a comparison; TRL recommends 0.01"

    @model_validator(mode="after")
    def _smoothing_fits(self) -> Self:
        if self.label_smoothing and self.likelihood in ("rao-kupper", "plackett-luce"):
            raise ValueError(f"label_smoothing has no meaning in {self.likelihood}; set it to 0")
        return self


class Fit(Section):
    """One epoch by default: reward models overfit in the second (InstructGPT, appendix C.2)."""

    epochs: Annotated[float, Field(gt=0)] = 1.0
    learning_rate: Annotated[float, Field(gt=0)] = 9e-6
    groups_per_step: Positive = 64
    "prompts of one optimizer step, over all processes; 64 as InstructGPT"
    max_batch_tokens: Positive = 8192
    "padded tokens of one forward pass: memory and speed; it changes no gradient"
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.03
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    evaluations: Positive = 4
    "how often the held-out split is scored and a checkpoint kept, spread evenly"
    precision: Literal["fp32", "bf16"] = "fp32"
    "bf16: computed in bfloat16 by autocast, weights and optimizer in fp32"
    gradient_checkpointing: bool = False
    fsdp: bool = False
    "shard weights, gradients and optimizer over the processes (PyTorch FSDP)"
    fsdp_config: dict[str, object] = {}
    "given to transformers and accelerate as it is"


class TrainConfig(Section):
    name: Annotated[str, Field(pattern=r"^[\w.\-]{1,100}$")]
    out: Path
    "the run directory"
    seed: int = 0
    model: Model
    data: Data
    text: Text = Text()
    loss: Loss = Loss()
    fit: Fit = Fit()

    @model_validator(mode="after")
    def _adapters_are_whole(self) -> Self:
        if self.fit.fsdp and self.model.lora:
            raise ValueError("fit.fsdp and model.lora do not go together; give one of them")
        return self


def read_config(path: Path, settings: Sequence[str] = ()) -> TrainConfig:
    """Read a TOML file and apply `section.key=value` settings; values are TOML, else text."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TrainingError(f"{path}: {error}") from error
    for setting in settings:
        key, sign, value = setting.partition("=")
        if not sign:
            raise TrainingError(f"--set {setting}: not key=value")
        *sections, last = key.split(".")
        target = content
        for section in sections:
            target = target.setdefault(section, {})
            if not isinstance(target, dict):
                raise TrainingError(f"--set {setting}: {section} is a value, not a section")
        target[last] = _value(value)
    try:
        return TrainConfig.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise TrainingError(f"{path}: {where}: {first['msg']}", field=where) from error


def _value(text: str) -> object:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
