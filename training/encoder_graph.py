"""The reward graph of a bidirectional model: rows padded on the right with a mask, no past.

Inputs   input_ids (B, T) int64; attention_mask (B, T) int64, 1 for real tokens.
Output   reward (B,) float32.
"""

from pathlib import Path

import torch
from torch import nn

from service.manifest import Architecture
from training.model import EncoderRewardModel
from training.program import to_program
from training.strides import widen

ROTARY = ("modernbert",)
"families whose positions must be given per row: ONNX's RotaryEmbedding does not broadcast them"


class EncoderGraph(nn.Module):
    """What is exported: the model and the mean, subtracted once at its end."""

    def __init__(self, model: EncoderRewardModel, mean: float) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor(mean))

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        if self.model.config.model_type in ROTARY:
            positions = torch.arange(input_ids.shape[1], device=input_ids.device)
            inputs["position_ids"] = positions.expand(input_ids.shape)
        return self.model.sequence_classifier(**inputs).logits.squeeze(-1) - self.mean


def encoder_sizes(model: EncoderRewardModel) -> Architecture:
    config = model.config
    heads = config.num_attention_heads
    return Architecture(
        kind="bidirectional",
        family=config.model_type,
        layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        heads=heads,
        kv_heads=heads,
        head_dim=config.hidden_size // heads,
        vocab_size=config.vocab_size,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
    )


def export_encoder_graph(model: EncoderRewardModel, mean: float, file: Path) -> None:
    """Write `file` and, beside it, its weights as `file`.data."""
    ids = torch.zeros(2, 5, dtype=torch.int64)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    rows = {0: "batch", 1: "tokens"}
    program = to_program(
        EncoderGraph(model, mean),
        (ids, mask),
        (rows, rows),
        inputs=["input_ids", "attention_mask"],
        outputs=["reward"],
        family=model.config.model_type,
    )
    widen(program.model)
    program.save(str(file), external_data=True)
