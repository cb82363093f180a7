"""A reward model in 16 bits, where the packed graph is: embeddings and layers. Knows tensors."""

import copy

import torch
from torch import nn

from training.graph import final_norm
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


def _in_fp32(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return tuple(tensor.float() for tensor in inputs)
