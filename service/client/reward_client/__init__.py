"""Rewards of a reward-service for reinforcement-learning trainers: the same reward, or an error."""

from reward_client.aio import AsyncClient
from reward_client.client import Client
from reward_client.errors import BadAnswer, Refused, RewardClientError, Unavailable
from reward_client.wire import Prompt, Scores

__all__ = [
    "AsyncClient",
    "BadAnswer",
    "Client",
    "Prompt",
    "Refused",
    "RewardClientError",
    "Scores",
    "Unavailable",
]
