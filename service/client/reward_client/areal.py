"""Reward function for AReaL: `reward_fn="reward_client.areal.reward_fn"`.

The URL is in the variable REWARD_SERVICE_URL. Run through AReaL 1.0.4's own AsyncRewardWrapper,
not in a whole training. That wrapper waits 15 s (queueing in its process pool included), tries 4
times, and then trains on 0: give it a service that answers in time, and watch for its warning.
"""

import functools
from typing import Any

from reward_client.client import Client
from reward_client.settings import service_url

DEADLINE_S = 12.0
"""below AReaL's 15 s, so that an error reaches it as one"""


@functools.cache
def _client(url: str) -> Client:
    return Client(url, deadline_s=DEADLINE_S, attempt_s=DEADLINE_S)


def reward_fn(
    prompt: str, completions: str, prompt_ids: Any = None, completion_ids: Any = None, **_: Any
) -> float:
    """The reward of one sample; both strings are templated text with their special tokens.

    They are scored as they are, so policy and reward model have to share the template.
    """
    return _client(service_url()).score_texts([prompt + completions]).rewards[0]
