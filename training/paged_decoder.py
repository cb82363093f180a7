"""A decoder of the Llama kind in fused operators, as the packed graph runs it on a GPU.

Layer by layer what transformers computes, in fewer kernels: queries and keys rotated by ONNX's
RotaryEmbedding, each residual sum together with the norm behind it. Other decoders keep the
operators that transformers' own forward exports to.

The attention operator could norm and rotate by itself, but slower: for 16,384 tokens of Qwen3-0.6B
in bf16 on an H100, rotation takes 458 us there and 260 to 280 here, and norms take 160 us either
way (ONNX Runtime 1.31.1, 27 Nov 2026). Nor is there a faster kernel for the gated activation, one
of two operators (301 us): GatedRMSNorm, scaled until it norms nothing, takes 311, and MoE with a
single expert wins by its activation what it loses by its products.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.onnx.ops import rotary_embedding, symbolic_multi_out

from training.graph import layer_stack, refuse_other_attention, sizes
from training.model import RewardModel

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
"layers of two RMS norms, rotated halves, a gated product and nothing else"
Attend = Callable[[int, list[torch.Tensor]], torch.Tensor]
"""a layer's index, its queries (N, H * D), keys and values (N, KV * D) -> (N, H * D)"""
Rotation = tuple[torch.Tensor, torch.Tensor]
"""cosines and sines (1, N, D / 2)"""
SKIP_NORM = "com.microsoft::SkipSimplifiedLayerNormalization"
ROTATIONS = ("default", "linear", "llama3")
"whose angles depend on the position alone, whatever the row's length"


def is_fusible(model: RewardModel) -> bool:
    """Of such a family, all of each head rotated, by angles that a table can hold."""
    if model.config.model_type not in FAMILIES:
        return False
    rotary: Any = model.backbone.rotary_emb
    return rotary.rope_type in ROTATIONS and 2 * len(rotary.inv_freq) == sizes(model).head_dim


class FusedDecoder(nn.Module):
    """The backbone of such a model, up to its last norm, for the rows' last tokens.

    It does not go through transformers' attention interface, so it refuses by itself what the
    operator would leave out.
    """

    def __init__(self, model: RewardModel) -> None:
        super().__init__()
        for layer in layer_stack(model):
            refuse_other_attention({"sliding_window": _window(model, layer)})
        self.embed = model.backbone.embed_tokens
        self.layers = nn.ModuleList(FusedLayer(layer) for layer in layer_stack(model))
        positions = torch.arange(model.config.max_position_embeddings)[None]
        example = next(layer_stack(model).parameters())
        half = sizes(model).head_dim // 2
        cos, sin = (table[0, :, :half] for table in model.backbone.rotary_emb(example, positions))
        self.cos, self.sin = nn.Buffer(cos.contiguous()), nn.Buffer(sin.contiguous())  # (M, D / 2)

    def forward(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        attend: Attend,
        last: torch.Tensor,
    ) -> torch.Tensor:
        """input_ids, position_ids (N,), last (R,): the rows' last tokens -> (R, d), before the
        last norm."""
        rotation = self.cos[position_ids][None], self.sin[position_ids][None]
        total = self.embed(input_ids)  # (N, d)
        normed = self.layers[0].norm(total)
        for i, layer in enumerate(self.layers):
            attended = attend(i, layer.states(normed, rotation))
            if i == len(self.layers) - 1:
                total, attended = total.index_select(0, last), attended.index_select(0, last)
            normed, total = _add_and_norm(layer.out(attended), total, layer.mlp_norm)
            changed = layer.mlp(normed)
            if i < len(self.layers) - 1:
                normed, total = _add_and_norm(changed, total, self.layers[i + 1].norm)
        return total + changed


class FusedLayer(nn.Module):
    """The modules of one layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        attention: Any = layer.self_attn
        self.norm, self.mlp_norm = layer.input_layernorm, layer.post_attention_layernorm
        self.out, self.mlp = attention.o_proj, layer.mlp
        self.query, self.key, self.value = attention.q_proj, attention.k_proj, attention.v_proj
        self.query_norm, self.key_norm = (
            getattr(attention, name, nn.Identity()) for name in ("q_norm", "k_norm")
        )

    def states(self, normed: torch.Tensor, rotation: Rotation) -> list[torch.Tensor]:
        """Queries (N, H * D), keys and values (N, KV * D)."""
        query = _rotated(self.query(normed), self.query_norm, rotation)
        key = _rotated(self.key(normed), self.key_norm, rotation)
        return [query, key, self.value(normed)]


def _rotated(states: torch.Tensor, norm: nn.Module, rotation: Rotation) -> torch.Tensor:
    """(N, heads * D) -> the same: each head normed, then rotated."""
    cos, sin = rotation
    heads = states.unflatten(1, (-1, 2 * cos.shape[2]))
    normed = norm(heads).flatten(1)
    return rotary_embedding(normed[None], cos, sin, num_heads=heads.shape[1]).flatten(0, 1)


def _window(model: RewardModel, layer: nn.Module) -> int | None:
    """Qwen's layers know their own; Mistral's read the configuration's."""
    common = getattr(model.config, "sliding_window", None)
    window: int | None = getattr(layer.self_attn, "sliding_window", common)
    return window


def _add_and_norm(
    change: torch.Tensor, total: torch.Tensor, norm: nn.Module
) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum normed, and the sum: (N, d) each."""
    normed, _, _, total = symbolic_multi_out(
        SKIP_NORM,
        [change, total, norm.weight],
        {"epsilon": norm.variance_epsilon},
        dtypes=(change.dtype, torch.float32, torch.float32, change.dtype),
        shapes=(change.shape, (change.shape[0], 1), (change.shape[0], 1), change.shape),
        version=1,
    )
    return normed, total
