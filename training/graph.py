"""The reward graph: a decoder with past key/values that returns one reward per row.

Inputs   input_ids (B, T) int64; position_ids (B, T) int64; last_index (B,) int64, the last real
         token of each row; past_key_<i>, past_value_<i> (B, KV, P, D) per layer, P >= 0.
Outputs  reward (B,) float32; present_key_<i>, present_value_<i> (B, KV, P + T, D).

States have the type of the model's weights; the head and the reward are float32.

Causality and grouped key/value heads are left to ONNX's Attention operator: there is no repeated
head in the graph and no mask but the last layer's. Rows are padded on the right, so no real token
sees one that pads. A reward is read at one token, so the last layer computes keys and values of all
tokens and everything else for that token alone: nearly a sixth of a six-layer model's work.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.onnx.ops import attention
from transformers import AttentionInterface

from service.errors import TrainingError
from service.manifest import Architecture
from training.model import RewardModel
from training.program import to_program
from training.strides import widen

ATTENTION = "reward_onnx"

States = tuple[torch.Tensor, torch.Tensor]
"keys and values, (B, KV, tokens, D) each"


@dataclass(slots=True)
class _Pass:
    """What the attention of one forward pass reads and leaves behind."""

    past: list[States]
    last: torch.Tensor
    "(B, 2): the index of the last real token, twice: one row of a matrix takes another kernel"
    present: dict[int, States] = field(default_factory=dict)
    last_layer: States | None = None
    "keys and values of the last layer's new tokens, once they are known"


class RewardGraph(nn.Module):
    """What is exported. The model's mean is folded into the head's bias, once, on a copy of it."""

    def __init__(self, model: RewardModel, mean: float) -> None:
        super().__init__()
        self.backbone = model.backbone
        self.head = centred_head(model, mean)

    def forward(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        last_index: torch.Tensor,
        past: list[States],
    ) -> tuple[torch.Tensor, ...]:
        running = _Pass(past, last_index[:, None].expand(-1, 2))
        hidden = self.backbone(
            input_ids=input_ids,
            position_ids=position_ids,
            use_cache=False,
            reward_pass=running,
        ).last_hidden_state  # (B, T, d), the last token's at every place
        reward = self.head(hidden[:, :2].to(self.head.weight.dtype))[:, 0, 0]
        present = (running.present[layer] for layer in range(len(past)))
        return reward, *(state for states in present for state in states)


def centred_head(model: RewardModel, mean: float) -> nn.Linear:
    """A copy of the head whose bias has the mean taken off."""
    head = nn.Linear(model.score.in_features, 1)
    head.load_state_dict(model.score.state_dict())
    with torch.no_grad():
        head.bias -= mean
    return head


def refuse_other_attention(options: Mapping[str, object]) -> None:
    """Raise TrainingError for what ONNX's operators would leave out: sliding windows, soft caps,
    sinks, biases."""
    for name in ("sliding_window", "softcap", "s_aux", "position_bias"):
        if options.get(name) is not None:
            raise TrainingError(
                f"the model's attention uses {name}={options[name]}, which is not exported; "
                "a bundle without it would give other rewards"
            )


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
    """transformers' attention interface on ONNX's operator; query (B, H, T, D) and so on."""
    refuse_other_attention(other)
    assert reward_pass is not None and attention_mask is None
    layer = module.layer_idx
    seen: dict[str, Any] = {"is_causal": True}
    if layer == len(reward_pass.past) - 1:
        if reward_pass.last_layer is None:
            reward_pass.last_layer = key, value
            return query.transpose(1, 2), None  # nobody reads what follows from it
        key, value = reward_pass.last_layer
        seen = {"attn_mask": _up_to_last(reward_pass, key.shape[2])}
    past_key, past_value = reward_pass.past[layer]
    output, key, value, _ = attention(
        query, key, value, past_key=past_key, past_value=past_value, scale=scaling, **seen
    )
    reward_pass.present[layer] = key, value
    return output.transpose(1, 2).contiguous(), None


def _up_to_last(running: _Pass, tokens: int) -> torch.Tensor:
    """(B, 1, 2, P + T): which tokens the last one sees."""
    past = running.past[-1][0].shape[2]
    places = torch.arange(past + tokens)
    return (places <= past + running.last[..., None])[:, None]


def _last_token_only(forward: Any, hidden: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """The last layer, (B, T, d) -> (B, T, d): the last token's result, at every place.

    It runs twice: over all tokens, of which only the keys and values are used and the exporter
    drops the rest, and over the last token with those keys and values.
    """
    running: _Pass = kwargs["reward_pass"]
    forward(hidden, *args, **kwargs)

    def last(states: torch.Tensor) -> torch.Tensor:  # (B, T, ...) -> (B, 2, ...)
        index = running.last.reshape(*running.last.shape, *[1] * (states.dim() - 2))
        return states.gather(1, index.expand(-1, -1, *states.shape[2:]))

    for name in kwargs.keys() & {"position_ids", "position_embeddings"}:
        states = kwargs[name]
        kwargs[name] = tuple(map(last, states)) if isinstance(states, tuple) else last(states)
    output = forward(last(hidden), *args, **kwargs)
    return output[:, :1].expand_as(hidden)


def layer_stack(model: RewardModel) -> nn.ModuleList:
    layers = model.config.num_hidden_layers
    stacks = (module for module in model.backbone.modules() if isinstance(module, nn.ModuleList))
    return next(stack for stack in stacks if len(stack) == layers)


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
            "layers, where the exported graphs expect the final norm alone"
        )
    return after[0]


@contextmanager
def _last_layer_pruned(model: RewardModel) -> Iterator[None]:
    layer = layer_stack(model)[-1]
    layer.forward = partial(_last_token_only, layer.forward)
    try:
        yield
    finally:
        del layer.forward


@contextmanager
def attention_through(
    model: RewardModel, name: str, attend: Callable[..., tuple[torch.Tensor, None]]
) -> Iterator[None]:
    """While it lasts, the model's layers call `attend`, transformers' attention named `name`."""
    AttentionInterface.register(name, attend)
    before = model.config._attn_implementation
    model.backbone.set_attn_implementation(name)
    try:
        yield
    finally:
        model.backbone.set_attn_implementation(before)


def sizes(model: RewardModel) -> Architecture:
    config = model.config
    heads = config.num_attention_heads
    return Architecture(
        kind="causal",
        family=config.model_type,
        layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        heads=heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        vocab_size=config.vocab_size,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
    )


def export_graph(model: RewardModel, mean: float, file: Path) -> None:
    """Write `file` and, beside it, its weights as `file`.data."""
    shape = sizes(model)
    layers = range(shape.layers)
    graph = RewardGraph(model, mean)
    state = (2, shape.kv_heads, 4, shape.head_dim)
    dtype = next(model.backbone.parameters()).dtype
    past = [(torch.zeros(state, dtype=dtype), torch.zeros(state, dtype=dtype)) for _ in layers]
    example = (
        torch.zeros(2, 3, dtype=torch.int64),
        torch.arange(4, 7).repeat(2, 1),
        torch.tensor([2, 1]),
        past,
    )
    rows, states = {0: "batch", 1: "tokens"}, {0: "batch", 2: "past"}
    with attention_through(model, ATTENTION, _attend), _last_layer_pruned(model):
        program = to_program(
            graph,
            example,
            (rows, rows, {0: "batch"}, [(states, states) for _ in layers]),
            inputs=["input_ids", "position_ids", "last_index", *state_names("past", layers)],
            outputs=["reward", *state_names("present", layers)],
            family=shape.family,
        )
    widen(program.model)
    program.save(str(file), external_data=True)


def state_names(side: str, layers: Iterable[int]) -> Iterator[str]:
    """Of a graph's inputs ("past") or outputs ("present")."""
    return (f"{side}_{kind}_{i}" for i in layers for kind in ("key", "value"))
