"""Reward for ms-swift. Run against ms-swift 4.6.0's own scoring, not in a whole training.

It wants a file of yours, with the line `import reward_client.swift`, and `--external_plugins FILE
--reward_funcs remote_reward`. (Not this file itself: ms-swift puts a plugin's directory before all
others, and here is a `trl.py`.) The URL is in the variable REWARD_SERVICE_URL, because ms-swift
makes the object from the trainer's arguments, which have no room for it.
"""

from collections.abc import Sequence
from typing import Any

from swift.rewards import AsyncORM, orms

from reward_client.aio import AsyncClient
from reward_client.settings import service_url
from reward_client.wire import Message


class RemoteReward(AsyncORM):  # type: ignore[misc]
    """ms-swift runs it with `asyncio.run`, a new event loop per step; the client allows that."""

    def __init__(self, args: Any = None, **options: Any) -> None:
        super().__init__(args)
        self.client = AsyncClient(service_url(), **options)

    async def __call__(
        self, completions: Sequence[str], messages: Sequence[Sequence[Message]], **_: Any
    ) -> list[float]:
        """`messages` are whole chats, the completion their last; one reward for each."""
        pairs = []
        for completion, chat in zip(completions, messages, strict=True):
            turns = [{"role": turn["role"], "content": turn["content"]} for turn in chat[:-1]]
            pairs.append((turns, completion))
        return (await self.client.score(pairs)).rewards


orms["remote_reward"] = RemoteReward
