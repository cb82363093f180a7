"""A reward model in 16 bits, where the packed graph is: embeddings and layers. Knows tensors."""

import copy

import torch
from torch import nn

from service.errors import TrainingError
from training.graph import layer_stack
from training.model import RewardModel


def rounded(model: RewardModel, precision: torch.dtype) -> RewardModel:
    """A copy with embeddings and layers in `precision`; final norm and head stay in fp32.

    So do buffers: rotary frequencies in 16 bits would misplace tokens far from the start. It runs
    in torch too, rounded where the graph rounds; only the order of sums differs.
    """
    copied = copy.deepcopy(model).eval()
    norm = final_norm(copied)
    for module in copied.backbone.children():
        if module is not norm:
            for parameter in module.parameters():
                parameter.data = parameter.data.to(precision)
    norm.register_forward_pre_hook(_in_fp32)
    return copied


def final_norm(model: RewardModel) -> nn.Module:
    """What the backbone computes after its layers: one module with weights, in every family."""
    stack = layer_stack(model)
    after = [
        module
        for module in model.backbone.children()
        if module is not stack
        and not isinstance(module, nn.Embedding)
        and any(True for _ in module.parameters())
    ]
    if len(after) != 1:
        raise TrainingError(
            f"{model.config.model_type}: {len(after)} modules with weights beside embeddings and "
            "layers, where a paged graph expects the final norm alone; leave out paged variants"
        )
    return after[0]


def _in_fp32(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return tuple(tensor.float() for tensor in inputs)
