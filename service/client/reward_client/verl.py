"""Reward manager and reward function for verl. Run against verl 0.9.1.

The entry point of group `verl.plugins` imports this module with verl, which registers the manager:
`reward.reward_manager.name=remote_reward` is all that verl has to be told, besides the URL, as
`+reward.reward_kwargs.url=...` or in the variable REWARD_SERVICE_URL.
"""

import asyncio
import functools
from typing import Any

from verl import DataProto
from verl.experimental.reward_loop.reward_manager import register
from verl.experimental.reward_loop.reward_manager.base import RewardManagerBase

from reward_client.aio import AsyncClient
from reward_client.settings import service_url
from reward_client.wire import Scores


@register("remote_reward")
class RemoteRewardManager(RewardManagerBase):  # type: ignore[misc]
    """Scores the last sequence of every sample.

    `reward.reward_kwargs` are options of `AsyncClient`. A failure raises: verl has
    no value for "unknown", and a made-up 0 would be trained on.
    """

    def __init__(
        self,
        config: Any,
        tokenizer: Any,
        compute_score: Any = None,
        reward_router_address: str | None = None,
        reward_model_tokenizer: Any = None,
    ) -> None:
        super().__init__(config, tokenizer, compute_score)
        options = dict(config.reward.get("reward_kwargs") or {})
        self.client = AsyncClient(service_url(options.pop("url", None)), **options)

    async def run_single(self, data: DataProto) -> dict[str, Any]:
        """`{"reward_score": float, "reward_extra_info": dict}`; verl wants the same keys always."""
        item = data[-1:][0]
        ids = item.batch["responses"]
        length = int(item.batch["attention_mask"][-ids.shape[-1] :].sum())
        decode = functools.partial(self.tokenizer.decode, ids[:length], skip_special_tokens=True)
        response = await asyncio.get_running_loop().run_in_executor(None, decode)
        messages = [dict(turn) for turn in item.non_tensor_batch["raw_prompt"]]
        return _result(await self.client.score([(messages, response)]))


async def compute_score(
    data_source: Any = None,
    solution_str: str = "",
    ground_truth: Any = None,
    extra_info: dict[str, Any] | None = None,
    *,
    url: str | None = None,
    **_: Any,
) -> dict[str, float]:
    """For `reward.custom_reward_function.path=pkg://reward_client.verl`.

    verl does not hand the prompt to such a function, so the data set has to: `extra_info["prompt"]`
    is a string or a list of messages. Raises ValueError without one. Prefer the manager.
    """
    prompt = (extra_info or {}).get("prompt")
    if prompt is None:
        raise ValueError('extra_info["prompt"]: there is none, and verl passes no prompt otherwise')
    if not isinstance(prompt, str):
        prompt = [dict(turn) for turn in prompt]
    result = _result(await _client(service_url(url)).score([(prompt, solution_str)]))
    return {"score": result["reward_score"], **result["reward_extra_info"]}


@functools.cache
def _client(url: str) -> AsyncClient:
    return AsyncClient(url)


def _result(scores: Scores) -> dict[str, Any]:
    extra = {"reward_tokens": scores.tokens[0], "reward_tokens_cut": scores.tokens_cut[0]}
    return {"reward_score": scores.rewards[0], "reward_extra_info": extra}
