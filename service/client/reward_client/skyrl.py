"""An environment of SkyRL-Gym whose reward is the service's. Run against skyrl-gym 0.4.0.

    skyrl_gym.register("remote_reward", entry_point="reward_client.skyrl:RemoteRewardEnv")

then `environment.env_class=remote_reward`, with the URL in REWARD_SERVICE_URL. The trainer itself
(GPU only) was not run.
"""

import functools
from typing import Any

from skyrl_gym.envs.base_text_env import BaseTextEnv, BaseTextEnvStepOutput

from reward_client.client import Client
from reward_client.settings import service_url


@functools.cache
def _client(url: str) -> Client:
    """One for all environments of the process: SkyRL makes one per trajectory, in 32 threads."""
    return Client(url)


class RemoteRewardEnv(BaseTextEnv):  # type: ignore[misc]
    """One turn: the policy's text is the response to the prompt, and the episode is over."""

    def __init__(self, env_config: Any = None, extras: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.client = _client(service_url())
        self.prompt: list[dict[str, str]] = []

    def init(self, prompt: list[dict[str, str]]) -> tuple[list[dict[str, str]], dict[str, Any]]:
        self.prompt = [{"role": turn["role"], "content": turn["content"]} for turn in prompt]
        return prompt, {}

    def step(self, action: str) -> BaseTextEnvStepOutput:
        scores = self.client.score([(self.prompt, action)])
        metadata = {"reward_tokens_cut": scores.tokens_cut[0]}
        return BaseTextEnvStepOutput(
            observations=[], reward=scores.rewards[0], done=True, metadata=metadata
        )
