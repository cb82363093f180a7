"""Opens checkpoints of transformers: a directory or a Hub id, safetensors only, no code in them.

Knows model families; knows nothing of text. A weight that would be random is refused by its name.
"""

import json
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    PretrainedConfig,
)

from service.errors import TrainingError
from training.model import AnyRewardModel, EncoderRewardModel, RewardModel, begin_head

KINDS: dict[str, Literal["causal", "bidirectional"]] = {
    **dict.fromkeys(("llama", "qwen2", "qwen3", "mistral", "gemma", "gpt_neox", "gpt2"), "causal"),
    **dict.fromkeys(("bert", "roberta", "deberta-v2", "modernbert"), "bidirectional"),
}  # type: ignore[dict-item]
"model_type of every family that is trained, exported and tested; DeBERTa-v3 is deberta-v2"
HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt"]
HEADS = ("score", "classifier", "pooler", "head")
"names of what stands between a backbone and its scalar; new where a base model begins"


def find(source: str | Path) -> Path:
    """The directory of a checkpoint; a Hub id such as org/name is fetched, its safetensors only."""
    path = Path(source)
    if not path.is_dir():
        path = _fetch(str(source))
    if not (path / "config.json").is_file():
        raise TrainingError(f"{source}: has no config.json, so it is no checkpoint of transformers")
    if not any(path.glob("*.safetensors")):
        pickles = [file.name for file in path.glob("*") if file.suffix in (".bin", ".pt", ".pth")]
        found = f"only {', '.join(pickles)}, which can hold code" if pickles else "no weights"
        raise TrainingError(
            f"{source}: weights are read from safetensors alone, and it has {found}; convert it "
            "with save_pretrained(..., safe_serialization=True) where you trust it"
        )
    return path


def begin(path: Path) -> AnyRewardModel:
    """A new reward model on the backbone of any checkpoint: a new head, no dropout.

    Without dropout a completion has one reward, whatever batch it is in: gradient caching and the
    K-wise loss need that, and TRL does the same.
    """
    config = _without_dropout(_config(path))
    if _kind(config, path) == "causal":
        backbone, missing = _load(AutoModel, path, config)
        _refuse_missing(path, missing)
        return RewardModel(backbone)
    config.num_labels = 1
    classifier, missing = _load(AutoModelForSequenceClassification, path, config, resize=True)
    _refuse_missing(path, [name for name in missing if not _is_head(name)])
    model = EncoderRewardModel(classifier)
    begin_head(model.score)
    return model


def read(path: Path) -> AnyRewardModel:
    """A trained reward model: ours, or anybody's classifier with one label."""
    config = _config(path)
    kind = _kind(config, path)
    if config.num_labels != 1:
        raise TrainingError(
            f"{path}: the model has {config.num_labels} labels (num_labels in config.json); a "
            "reward model has one"
        )
    classifier, missing = _load(AutoModelForSequenceClassification, path, config)
    _refuse_missing(path, missing)
    if kind == "bidirectional":
        return EncoderRewardModel(classifier).eval()
    model = RewardModel(classifier.base_model)
    with torch.no_grad():
        model.score.weight.copy_(classifier.score.weight)
        bias = _tensor(path, "score.bias")  # ours has one; transformers' decoders drop it
        if bias is not None:
            model.score.bias.copy_(bias)
    return model.eval()


def _fetch(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=HUB_FILES))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise TrainingError(
            f"{name}: neither a directory nor a model that the Hub gives: {error}"
        ) from error


def _config(path: Path) -> PretrainedConfig:
    file = path / "config.json"
    try:
        if "auto_map" in json.loads(file.read_bytes()):
            raise TrainingError(
                f"{path}: its config.json asks for code of its own (auto_map), which is never run"
            )
        return AutoConfig.from_pretrained(path, trust_remote_code=False)
    # whatever transformers makes of values of other types: TypeError, ZeroDivisionError
    except (
        ValueError,
        KeyError,
        OSError,
        StrictDataclassError,
        TypeError,
        ArithmeticError,
        RecursionError,
    ) as error:
        raise TrainingError(f"{file}: {error!r}") from error


def _kind(config: PretrainedConfig, path: Path) -> Literal["causal", "bidirectional"]:
    kind = KINDS.get(config.model_type)
    if kind is None:
        raise TrainingError(
            f"{path}: {config.model_type} models cannot be exported; known families: "
            + ", ".join(KINDS)
        )
    return kind


def _load(
    cls: Any, path: Path, config: PretrainedConfig, resize: bool = False
) -> tuple[Any, list[str]]:
    """The model in fp32, and which of its weights the files lack.

    resize: a head of other size is replaced by a new one.
    """
    try:
        model, info = cls.from_pretrained(
            path,
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=resize,
        )
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise TrainingError(f"{path}: cannot be loaded: {error}") from error
    return model, sorted(info["missing_keys"])


def _refuse_missing(path: Path, missing: list[str]) -> None:
    missing = [name for name in missing if not name.endswith("score.bias")]
    if missing:
        kind = "the head" if all(map(_is_head, missing)) else "weights"
        raise TrainingError(
            f"{path}: {kind} would be random: the safetensors lack {', '.join(missing[:5])}"
            + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
            + "; give a trained reward model, not its base model"
        )


def _is_head(name: str) -> bool:
    return any(part in HEADS for part in name.split("."))


def _tensor(path: Path, name: str) -> torch.Tensor | None:
    for file in sorted(path.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            if name in tensors.keys():  # noqa: SIM118, not a dictionary
                return tensors.get_tensor(name)
    return None


def _without_dropout(config: PretrainedConfig) -> PretrainedConfig:
    for name, value in config.to_dict().items():
        if ("drop" in name) and isinstance(value, float):
            setattr(config, name, 0.0)
    return config
