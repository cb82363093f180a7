"""The offline job as a story: preferences in; a trained, normalised, evaluated model out."""

import contextlib
import datetime
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.trainer_utils import set_seed

from service.errors import DataError, TrainingError
from training import checkpoint, lora
from training.batches import EncodedGroup
from training.checks import check, leaked_prompts
from training.config import Text, TrainConfig
from training.data import (
    Group,
    completions_sha256,
    find_identical_when_cut,
    group_records,
    read_groups,
    read_records,
    reference_completions,
    split_by_prompt,
)
from training.encoding import encode_groups
from training.evaluate import evaluate
from training.fit import fit
from training.formats.record import Record
from training.formats.source import sha256
from training.issues import Issues
from training.model import AnyRewardModel, usable_positions
from training.normalize import reference_mean
from training.predict import predict, predict_groups
from training.processes import processes
from training.report.figures import figures
from training.report.page import write as write_report
from training.rules import text_rules
from training.run import Run
from training.scratch import make_base

LIBRARIES = (
    *("torch", "transformers", "tokenizers", "onnx", "onnxscript"),
    *("onnxruntime", "onnxruntime-gpu"),
)


def train(config: TrainConfig) -> Run:
    """Everything `reward-train fit` does. Returns the run directory.

    A run that was killed goes on from its last checkpoint when the same configuration is given
    again, and ends with the weights it would have had (CPU, fp32). One that had ended is returned.

    Under torchrun every process runs this; the first one writes.
    """
    run, state = Run(config.out), processes()
    with state.main_process_first():
        if run.begin(config, _inputs(config)):
            return run
    records, train_groups, held_out, issues, held_out_issues = _read(config)
    with state.main_process_first():
        base = _base(config, train_groups, run)
        tokenizer = open_tokenizer(base, config.text)
        if state.is_main_process:
            run.model.mkdir(exist_ok=True)
            tokenizer.save_pretrained(run.model)
            run.write_rules(text_rules(tokenizer, config.text))
    encoder = run.encoder()

    encoded = encode_groups(encoder, train_groups)
    train_groups, encoded = _without_void(config, train_groups, encoded, issues)
    encoded_held_out = encode_groups(encoder, held_out)
    set_seed(config.seed)  # the head's weights
    model = checkpoint.begin(base)
    check_positions(model, config.text)
    adapters = lora.attach(model, config.model.lora) if config.model.lora else None
    model, history = fit(
        model,
        encoded,
        held_out,
        encoded_held_out,
        config.fit,
        config.loss,
        run.checkpoints,
        config.seed,
    )
    if adapters is not None:
        lora.merge(adapters)

    reference = reference_completions(train_groups)
    rows = [e.rows[i] for group, e in zip(train_groups, encoded, strict=True) for i in group.chosen]
    raw_rewards = predict(model, rows)
    mean = reference_mean(raw_rewards)
    rewards = [values - np.float32(mean) for values in predict_groups(model, encoded_held_out)]
    leaked = leaked_prompts(train_groups, held_out)
    evaluation = evaluate(held_out, rewards, leaked=leaked)
    evaluation["issues"] = held_out_issues.report()
    if not state.is_main_process:
        state.wait_for_everyone()
        return run
    model.save(run.model, mean=mean)
    run.write_reference(reference)
    run.write_held_out(held_out)
    normalization = {
        "mean": mean,
        "std": float(raw_rewards.std()),
        "completions": len(reference),
        "reference": "chosen responses of the training split",
        "reference_sha256": completions_sha256(reference),
    }
    data = _data_report(config, train_groups, encoded, issues)
    data["checks"] = _checks(config, records, held_out)
    write_report(
        _provenance(config)
        | {"data": data, "normalization": normalization, "evaluation": evaluation}
        | {"figures": figures(held_out, rewards), "log": history},
        run.path,
    )
    state.wait_for_everyone()
    if evaluation["collapsed"]:
        raise TrainingError(
            "the model gives every response to a prompt the same reward: it learned nothing; "
            "lower fit.learning_rate. The report is in " + str(run.report)
        )
    return run


def _inputs(config: TrainConfig) -> dict[str, str]:
    """SHA-256 of every file the run learns from."""
    files = [config.data.train, *([config.data.eval] if config.data.eval else [])]
    files += [config.text.template] if config.text.template else []
    if config.model.path is not None:
        files += sorted(file for file in config.model.path.glob("*") if file.is_file())
    try:
        return {str(file): sha256(file) for file in files}
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be read: {error.strerror}") from error


def _read(config: TrainConfig) -> tuple[list[Record], list[Group], list[Group], Issues, Issues]:
    """The training file's records; groups to train on, groups held out; what is odd about the
    training file, and about data.eval where there is one."""
    data = config.data
    actions = data.issues.actions()
    records = list(read_records(data.train, data.format))
    groups, issues = group_records(records, str(data.train), actions)
    if data.eval is None:
        return records, *split_by_prompt(groups, data.eval_fraction, config.seed), issues, Issues()
    held_out, held_out_issues = read_groups(data.eval, data.format, actions)
    known = {group.prompt for group in groups}
    if leaked := [group.lines[0] for group in held_out if group.prompt in known]:
        raise DataError(
            f"{data.eval}:{leaked[0]}: this prompt is in {data.train} too, as are "
            f"{len(leaked) - 1} others; an evaluation on training prompts says nothing",
            field="data.eval",
        )
    return records, groups, held_out, issues, held_out_issues


def _base(config: TrainConfig, groups: list[Group], run: Run) -> Path:
    """Directory of the checkpoint to begin with; made here when it is to be from scratch."""
    if config.model.path is not None:
        return checkpoint.find(config.model.path)
    assert config.model.scratch is not None
    if not run.base.exists():
        unfinished = run.path / "base.unfinished"
        make_base(groups, config.model.scratch, config.text, unfinished, config.seed)
        unfinished.rename(run.base)
    return run.base


def open_tokenizer(base: Path, text: Text) -> PreTrainedTokenizerBase:
    try:
        tokenizer = AutoTokenizer.from_pretrained(base)
        if isinstance(tokenizer.chat_template, dict):  # several; transformers takes this one
            tokenizer.chat_template = tokenizer.chat_template["default"]
        if text.template is not None:
            tokenizer.chat_template = text.template.read_text(encoding="utf-8")
    except (OSError, ValueError, KeyError) as error:
        raise TrainingError(f"{base}: its tokenizer cannot be read: {error}") from error
    return tokenizer


def check_positions(model: AnyRewardModel, text: Text) -> None:
    positions = usable_positions(model)
    wanted = text.max_prompt_tokens + text.max_response_tokens
    if positions is not None and wanted > positions:
        raise TrainingError(
            f"text.max_prompt_tokens + text.max_response_tokens = {wanted}, but the base model has "
            f"{positions} positions; lower them"
        )


def _provenance(config: TrainConfig) -> dict[str, object]:
    return {
        "name": config.name,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "scored_by": "torch, fp32",
        "config": config.model_dump(mode="json"),
        "libraries": libraries(),
    }


def _data_report(
    config: TrainConfig, groups: list[Group], encoded: list[EncodedGroup], issues: Issues
) -> dict[str, object]:
    """What was trained on; the issues are those of the whole file, held-out part and all."""
    return {
        "file": config.data.train.name,
        "sha256": sha256(config.data.train),
        "prompts": len(groups),
        "comparisons": sum(len(group.comparisons) for group in groups),
        "completions": sum(len(group.responses) for group in groups),
        "truncated_completions": sum(group.cut for group in encoded),
        "issues": issues.report(),
    }


def _checks(config: TrainConfig, records: list[Record], held_out: list[Group]) -> dict[str, object]:
    """Of the training part of the file as it was read, before anything was dropped."""
    apart = {group.prompt for group in held_out}
    known = [record for record in records if record.prompt not in apart]
    groups, issues = group_records(known, str(config.data.train), {"different_prompts": "drop"})
    return check(known, groups, issues, held_out)


def libraries() -> dict[str, str]:
    """Versions of what is installed of the libraries that decide the numbers."""
    found = {}
    for name in LIBRARIES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _without_void(
    config: TrainConfig, groups: list[Group], encoded: list[EncodedGroup], issues: Issues
) -> tuple[list[Group], list[EncodedGroup]]:
    """Apply data.issues.identical_when_cut; groups and their rows stay side by side."""
    whole = {id(group.responses): e for group, e in zip(groups, encoded, strict=True)}
    action = config.data.issues.identical_when_cut
    kept = find_identical_when_cut(
        groups, [e.rows for e in encoded], issues, action, str(config.data.train)
    )
    return kept, [
        replace(whole[id(group.responses)], comparisons=group.comparisons) for group in kept
    ]
