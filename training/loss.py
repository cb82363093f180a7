"""The preference likelihood. Pure functions of rewards and comparisons."""

import torch
from torch.nn.functional import logsigmoid


def preference_loss(
    rewards: torch.Tensor,
    winner: torch.Tensor,
    loser: torch.Tensor,
    target: torch.Tensor | float = 1.0,
    target_margin: torch.Tensor | float = 0.0,
) -> torch.Tensor:
    """Bradley-Terry negative log-likelihood of comparisons, (C,), in fp32.

    rewards (N,): one per unique completion; winner, loser (C,): indices into it.
    target (C,): P(winner preferred), 1 for a plain choice, 0.5 for a tie.
    target_margin (C,): offset of the logit, as in Llama 2 (arXiv 2307.09288, equation 2).

    -log sigmoid(r_winner - r_loser), as in InstructGPT (arXiv 2203.02155, equation 1).

    >>> preference_loss(torch.tensor([0.8, 2.1]), torch.tensor([1]), torch.tensor([0]))
    tensor([0.2410])
    """
    rewards = rewards.float()
    logit = rewards[winner] - rewards[loser] - target_margin  # (C,)
    return -(target * logsigmoid(logit) + (1 - target) * logsigmoid(-logit))
