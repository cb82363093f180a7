"""Somebody else's reward model -> a bundle: any classifier of transformers with one label.

The text rules are its tokenizer's. What would make the bundle score otherwise than transformers
does, or what nobody can know, is refused.
"""

import datetime
import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType

from pydantic import ValidationError

from service.bundle import Bundle, digest
from service.errors import TrainingError
from service.manifest import Normalization, Provenance
from training.checkpoint import find, read
from training.config import Text
from training.data import (
    Prompt,
    completions_sha256,
    read_completions,
    read_groups,
    reference_completions,
)
from training.export import Completions, Source, write_proved
from training.formats.completion import is_completion
from training.formats.source import read_rows
from training.issues import Action, IssueKind
from training.model import AnyRewardModel, usable_positions
from training.normalize import reference_mean
from training.pipeline import check_positions, libraries, open_tokenizer
from training.predict import predict
from training.rules import text_rules

MAX_TOKENS = 2048
"default limit of prompt and of response, where the model has positions for both"
PROBES: list[tuple[Prompt, str]] = [
    ("What is the capital of France?", "The capital of France is Paris."),
    ("What is the capital of France?", "I don't know, and I don't care."),
    (
        "Write a haiku about rain.",
        "Soft drops on the roof,\nthe gutter hums an old tune,\nI sleep.",
    ),
    ("Summarise: the meeting moved to Tuesday at 10.", "Meeting: Tuesday, 10:00."),
    ("How do I sort a list in Python?", "```python\nitems.sort()\n```\nor `sorted(items)`."),
    ("¿Qué hora es?", "Son las tres y media."),
]
"what golden scores are made of where no calibration data is given"


def export_foreign(
    source: str | Path,
    out: Path,
    text: Mapping[str, object] = MappingProxyType({}),
    calibrate: Path | None = None,
    uncalibrated: bool = False,
    variants: Collection[str] = (),
    actions: Mapping[IssueKind, Action] = MappingProxyType({}),
) -> Bundle:
    """Raises TrainingError with the reason where the model cannot be served as it is.

    calibrate: preferences, whose chosen responses will average 0, or completions with "prompt" and
    "response". Without it the checkpoint's own `mean` is honoured, as OpenRLHF writes it; where it
    has none, `uncalibrated` must be said. text: fields of training.config.Text; limits go as far as
    the model's positions by default. variants: beside fp32. actions: what becomes of odd records
    of the preferences.
    """
    path = find(source)
    model = read(path)
    rules_wanted = _text(model, text)
    check_positions(model, rules_wanted)
    tokenizer = open_tokenizer(path, rules_wanted)
    rules = text_rules(tokenizer, rules_wanted)
    if not tokenizer.is_fast:
        raise TrainingError(f"{path}: it has no tokenizer.json, which is what a bundle holds")
    completions, origin = _completions(calibrate, actions) if calibrate else (PROBES, "")
    made = Source(
        name=re.sub(r"[^\w.\-]", "-", Path(source).resolve().name)[:100],
        model=model,
        tokenizer_json=tokenizer.backend_tokenizer.to_str(),
        template=tokenizer.chat_template,
        rules=rules,
        normalization=None,
        evaluation={},
        provenance=Provenance(
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            service_version=version("reward-service"),
            base_model=Path(source).resolve().name if Path(source).is_dir() else str(source),
            libraries=libraries(),
        ),
    )
    _refuse_other_pooling(path, made, completions)
    if calibrate:
        normalization = _calibrated(made, completions, origin)
    else:
        normalization = None if uncalibrated else _own_normalization(path, model)
    return write_proved(replace(made, normalization=normalization), completions, out, variants)


def _text(model: AnyRewardModel, given: Mapping[str, object]) -> Text:
    """Half of the model's positions for the prompt, half for the response, unless given."""
    positions = usable_positions(model)
    half = MAX_TOKENS if positions is None else min(MAX_TOKENS, positions // 2)
    limits = {"max_prompt_tokens": half, "max_response_tokens": half}
    try:
        return Text.model_validate(limits | dict(given))
    except ValidationError as error:
        first = error.errors()[0]
        raise TrainingError(f"{first['loc'][0]}: {first['msg']}") from error


def _completions(file: Path, actions: Mapping[IssueKind, Action]) -> tuple[Completions, str]:
    """Reference completions: the chosen responses of preferences, or completions as they are.

    And where they come from.
    """
    _, first = next(read_rows(file), (1, {}))
    origin = f"completions of {file.name}"
    if is_completion(first):
        return read_completions(file), origin
    groups, issues = read_groups(file, actions=actions)
    if dropped := len({line for kind in issues.dropped for line in issues.lines[kind]}):
        origin += f" without {dropped} odd record{'s' if dropped > 1 else ''}"
    return reference_completions(groups), origin


def _refuse_other_pooling(path: Path, source: Source, completions: Completions) -> None:
    """transformers reads a decoder's reward at the last token that is not padding, by its id."""
    config = source.model.config
    if source.model.kind == "bidirectional":
        return
    if config.pad_token_id is None:
        raise TrainingError(
            f"{path}: config.json has no pad_token_id. transformers then scores one row at a time "
            "only, and where the model was trained to read its reward cannot be known; set it to "
            "the id it was trained with"
        )
    encoder = source.encoder()
    for prompt, response in completions[:100]:
        if encoder.encode(prompt, response).ids[-1] == config.pad_token_id:
            raise TrainingError(
                f"{path}: its conversations end in token {config.pad_token_id}, which is also its "
                "pad_token_id, so transformers reads the reward one token earlier than its text "
                "ends; use --ending none, a template without that token, or another pad_token_id"
            )


def _calibrated(source: Source, completions: Completions, origin: str) -> Normalization:
    encoder = source.encoder()
    rows = [encoder.encode(prompt, response).ids for prompt, response in completions]
    raw_rewards = predict(source.model, rows)
    return Normalization(
        mean=reference_mean(raw_rewards),
        measured_mean=0.0,  # until it is measured through the graph
        std=float(raw_rewards.std()),
        completions=len(completions),
        reference=origin,
        reference_sha256=completions_sha256(completions),
    )


def _own_normalization(path: Path, model: AnyRewardModel) -> Normalization:
    """`mean` and `std` of config.json, OpenRLHF's names. The mean is subtracted, std only kept."""
    mean, std = (getattr(model.config, name, None) for name in ("mean", "std"))
    if not isinstance(mean, int | float):
        raise TrainingError(
            f"{path}: nothing says which reward is average: give --calibrate FILE with preferences "
            "or completions, or --uncalibrated to serve it as it is, marked normalized: false"
        )
    scale = float(std) if isinstance(std, int | float) else 1.0
    return Normalization(
        mean=float(mean),
        measured_mean=None,
        std=scale,
        scale=None if scale == 1.0 else scale,
        completions=0,
        reference="mean in the checkpoint's config.json",
        reference_sha256=digest(path / "config.json").sha256,
    )
