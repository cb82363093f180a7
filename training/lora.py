"""Low-rank adapters through peft: put on a backbone, merged into it. Knows nothing of training."""

from peft import LoraConfig, PeftModel, get_peft_model

from training.config import Lora
from training.model import AnyRewardModel

NEW = "pooler"
"layers of a backbone that a base model lacks: they are trained whole, as the head is"


def attach(model: AnyRewardModel, settings: Lora) -> PeftModel:
    """Freeze the backbone, adapt its linear layers in place; the head stays trainable."""
    target = settings.target_modules
    adapted = get_peft_model(
        model.backbone,
        LoraConfig(
            r=settings.rank,
            lora_alpha=settings.alpha,
            lora_dropout=0.0,
            target_modules=target if isinstance(target, str) else list(target),
            exclude_modules=rf".*{NEW}.*",
        ),
    )
    for name, parameter in model.backbone.named_parameters():
        if NEW in name:
            parameter.requires_grad_(True)
    return adapted


def merge(adapted: PeftModel) -> None:
    """W + (alpha / rank) B A in place of W, the adapters gone: a plain checkpoint again."""
    adapted.merge_and_unload()
