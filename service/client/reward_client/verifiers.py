"""Reward function for verifiers, and so for prime-rl. Run against verifiers 0.4.0's own scoring.

    [env.taskset.task.rewards]
    remote_reward = {fn = "reward_client.verifiers:remote_reward", weight = 1.0}

with the URL in REWARD_SERVICE_URL. prime-rl itself (GPU only) was not run.
"""

import functools
from typing import Any

from reward_client.aio import AsyncClient
from reward_client.settings import service_url


@functools.cache
def _client(url: str) -> AsyncClient:
    return AsyncClient(url)


async def remote_reward(trace: Any) -> float:
    """The reward of the trace's last branch: its last message is the response, the rest its prompt.

    Raises ValueError where the last message is not the assistant's; verifiers records it.
    """
    *before, last = [(message.role, _text(message)) for message in trace.messages]
    if last[0] != "assistant":
        raise ValueError(f"messages: the last one is of {last[0]!r}, not of 'assistant'")
    prompt = [{"role": role, "content": text} for role, text in before]
    return (await _client(service_url()).score([(prompt, last[1])])).rewards[0]


def _text(message: Any) -> str:
    if isinstance(message.content, str):
        return message.content
    parts = message.content or []
    if any(part.type != "text" for part in parts):
        raise ValueError(f"content: of a {message.role} message is not text only")
    return "".join(part.text for part in parts)
