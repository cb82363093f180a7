"""A decoder of the Llama kind in fused operators, as the packed graph runs it on a GPU.

Layer by layer what transformers computes, in fewer kernels: one product for queries, keys and
values, whose norms and rotation the attention operator does itself; each residual sum together with
the norm behind it. Other decoders keep the operators that transformers' own forward exports to.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.onnx.ops import symbolic_multi_out

from training.graph import layer_stack, refuse_other_attention, sizes
from training.model import RewardModel

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
"layers of two RMS norms, rotated halves, a gated product and nothing else"
Attend = Callable[[int, list[torch.Tensor | None], tuple[torch.Tensor, torch.Tensor]], torch.Tensor]
"""a layer's index, its queries, keys and values, cosines and sines (M, D / 2) -> (N, H * D)"""
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

    def forward(self, input_ids: torch.Tensor, attend: Attend, last: torch.Tensor) -> torch.Tensor:
        """input_ids (N,), last (R,): the rows' last tokens -> (R, d), before the last norm."""
        total = self.embed(input_ids)  # (N, d)
        normed = self.layers[0].norm(total)
        for i, layer in enumerate(self.layers):
            attended = attend(i, layer.states(normed), (self.cos, self.sin))
            if i == len(self.layers) - 1:
                total, attended = total.index_select(0, last), attended.index_select(0, last)
            normed, total = _add_and_norm(layer.out(attended), total, layer.mlp_norm)
            changed = layer.mlp(normed)
            if i < len(self.layers) - 1:
                normed, total = _add_and_norm(changed, total, self.layers[i + 1].norm)
        return total + changed


class FusedLayer(nn.Module):
    """The modules of one layer. Without norms of queries and keys, its three first products are
    one. With them, norms come before the operator: inside, its kernel takes as long as the two
    (311 us; 230 and 80 on an H200), and golden scores are further from torch's.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        attention: Any = layer.self_attn
        self.norm, self.mlp_norm = layer.input_layernorm, layer.post_attention_layernorm
        self.out, self.mlp = attention.o_proj, layer.mlp
        parts = [attention.q_proj, attention.k_proj, attention.v_proj]
        self.has_norms = hasattr(attention, "q_norm")
        if self.has_norms:
            self.parts = nn.ModuleList(parts)
            self.norms = nn.ModuleList([attention.q_norm, attention.k_norm])
        else:
            self.joined = _side_by_side(parts)

    def states(self, normed: torch.Tensor) -> list[torch.Tensor | None]:
        """Queries, keys and values: (N, H * D), (N, KV * D) twice; or side by side and nothing."""
        if not self.has_norms:
            return [self.joined(normed), None, None]
        query, key, value = (part(normed) for part in self.parts)
        return [self._normed(query, 0), self._normed(key, 1), value]

    def _normed(self, states: torch.Tensor, which: int) -> torch.Tensor:
        norm: Any = self.norms[which]
        return norm(states.unflatten(1, (-1, norm.weight.shape[0]))).flatten(1)


def _window(model: RewardModel, layer: nn.Module) -> int | None:
    """Qwen's layers know their own; Mistral's read the configuration's."""
    common = getattr(model.config, "sliding_window", None)
    window: int | None = getattr(layer.self_attn, "sliding_window", common)
    return window


def _side_by_side(parts: list[nn.Linear]) -> nn.Linear:
    """One product that gives what each of them gives, one after the other."""
    weight = torch.cat([part.weight.detach() for part in parts])
    joined = nn.Linear(weight.shape[1], weight.shape[0], bias=parts[0].bias is not None)
    joined.weight = nn.Parameter(weight, requires_grad=False)
    if parts[0].bias is not None:
        joined.bias = nn.Parameter(torch.cat([part.bias.detach() for part in parts]), False)
    return joined


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
