"""An environment for NeMo-RL. NOT run against NeMo-RL: its package on the index is a placeholder.

Written after `nemo_rl.environments.interfaces` of August 2026. Register it under both names:

    name = "reward_client.nemo_rl.RemoteRewardEnvironment"
    register_env("remote_reward", name)
    ACTOR_ENVIRONMENT_REGISTRY[name] = PY_EXECUTABLES.SYSTEM

and configure `env.remote_reward: {url: http://...}`.
"""

from typing import Any

import ray
import torch
from nemo_rl.environments.interfaces import EnvironmentInterface, EnvironmentReturn

from reward_client.client import Client
from reward_client.settings import service_url


@ray.remote
class RemoteRewardEnvironment(EnvironmentInterface):  # type: ignore[misc]
    """One turn: the last message of every log is the response; its episode is over."""

    def __init__(self, cfg: dict[str, Any]) -> None:
        options = dict(cfg)
        self.client = Client(service_url(options.pop("url", None)), **options)

    def step(
        self, message_log_batch: list[list[dict[str, Any]]], metadata: list[Any]
    ) -> EnvironmentReturn:
        pairs = []
        for log in message_log_batch:
            turns = [{"role": turn["role"], "content": turn["content"]} for turn in log]
            pairs.append((turns[:-1], turns[-1]["content"]))
        rewards = self.client.score(pairs).rewards
        return EnvironmentReturn(
            observations=[{"role": "environment", "content": ""} for _ in pairs],
            metadata=metadata,
            next_stop_strings=[None] * len(pairs),
            rewards=torch.tensor(rewards, dtype=torch.float32),
            terminateds=torch.ones(len(pairs)),
            answers=None,
        )

    def global_post_process_and_metrics(self, batch: Any) -> tuple[Any, dict[str, Any]]:
        return batch, {"mean_reward": batch["total_reward"].mean().item()}
