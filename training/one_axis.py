"""The last layer of a graph whose rows lie on one token axis, for their last tokens alone.

Nobody reads what it gives for the others, but for their keys and values, and the exporter drops
what nobody reads. Knows modules; knows nothing of attention.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

import torch

from training.graph import layer_stack
from training.model import RewardModel


class RowEnds(Protocol):
    """What a forward pass says, as its keyword `reward_pass`, and is told."""

    last: torch.Tensor
    "places in N of the rows' last tokens, all that a row's reward needs"
    hidden: torch.Tensor | None
    "(1, len(last), d): the last layer's result for those"


def gather(states: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
    """(1, N, ...) -> (1, len(last), ...)."""
    return states.index_select(1, last)


@contextmanager
def last_layer_pruned(model: RewardModel) -> Iterator[None]:
    """While it lasts, the last layer runs over all tokens and then over the rows' last ones.

    The second time its attention has to give what belongs to those.
    """
    layer = layer_stack(model)[-1]
    layer.forward = partial(_last_tokens_only, layer.forward)
    try:
        yield
    finally:
        del layer.forward


def _last_tokens_only(forward: Any, hidden: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    """Nobody reads what is returned: the result is left in the pass."""
    running: RowEnds = kwargs["reward_pass"]
    forward(hidden, *args, **kwargs)
    last = partial(gather, last=running.last)
    for name in kwargs.keys() & {"position_ids", "position_embeddings"}:
        states = kwargs[name]
        kwargs[name] = tuple(map(last, states)) if isinstance(states, tuple) else last(states)
    output = forward(last(hidden), *args, **kwargs)
    running.hidden = output[0] if isinstance(output, tuple) else output
    return hidden
