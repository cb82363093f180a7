"""Reward functions for TRL: GRPO, RLOO, OnlineDPO and AsyncGRPO. Run against TRL 1.16.0.

TRL calls them with the batch's prompts and completions and every further column of the dataset.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

from reward_client.aio import AsyncClient
from reward_client.client import Client
from reward_client.errors import Unavailable
from reward_client.wire import Message, Prompt, Scores

OnError = Literal["raise", "none"]
RewardFunction = Callable[..., Any]
Completion = str | Sequence[Message]


class RemoteReward:
    """`GRPOTrainer(reward_funcs=RemoteReward(url), ...)`. Prompts may be strings or conversations.

    `name` is TRL's in its logs (`rewards/<name>/mean`). `on_error="none"` turns a batch without an
    answer by the deadline into None, which TRL counts as not scorable (before mid-2026: as 0);
    refusals and untrustworthy answers raise all the same. `options` are those of `Client`.
    Picklable: AsyncGRPO sends it to the process that it spawns.
    """

    def __init__(
        self, url: str, *, name: str = "remote_reward", on_error: OnError = "raise", **options: Any
    ) -> None:
        self.client = Client(url, **options)
        self.on_error = on_error
        self.__name__ = name

    def __call__(
        self, prompts: Sequence[Prompt], completions: Sequence[Completion], **columns: Any
    ) -> Sequence[float | None]:
        try:
            scores = self.client.score(as_pairs(prompts, completions))
        except Unavailable:
            if self.on_error == "raise":
                raise
            return _logged(None, len(prompts), columns)
        return _logged(scores, len(prompts), columns)


def remote_reward_async(url: str, *, on_error: OnError = "raise", **options: Any) -> RewardFunction:
    """The same as a coroutine function, `remote_reward` in TRL's logs: TRL runs several at once.

    A partial object, because not every TRL sees that an instance's `__call__` is a coroutine.
    """
    reward = functools.partial(remote_reward, client=AsyncClient(url, **options), on_error=on_error)
    reward.__name__ = "remote_reward"  # type: ignore[attr-defined]
    return reward


async def remote_reward(
    prompts: Sequence[Prompt],
    completions: Sequence[Completion],
    *,
    client: AsyncClient,
    on_error: OnError = "raise",
    **columns: Any,
) -> Sequence[float | None]:
    try:
        scores = await client.score(as_pairs(prompts, completions))
    except Unavailable:
        if on_error == "raise":
            raise
        return _logged(None, len(prompts), columns)
    return _logged(scores, len(prompts), columns)


def as_pairs(
    prompts: Sequence[Prompt], completions: Sequence[Completion]
) -> list[tuple[Prompt, str]]:
    """Strings as they are. Of a conversation the last message is the response, the rest its prompt.

    >>> as_pairs(["Hi"], [" there"])
    [('Hi', ' there')]
    >>> user = {"role": "user", "content": "Hi"}
    >>> as_pairs([[user]], [[{"role": "assistant", "content": "Hello."}]])
    [([{'role': 'user', 'content': 'Hi'}], 'Hello.')]
    """
    return [_pair(*row) for row in zip(prompts, completions, strict=True)]


def _pair(prompt: Prompt, completion: Completion) -> tuple[Prompt, str]:
    if isinstance(completion, str):
        return prompt, completion
    if isinstance(prompt, str):
        raise ValueError("prompts: a string, but its completion is a list of messages")
    *before, last = [*prompt, *completion]
    if not completion or last["role"] != "assistant":
        raise ValueError("completions: a conversation that does not end with the assistant's turn")
    messages = [{"role": turn["role"], "content": _text(turn)} for turn in before]
    return messages, _text(last)


def _text(message: Message) -> str:
    """A message's text; of content in blocks, the text blocks joined. Nothing else is scored."""
    content: Any = message["content"]
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(block.get("type") == "text" for block in content):
        return "".join(block["text"] for block in content)
    raise ValueError(f"content: of a {message['role']} message is not text: {type(content)}")


def _logged(scores: Scores | None, count: int, columns: dict[str, Any]) -> list[float | None]:
    """The rewards, after logging. Every rank has to log the same keys, whatever happened.

    TRL before 1.0 hands in no log functions.
    """
    cut = scores.tokens_cut if scores else [0] * count
    if log_extra := columns.get("log_extra"):
        log_extra("reward_tokens_cut", cut)
    if log_metric := columns.get("log_metric"):
        log_metric("reward_service/truncated", sum(tokens > 0 for tokens in cut) / count)
        log_metric("reward_service/unanswered", float(scores is None))
    return list(scores.rewards) if scores else [None] * count
