"""The ragged reward graph: what CPUs run. One token axis, every row's attention its own.

Inputs   input_ids, position_ids (N,) int64: the tokens of all segments, one after the other;
         last_index (R, 2) int64: where in N each row's last two tokens are; one alone would take
         another matrix kernel;
         segments (S, 4) int64: where a segment's tokens begin and end in N, and where in `seen` the
         places of the tokens begin and end that it attends to, the last of them its own;
         row_segments (R, 4) int64: the same of those, which are 0, 1, ..., 2 R in the last layer;
         seen (I,) int64; past_key_<i>, past_value_<i> (1, KV, P, D) per layer, P >= 0.
Outputs  reward (R,) float32; present_key_<i>, present_value_<i> (1, KV, P + N, D).

A place is on the axis of states: P tokens of the past, then the N of the run. A segment may see any
of them, so a prompt that rows share is computed once, in the run that scores them; nothing is
padded, and products are over as many tokens as the run has. service/ragged.py makes the arrays.

ONNX has no operator for rows of different lengths on one axis: reward.RaggedAttention is a function
of the model's own, a loop over segments around ONNX's Attention. It has the kernels of the padded
graph (training/graph.py) and so its bits, and its weights: they are in that graph's file.
"""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx.parser
import onnx_ir
import torch
from torch import nn
from torch.export import Dim
from torch.onnx.ops import symbolic

from service.errors import TrainingError
from training.graph import (
    States,
    attention_through,
    centred_head,
    final_norm,
    refuse_other_attention,
    sizes,
    state_names,
)
from training.model import RewardModel
from training.one_axis import last_layer_pruned
from training.program import to_program
from training.strides import widen

ATTENTION = "reward_ragged"
ATTENTION_OPSET = 24
"""Attention there takes how many keys there are and lets the last query see the last of them. The
exporter is left at its own opset: at 24 it writes norms and rotations as many operators."""
INLINE_BYTES = 64 * 1024
"a smaller initializer is in the graph itself: tables of the rotation, for one"
DOMAIN, OPERATOR = "reward", "RaggedAttention"
FUNCTION = """
<domain: "reward", opset_import: ["" : {opset}]>
RaggedAttention <scale> (query, key, value, segments, seen) => (output)
{{
    none = SequenceEmpty <dtype: int = 1> ()
    shape = Shape (segments)
    zero = Constant <value_ints: ints = [0]> ()
    one = Constant <value_ints: ints = [1]> ()
    count = Slice (shape, zero, one)
    yes = Constant <value: tensor = bool {{1}}> ()
    query_start, query_stop, seen_start, seen_stop =
        Split <axis: int = 1, num_outputs: int = 4> (segments)
    attended = Loop (count, yes, none) <body: graph = segment
        (int64 i, bool before, seq(float) done) => (bool again, seq(float) extended)
    {{
        again = Identity (before)
        tokens = Constant <value_ints: ints = [2]> ()
        first = Constant <value_ints: ints = [0]> ()
        query_from = Gather (query_start, i)
        query_to = Gather (query_stop, i)
        seen_from = Gather (seen_start, i)
        seen_to = Gather (seen_stop, i)
        places = Slice (seen, seen_from, seen_to, first)
        queries = Slice (query, query_from, query_to, tokens)
        keys = Gather <axis: int = 2> (key, places)
        values = Gather <axis: int = 2> (value, places)
        many = Sub (seen_to, seen_from)
        result = Attention <is_causal: int = 1, scale: float = @scale>
            (queries, keys, values, , , , many)
        extended = SequenceInsert (done, result)
    }}>
    output = ConcatFromSequence <axis: int = 2> (attended)
}}
"""


@dataclass(slots=True)
class _Pass:
    """What the attention of one forward pass reads and leaves behind."""

    past: list[States]
    segments: torch.Tensor
    row_segments: torch.Tensor
    seen: torch.Tensor
    last: torch.Tensor
    "(2 R,): where in N the rows' last two tokens are"
    present: dict[int, States] = field(default_factory=dict)
    hidden: torch.Tensor | None = None
    "(1, 2 R, d): the last layer's result for those"


class RaggedGraph(nn.Module):
    """What is exported: the mean folded into the head's bias."""

    def __init__(self, model: RewardModel, mean: float) -> None:
        super().__init__()
        self.backbone = model.backbone
        self.norm = final_norm(model)
        self.head = centred_head(model, mean)

    def forward(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        last_index: torch.Tensor,
        segments: torch.Tensor,
        row_segments: torch.Tensor,
        seen: torch.Tensor,
        past: list[States],
    ) -> tuple[torch.Tensor, ...]:
        running = _Pass(past, segments, row_segments, seen, last_index.flatten())
        self.backbone(
            input_ids=input_ids[None],
            position_ids=position_ids[None],
            use_cache=False,
            reward_pass=running,
        )
        assert running.hidden is not None
        pairs = self.head(self.norm(running.hidden)).unflatten(1, (-1, 2))  # (1, R, 2, 1)
        present = (running.present[layer] for layer in range(len(past)))
        return pairs[0, :, 1, 0], *(state for states in present for state in states)


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
    """transformers' attention interface; query (1, H, N, D), key and value (1, KV, N, D)."""
    refuse_other_attention(other)
    assert reward_pass is not None and attention_mask is None
    layer, running = module.layer_idx, reward_pass
    segments = running.segments
    if layer in running.present:  # the last layer once more, for the last tokens alone
        segments = running.row_segments
    else:
        past = running.past[layer]
        running.present[layer] = torch.cat([past[0], key], 2), torch.cat([past[1], value], 2)
        if layer == len(running.past) - 1:
            return query.transpose(1, 2), None  # nobody reads what follows from it
    output = symbolic(
        f"{DOMAIN}::{OPERATOR}",
        [query, *running.present[layer], segments, running.seen],
        {"scale": query.shape[3] ** -0.5 if scaling is None else scaling},
        dtype=query.dtype,
        shape=query.shape,
        version=1,
    )
    return output.transpose(1, 2).contiguous(), None


def export_ragged_graph(model: RewardModel, mean: float, file: Path, weights: Path) -> None:
    """Write `file`; its weights are those in `weights`, the padded graph beside it.

    Raises TrainingError where a large one is not among them.
    """
    shape = sizes(model)
    layers = range(shape.layers)
    graph = RaggedGraph(model, mean)
    state = (1, shape.kv_heads, 4, shape.head_dim)
    past = [(torch.zeros(state), torch.zeros(state)) for _ in layers]
    example = (
        torch.zeros(7, dtype=torch.int64),
        torch.arange(7),
        torch.tensor([[1, 2], [3, 4], [5, 6]]),
        torch.zeros(5, 4, dtype=torch.int64),
        torch.zeros(3, 4, dtype=torch.int64),
        torch.arange(9),
        past,
    )
    tokens, rows, states = {0: Dim("tokens")}, {0: Dim("rows")}, {2: Dim("past")}
    dynamic = (
        *(tokens, tokens, rows, {0: Dim("segments")}, rows, {0: Dim("seen")}),
        [(states, states) for _ in layers],
    )
    with attention_through(model, ATTENTION, _attend), last_layer_pruned(model):
        program = to_program(
            graph,
            example,
            dynamic,
            inputs=[
                *("input_ids", "position_ids", "last_index", "segments", "row_segments", "seen"),
                *state_names("past", layers),
            ],
            outputs=["reward", *state_names("present", layers)],
            family=shape.family,
        )
    text = FUNCTION.format(opset=ATTENTION_OPSET)
    function = onnx_ir.serde.deserialize_function(onnx.parser.parse_function(text))
    program.model.functions[function.identifier()] = function
    program.model.opset_imports[""] = ATTENTION_OPSET
    widen(program.model)
    _share_weights(program.model, onnx_ir.load(weights))
    program.save(str(file))


def _share_weights(model: onnx_ir.Model, other: onnx_ir.Model) -> None:
    """Let large initializers be those of the other graph's data file with the same content: the
    exporter names and lays out each graph's anew."""
    known = {}
    for value in other.graph.initializers.values():
        if isinstance(value.const_value, onnx_ir.ExternalTensor):
            known[_digest(value.const_value)] = value.const_value
    for name, value in model.graph.initializers.items():
        assert value.const_value is not None
        if value.const_value.nbytes > INLINE_BYTES:
            if (content := _digest(value.const_value)) not in known:
                raise TrainingError(
                    f"{name}: the ragged graph has a weight that the padded has not"
                )
            value.const_value = known[content]


def _digest(tensor: onnx_ir.TensorProtocol) -> tuple[object, ...]:
    return tensor.dtype, tuple(tensor.shape), hashlib.sha256(tensor.tobytes()).digest()
