"""The preference likelihoods. Pure functions of rewards or margins; each names its paper.

A margin is the reward of the winner minus that of the loser. Each is a negative log-likelihood in
nats, computed in fp32 at least.
"""

import torch
from torch.nn.functional import logsigmoid

Number = torch.Tensor | float


def bradley_terry(
    margin: torch.Tensor, target: Number = 1.0, target_margin: Number = 0.0
) -> torch.Tensor:
    """-(t log sigmoid(m - o) + (1 - t) log sigmoid(o - m)), (C,).

    target t: P(winner preferred): 1 for a plain choice, a share of votes, 0.5 for a tie.
    target_margin o: offset of the logit, Llama 2 (arXiv 2307.09288, equation 2).
    With both left out: InstructGPT (arXiv 2203.02155, equation 1), after Bradley & Terry 1952.

    >>> bradley_terry(torch.tensor([1.3]))
    tensor([0.2410])
    """
    logit = at_least_fp32(margin) - target_margin
    return -(target * logsigmoid(logit) + (1 - target) * logsigmoid(-logit))


def scaled_bradley_terry(
    margin: torch.Tensor, strength: Number, target: Number = 1.0
) -> torch.Tensor:
    """strength * Bradley-Terry, (C,): HelpSteer2-Preference (arXiv 2410.01257, equation 5).

    strength: how much better the annotators found the winner, above 0; 1 to 3 in the paper. Unlike
    an offset it says how much a choice counts, not how far apart the rewards should be.
    """
    return strength * bradley_terry(margin, target)


def rao_kupper(margin: torch.Tensor, target: torch.Tensor, tie_threshold: float) -> torch.Tensor:
    """Bradley-Terry with ties, (C,): Rao & Kupper 1967 (J. Am. Stat. Assoc. 62, 194-204).

    With threshold h > 0, in units of reward:
        P(win) = sigmoid(m - h);  P(loss) = sigmoid(-m - h);
        P(tie) = 1 - P(win) - P(loss) = (exp(2 h) - 1) P(win) P(loss)
    target: 1 the winner won, 0 it lost, 0.5 a tie. Equals tie with probability tanh(h / 2).

    >>> loss = rao_kupper(torch.zeros(3), torch.tensor([1.0, 0.0, 0.5]), tie_threshold=0.5)
    >>> loss.neg().exp().sum()
    tensor(1.)
    """
    margin = at_least_fp32(margin)
    win, lose = logsigmoid(margin - tie_threshold), logsigmoid(-margin - tie_threshold)
    tie = torch.log(torch.expm1(margin.new_tensor(2 * tie_threshold))) + win + lose
    return -torch.where(target == 0.5, tie, torch.where(target > 0.5, win, lose))


def plackett_luce(ranked: torch.Tensor) -> torch.Tensor:
    """-log P of each choice that makes a ranking: rewards (..., K), best first -> (..., K - 1).

    The best of all, then the best of the rest, and so on: Luce 1959, Plackett 1975; for rewards,
    Zhu et al. (arXiv 2301.11270, equation 8). Of two responses, that is Bradley-Terry.

    >>> plackett_luce(torch.zeros(3)).exp()
    tensor([3., 2.])
    """
    ranked = at_least_fp32(ranked)
    of_the_rest = ranked.flip(-1).logcumsumexp(-1).flip(-1)  # (..., K)
    return (of_the_rest - ranked)[..., :-1]


def smoothed(target: Number, smoothing: float) -> Number:
    """Target when a share `smoothing` of the labels is flipped (arXiv 2401.06080, section 2.3).

    >>> round(smoothed(1.0, 0.1), 6), smoothed(0.5, 0.1)
    (0.9, 0.5)
    """
    return target * (1 - smoothing) + (1 - target) * smoothing


def centring(winner: torch.Tensor, loser: torch.Tensor) -> torch.Tensor:
    """(r_winner + r_loser)^2, (C,): keeps rewards near 0 (Eisenstein et al., arXiv 2312.09244).

    A likelihood of margins does not see a shift. TRL recommends a weight of 0.01.
    """
    return (at_least_fp32(winner) + at_least_fp32(loser)).square()


def at_least_fp32(values: torch.Tensor) -> torch.Tensor:
    """float32 and float64 stay; half precision is widened before anything is subtracted."""
    return values if values.dtype == torch.float64 else values.float()
