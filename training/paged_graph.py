"""The packed reward graph of bf16-paged and fp16-paged: one token axis, keys and values in blocks.

Inputs   input_ids, position_ids (N,) int64: the tokens of all segments, one after the other;
         last_index (R,) int64: where in N each row's last token is;
         cumulative_sequence_length (S + 1,), past_seqlens (S,), block_table (S, W), slot_mapping
         (N,), attention_metadata (2,) int32: of S segments, as com.microsoft.PagedAttention takes
         them; key_cache_<i>, value_cache_<i> (blocks, block size, KV, D) per layer.
Outputs  reward (R,) float32; key_cache_out_<i>, value_cache_out_<i>, which must be bound to the
         buffers of the inputs: the operator writes in place.

There is no batch axis, no padding inside a row and no mask. service/blocks.py makes the arrays.
The operator has kernels for CUDA alone, in fp16 and bf16.

Exported, not rewritten from the padded graph: that has a batch axis in every shape, and a last
layer whose queries are two tokens of each row while its keys are of all of them, which this
operator does not take. Here transformers' attention interface emits the operator itself, as it
emits ONNX's Attention in training/graph.py. For the same reason the last layer's attention runs
over all tokens; what follows it, three quarters of that layer's weights in Qwen3-0.6B, runs over
the rows' last tokens alone. Decoders of Llama's kind are written in fewer operators instead
(training/paged_decoder.py).
"""

import math
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import onnx_ir
import torch
from torch import nn
from torch.export import Dim
from torch.onnx.ops import symbolic_multi_out

from service.errors import TrainingError
from service.manifest import Architecture
from training.graph import (
    States,
    attention_through,
    centred_head,
    final_norm,
    layer_stack,
    refuse_other_attention,
    sizes,
)
from training.model import RewardModel
from training.one_axis import gather, last_layer_pruned
from training.paged_decoder import FusedDecoder, is_fusible
from training.program import to_program

ATTENTION = "reward_paged"
OPERATOR = "com.microsoft::PagedAttention"
HEAD_MULTIPLE, HEAD_MOST = 8, 256
"widths of a head that the operator's Flash Attention takes"
METADATA = (
    "cumulative_sequence_length",
    "past_seqlens",
    "block_table",
    "slot_mapping",
    "attention_metadata",
)


@dataclass(slots=True)
class _Pass:
    """What the attention of one forward pass reads and leaves behind."""

    caches: list[States]
    cumulative: torch.Tensor
    past: torch.Tensor
    table: torch.Tensor
    slots: torch.Tensor
    bounds: torch.Tensor
    last: torch.Tensor
    "(R,): the index of each row's last token"
    written: dict[int, States] = field(default_factory=dict)
    attended: torch.Tensor | None = None
    "(1, N, H, D): of the last layer, once it is known"
    hidden: torch.Tensor | None = None
    "(1, R, d): the last layer's result for the rows' last tokens"


class PagedGraph(nn.Module):
    """What is exported: the rounded model, the mean folded into its head's bias in fp32."""

    def __init__(self, model: RewardModel, mean: float) -> None:
        super().__init__()
        self.sizes = sizes(model)
        self.fused = FusedDecoder(model) if is_fusible(model) else None
        self.backbone = None if self.fused else model.backbone
        self.norm = final_norm(model)
        self.head = centred_head(model, mean)

    def forward(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        last_index: torch.Tensor,
        cumulative: torch.Tensor,
        past: torch.Tensor,
        table: torch.Tensor,
        slots: torch.Tensor,
        bounds: torch.Tensor,
        caches: list[States],
    ) -> tuple[torch.Tensor, ...]:
        running = _Pass(caches, cumulative, past, table, slots, bounds, last_index)
        if self.fused:
            running.hidden = self.fused(
                input_ids, position_ids, partial(_attend_fused, running, self.sizes), last_index
            )
        else:
            self.backbone(
                input_ids=input_ids[None],
                position_ids=position_ids[None],
                use_cache=False,
                reward_pass=running,
            )
        assert running.hidden is not None
        reward = self.head(self.norm(running.hidden)).flatten()  # (R,)
        written = (running.written[layer] for layer in range(len(caches)))
        return reward, *(cache for states in written for cache in states)


def _attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    reward_pass: _Pass | None = None,
    **other: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface on the operator; query (1, H, N, D), key (1, KV, N, D)."""
    refuse_other_attention(other)
    running = reward_pass
    assert running is not None and attention_mask is None
    if running.attended is not None:  # the last layer once more, for the last tokens alone
        return gather(running.attended, running.last), None
    layer = module.layer_idx
    packed = [states.squeeze(0).transpose(0, 1).flatten(1) for states in (query, key, value)]
    # (N, H * D), (N, KV * D), (N, KV * D)
    heads = {"num_heads": query.shape[1], "kv_num_heads": key.shape[1]}
    scale = 1 / math.sqrt(query.shape[3]) if scaling is None else scaling
    output = _paged_attention(running, layer, packed, heads | {"scale": scale})
    output = output.unflatten(1, (query.shape[1], query.shape[3]))[None]  # (1, N, H, D)
    if layer == len(running.caches) - 1:
        running.attended = output
    return output, None


def _attend_fused(
    running: _Pass, shape: Architecture, layer: int, packed: list[torch.Tensor]
) -> torch.Tensor:
    """A fused layer's attention, (N, H * D)."""
    heads = {"num_heads": shape.heads, "kv_num_heads": shape.kv_heads}
    return _paged_attention(running, layer, packed, heads | {"scale": shape.head_dim**-0.5})


def _paged_attention(
    running: _Pass,
    layer: int,
    packed: list[torch.Tensor],
    attributes: dict[str, Any],
) -> torch.Tensor:
    """The operator, over all tokens: (N, H * D)."""
    key_cache, value_cache = running.caches[layer]
    query = packed[0]
    lengths = (running.cumulative, running.past, running.table)
    inputs = [*packed, key_cache, value_cache, *lengths, None, None, running.slots]
    output, *written = symbolic_multi_out(
        OPERATOR,
        [*inputs, *[None] * 5, running.bounds],
        attributes,
        dtypes=(query.dtype, key_cache.dtype, value_cache.dtype),
        shapes=(query.shape, key_cache.shape, value_cache.shape),
        version=1,
    )
    running.written[layer] = written[0], written[1]
    return output


def _one_type_per_norm(model: onnx_ir.Model) -> None:
    """The exporter drops the cast before the final norm, as RMSNormalization may take two types.

    It would then round to that of its input before it multiplies, and ONNX Runtime refuses it.
    """
    for node in list(model.graph):
        if node.op_type != "RMSNormalization":
            continue
        value, scale = node.inputs[0], node.inputs[1]
        assert value is not None and scale is not None and scale.dtype is not None
        if value.dtype != scale.dtype:
            cast = onnx_ir.node("Cast", [value], {"to": int(scale.dtype)})
            cast.outputs[0].dtype, cast.outputs[0].shape = scale.dtype, value.shape
            cast.outputs[0].name = f"{value.name}_cast"
            model.graph.insert_before(node, cast)
            node.replace_input_with(0, cast.outputs[0])


def refuse_unpaged(model: RewardModel) -> None:
    """Raise TrainingError for heads that the operator has no kernel for."""
    head_dim = sizes(model).head_dim
    if head_dim % HEAD_MULTIPLE or head_dim > HEAD_MOST:
        raise TrainingError(
            f"head_dim: {head_dim}, but PagedAttention takes multiples of {HEAD_MULTIPLE} up to "
            f"{HEAD_MOST}; leave out paged variants"
        )


def export_paged_graph(model: RewardModel, mean: float, file: Path) -> None:
    """Write `file` and, beside it, its weights as `file`.data. `model` comes from `rounded`."""
    refuse_unpaged(model)
    shape = sizes(model)
    layers = range(shape.layers)
    graph = PagedGraph(model, mean)
    precision = next(layer_stack(model).parameters()).dtype
    cache = (7, 16, shape.kv_heads, shape.head_dim)
    caches = [
        (torch.zeros(cache, dtype=precision), torch.zeros(cache, dtype=precision)) for _ in layers
    ]
    tokens, rows, segments = Dim("tokens"), Dim("rows"), Dim("segments")
    blocks = {0: Dim("blocks"), 1: Dim("block_size")}
    example = (
        torch.zeros(5, dtype=torch.int64),
        torch.arange(5),
        torch.tensor([1, 4, 2]),
        torch.tensor([0, 3, 5, 5, 5], dtype=torch.int32),
        torch.zeros(4, dtype=torch.int32),
        torch.zeros(4, 6, dtype=torch.int32),
        torch.arange(5, dtype=torch.int32),
        torch.tensor([3, 3], dtype=torch.int32),
        caches,
    )
    dynamic = (
        *({0: tokens}, {0: tokens}, {0: rows}),
        *({0: segments + 1}, {0: segments}, {0: segments, 1: Dim("blocks_per_segment")}),
        *({0: tokens}, None, [(blocks, blocks) for _ in layers]),
    )
    states = [f"{kind}_cache" for kind in ("key", "value")]
    with attention_through(model, ATTENTION, _attend), last_layer_pruned(model):
        program = to_program(
            graph,
            example,
            dynamic,
            inputs=[
                *("input_ids", "position_ids", "last_index", *METADATA),
                *(f"{state}_{i}" for i in layers for state in states),
            ],
            outputs=["reward", *(f"{state}_out_{i}" for i in layers for state in states)],
            family=shape.family,
        )
    _one_type_per_norm(program.model)
    program.save(str(file), external_data=True)
