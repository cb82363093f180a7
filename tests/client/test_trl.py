"""The reward functions for TRL, called as TRL calls them; TRL itself is in tests/trainers."""

import asyncio
import inspect
import pickle
from typing import Any

import pytest

from reward_client import BadAnswer, Refused, Unavailable
from reward_client.trl import RemoteReward, as_pairs, remote_reward_async
from tests.client.scripted import refused, scored, scripted

USER = {"role": "user", "content": "Hi"}
HELLO = {"role": "assistant", "content": "Hello."}
TOOL = {"role": "tool", "content": "42"}
BLOCKS = {
    "role": "assistant",
    "content": [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo."}],
}


def _sync(url: str, **options: Any):
    return RemoteReward(url, **options)


def _async(url: str, **options: Any):
    function = remote_reward_async(url, **options)
    return lambda **columns: asyncio.run(function(**columns))


@pytest.fixture(params=[_sync, _async], ids=["sync", "async"])
def reward(request):
    return request.param


class Log:
    """What TRL hands in: log_extra(column, values) and log_metric(name, value)."""

    def __init__(self) -> None:
        self.extra: dict[str, list] = {}
        self.metric: dict[str, float] = {}

    def columns(self) -> dict[str, Any]:
        add = {"log_extra": self.extra.__setitem__, "log_metric": self.metric.__setitem__}
        return {**add, "trainer_state": object(), "completion_ids": [[1]], "subset": ["kind"]}


@pytest.mark.parametrize(
    ("prompt", "completion", "expected"),
    [
        ("Hi", " there", ("Hi", " there")),
        ([USER], [HELLO], ([USER], "Hello.")),
        ([USER], [BLOCKS], ([USER], "Hello.")),
        ([USER], [HELLO, TOOL, HELLO], ([USER, HELLO, TOOL], "Hello.")),
        ([USER], " there", ([USER], " there")),
    ],
)
def test_the_last_message_is_the_response_and_the_rest_its_prompt(
    prompt, completion, expected
) -> None:
    assert as_pairs([prompt], [completion]) == [expected]


@pytest.mark.parametrize(
    ("prompt", "completion", "why"),
    [
        ("Hi", [HELLO], "a string, but"),
        ([USER], [], "does not end with the assistant"),
        ([USER], [HELLO, TOOL], "does not end with the assistant"),
        ([USER], [{"role": "assistant", "content": None}], "is not text"),
        ([USER], [{"role": "assistant", "content": [{"type": "image"}]}], "is not text"),
    ],
)
def test_what_has_no_text_to_score_is_an_error(prompt, completion, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        as_pairs([prompt], [completion])


def test_the_same_keys_are_logged_with_and_without_an_answer(reward) -> None:
    answered, unanswered = Log(), Log()
    with scripted(scored([1.5])) as server:
        assert reward(server.url)(prompts=["a"], completions=["b"], **answered.columns()) == [1.5]
    with scripted(refused(503, "overloaded")) as server:
        function = reward(server.url, on_error="none", deadline_s=0.3)
        got = function(prompts=["a"], completions=["b"], **unanswered.columns())
        assert got == [None]
    assert answered.extra == unanswered.extra == {"reward_tokens_cut": [0]}
    assert answered.metric.keys() == unanswered.metric.keys()
    assert unanswered.metric["reward_service/unanswered"] == 1.0


def test_no_answer_raises_unless_none_was_chosen(reward) -> None:
    with scripted(refused(503, "overloaded")) as server, pytest.raises(Unavailable):
        reward(server.url, deadline_s=0.3)(prompts=["a"], completions=["b"])


@pytest.mark.parametrize(
    ("reply", "error"), [(refused(400, "invalid_request"), Refused), (scored([]), BadAnswer)]
)
def test_a_refusal_raises_even_where_none_was_chosen(reward, reply, error) -> None:
    with scripted(reply) as server, pytest.raises(error):
        reward(server.url, on_error="none")(prompts=["a"], completions=["b"])


def test_both_forms_are_pickled_and_have_names() -> None:
    with scripted(scored([1.5])) as server:
        one = pickle.loads(pickle.dumps(RemoteReward(server.url, name="mine", deadline_s=7)))
        assert (one.__name__, one.client.deadline_s) == ("mine", 7)
        assert one(prompts=["a"], completions=["b"]) == [1.5]
        two = pickle.loads(pickle.dumps(remote_reward_async(server.url)))
        assert two.__name__ == "remote_reward"
        assert inspect.iscoroutinefunction(two)
        assert asyncio.run(two(prompts=["a"], completions=["b"])) == [1.5]
