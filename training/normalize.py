"""Mean 0 on the reference completions. Pure."""

import numpy as np


def reference_mean(raw_rewards: np.ndarray) -> float:
    """Mean raw reward of the reference completions, (N,) -> scalar.

    reward = raw_reward - mean gives those completions the average 0, as in "Learning to summarize"
    (arXiv 2009.01325) and InstructGPT (arXiv 2203.02155): the Bradley-Terry loss does not see a
    shift, the reinforcement learning after it does. The sum runs in float64.
    """
    return float(raw_rewards.astype(np.float64).mean())
