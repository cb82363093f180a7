"""Low-rank adapters through peft: put on a backbone, merged into it. Knows nothing of training."""

import re
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from service.errors import TrainingError
from training.config import Lora
from training.model import AnyRewardModel

NEW = "pooler"
"layers of a backbone that a base model lacks: they are trained whole, as the head is"
ADAPTERS = "adapters.safetensors"


def attach(model: AnyRewardModel, settings: Lora) -> PeftModel:
    """Freeze the backbone, adapt its linear layers in place; the head stays trainable."""
    target = settings.target_modules
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=0.0,
        target_modules=target if isinstance(target, str) else list(target),
        exclude_modules=rf".*{NEW}.*",
    )
    try:
        adapted = get_peft_model(model.backbone, config)
    except (ValueError, re.error) as error:
        raise TrainingError(f"model.lora.target_modules: {error}") from error
    for name, parameter in model.backbone.named_parameters():
        if NEW in name:
            parameter.requires_grad_(True)
    return adapted


def merge(adapted: PeftModel) -> None:
    """W + (alpha / rank) B A in place of W, the adapters gone: a plain checkpoint again."""
    adapted.merge_and_unload()


def is_adapted(model: AnyRewardModel) -> bool:
    return any(isinstance(layer, LoraLayer) for layer in model.modules())


@torch.no_grad()
def merged(model: AnyRewardModel) -> dict[str, torch.Tensor]:
    """The weights that `merge` would leave, under their plain names; the model stays adapted."""
    weights = {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in model.state_dict().items()
        if ".lora_" not in name
    }
    for name, layer in model.named_modules():
        if isinstance(layer, LoraLayer):
            (adapter,) = layer.active_adapters
            weight = layer.get_base_layer().weight + layer.get_delta_weight(adapter)
            weights[f"{name}.weight"] = weight.cpu()  # a second model has no room beside this one
    return weights


def write(model: AnyRewardModel, path: Path) -> None:
    """What is trained, for `restore`: merged weights do not say which part of them it was."""
    trained = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
    save_file(trained, path / ADAPTERS)


def restore(model: AnyRewardModel, path: Path) -> None:
    """Put it back; what is frozen is still the base model's. Raises TrainingError."""
    try:
        kept = load_file(path / ADAPTERS)
    except (OSError, SafetensorError) as error:
        raise TrainingError(
            f"{path / ADAPTERS}: {error}; without it the run cannot go on: name another `out`"
        ) from error
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    if kept.keys() != trained:
        raise TrainingError(f"{path / ADAPTERS}: it is not of this model, or of other adapters")
    model.load_state_dict(kept, strict=False)
