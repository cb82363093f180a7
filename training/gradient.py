"""The gradient of a step, accumulated over passes. Knows rewards and losses; no text."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch

from training.batches import Batch, Pass, Share
from training.config import Loss
from training.loss import (
    at_least_fp32,
    bradley_terry,
    centring,
    plackett_luce,
    rao_kupper,
    scaled_bradley_terry,
    smoothed,
)

Model = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Objective = Callable[[torch.Tensor], torch.Tensor]


def batch_loss(rewards: torch.Tensor, batch: Batch, settings: Loss) -> torch.Tensor:
    """Weighted loss of a batch's groups, scalar; rewards (N,) in the order of its passes."""
    rewards = rewards[batch.order]
    if settings.likelihood == "plackett-luce":
        terms = [plackett_luce(rewards[ranked]).mean() for ranked in batch.rankings]
        loss = batch.ranking_weight * torch.stack(terms).sum()
    else:
        loss = (batch.weight * _comparison_losses(rewards, batch, settings)).sum()
    if settings.centring:
        squares = centring(rewards[batch.winner], rewards[batch.loser])
        loss = loss + settings.centring * (batch.weight * squares).sum()
    return loss


def _comparison_losses(rewards: torch.Tensor, batch: Batch, settings: Loss) -> torch.Tensor:
    """(C,), each by its likelihood."""
    rewards = at_least_fp32(rewards)
    margin = rewards[batch.winner] - rewards[batch.loser]
    if settings.likelihood == "rao-kupper":
        return rao_kupper(margin, batch.target, settings.tie_threshold)
    target = smoothed(batch.target, settings.label_smoothing)
    if settings.likelihood == "scaled-bradley-terry":
        return scaled_bradley_terry(margin, batch.target_margin, target)
    return bradley_terry(margin, target, batch.target_margin)


def accumulate(
    model: Model,
    share: Share,
    settings: Loss,
    backward: Callable[[torch.Tensor], None] = torch.Tensor.backward,
    unsynchronised: Callable[[], AbstractContextManager] = nullcontext,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Add the gradient of a step to the parameters, pass by pass.

    A batch of several passes goes through the model twice: first without a graph, for its rewards
    and the gradient of the loss with respect to them; then pass by pass with a graph and that
    gradient (gradient caching: GradCache, Gao et al. 2021, arXiv 2101.06983). So the memory is that
    of one pass and the gradient that of the whole batch. The model must have no dropout, or the two
    would differ. Gradients are synchronised between processes in the last pass alone.

    Returns the loss, scalar, and the margins of all comparisons, (C,).
    """
    loss, margins, todo = torch.zeros(()), [], []

    def objective(rewards: torch.Tensor, batch: Batch) -> torch.Tensor:
        nonlocal loss
        value = batch_loss(rewards, batch, settings)
        loss = loss.to(value) + value.detach()
        placed = rewards.detach()[batch.order]
        margins.append(placed[batch.winner] - placed[batch.loser])
        return value

    for batch in share.batches:
        if len(batch.passes) == 1:
            todo.append((batch.passes[0], partial(objective, batch=batch)))
        else:
            todo += _cached(model, batch, objective)
    with torch.no_grad():
        for passed in share.idle_cached:
            model(passed.input_ids, passed.attention_mask)
    todo += [(passed, _nothing) for passed in share.idle]
    for i, (passed, objective_of) in enumerate(todo, 1):
        with nullcontext() if i == len(todo) else unsynchronised():
            backward(objective_of(model(passed.input_ids, passed.attention_mask)))
    return loss, torch.cat(margins) if margins else torch.zeros(0)


def _cached(
    model: Model, batch: Batch, objective: Callable[..., torch.Tensor]
) -> Iterator[tuple[Pass, Objective]]:
    """The passes of a batch, each with the gradient of the loss with respect to its rewards."""
    with torch.no_grad():
        parts = [model(passed.input_ids, passed.attention_mask) for passed in batch.passes]
    rewards = torch.cat(parts).requires_grad_()
    (gradient,) = torch.autograd.grad(objective(rewards, batch=batch), rewards)
    for passed, part in zip(batch.passes, gradient.split([len(p) for p in parts]), strict=True):
        yield passed, partial(_dot, gradient=part)


def _dot(rewards: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    return (rewards * gradient).sum()


def _nothing(rewards: torch.Tensor) -> torch.Tensor:
    return rewards.sum() * 0
