"""Trainers that cannot be installed without a GPU: how their clients behave, written anew.

What slime 2026-08-21, LLaMA-Factory 2026-08-18 and align-anything send, expect, and do on failure:
concurrency, time-outs, tries and pauses. None of their code is here.
"""

import asyncio
import json
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import requests

from reward_client import Client
from tests.trainers.flags import url_of
from tests.trainers.flaky import flaky
from training.demo.walk import Service

Samples = list[tuple[str, str]]


@pytest.fixture(scope="module")
def samples(demo: Path) -> Samples:
    with (demo / "held_out.jsonl").open() as records:
        return [
            (record["prompt"], response)
            for record in map(json.loads, (next(records) for _ in range(16)))
            for response in record["responses"][:4]
        ]


@pytest.fixture(scope="module")
def expected(service: Service, samples: Samples) -> dict[str, float]:
    """By templated text, what `/score` gives for the conversation."""
    with Client(service.url) as client:
        rewards = client.score(samples).rewards
    return {templated(*s): reward for s, reward in zip(samples, rewards, strict=True)}


def turns(prompt: str) -> str:
    return f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"


def templated(prompt: str, response: str) -> str:
    return f"{turns(prompt)}{response}<|im_end|>"


class Slime:
    """One POST per sample over 64 connections, 120 s, 10 tries, pauses of min(2^n, 30) s and a bit.

    Any status of 400 and above counts as a failure; the whole body is the reward.
    """

    tries = 10

    def __init__(self, url: str) -> None:
        self.url = url

    async def rewards(self, samples: Samples) -> list[Any]:
        connector = aiohttp.TCPConnector(limit=64)
        timeout = aiohttp.ClientTimeout(total=120)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
            return await asyncio.gather(*[self._reward(session, *sample) for sample in samples])

    async def _reward(self, session: aiohttp.ClientSession, prompt: str, response: str) -> Any:
        body = {"prompt": turns(prompt), "response": f"{response}<|im_end|>", "label": None}
        for attempt in range(self.tries):
            try:
                async with session.post(self.url, json=body) as answer:
                    answer.raise_for_status()
                    return await answer.json()
            except aiohttp.ClientError:
                if attempt + 1 == self.tries:
                    raise
                await asyncio.sleep(min(2**attempt, 30) + random.random())
        raise AssertionError("unreachable")


def test_slime(service: Service, samples: Samples, expected: dict[str, float]) -> None:
    got = asyncio.run(Slime(url_of("slime.sh", service.url)).rewards(samples))
    assert all(type(reward) is float for reward in got)
    assert got == [expected[templated(*sample)] for sample in samples]


def test_slime_through_a_burst_of_503(
    service: Service, samples: Samples, expected: dict[str, float]
) -> None:
    with flaky(service.url, 100) as proxy:
        got = asyncio.run(Slime(url_of("slime.sh", proxy.url)).rewards(samples))
        assert proxy.requests.count("503") == 100
    assert got == [expected[templated(*sample)] for sample in samples]


def test_llama_factory(service: Service, samples: Samples, expected: dict[str, float]) -> None:
    """One blocking POST per batch: no time-out, no second try, the status is not looked at."""
    messages = [templated(*sample) for sample in samples]
    answer = requests.post(
        url_of("llamafactory.yaml", service.url), json={"model": "model", "messages": messages}
    )
    scores = json.loads(answer.text)["scores"]
    assert scores == [expected[text] for text in messages]


def _align_anything(url: str, batch: Samples) -> list[float]:
    """Blocking, 100 s, 3 tries; the reply's `rewards` are taken as they are."""
    tries = 3
    body = {
        "prompts": [turns(prompt) for prompt, _ in batch],
        "responses": [f"{response}<|im_end|>" for _, response in batch],
    }
    for attempt in range(tries):
        try:
            answer = requests.post(url, json=body, timeout=100)
            answer.raise_for_status()
            return answer.json()["rewards"]
        except requests.RequestException:
            if attempt + 1 == tries:
                raise
            time.sleep(1)
    raise AssertionError("unreachable")


@pytest.mark.parametrize("failures", [0, 2])
def test_align_anything(
    service: Service, samples: Samples, expected: dict[str, float], failures: int
) -> None:
    with flaky(service.url, failures) as proxy:
        got = _align_anything(url_of("align_anything.sh", proxy.url), samples)
    assert got == [expected[templated(*sample)] for sample in samples]


@pytest.mark.parametrize(
    ("client", "name"),
    [
        (lambda url, batch: asyncio.run(Slime(url).rewards(batch)), "slime.sh"),
        (_align_anything, "align_anything.sh"),
    ],
    ids=["slime", "align-anything"],
)
def test_more_at_once_than_the_service_computes_is_waited_for(
    service: Service,
    samples: Samples,
    expected: dict[str, float],
    client: Callable[[str, Samples], list[float]],
    name: str,
) -> None:
    """Four clients at once, each with every sample four times: nobody is turned away."""
    batch = samples * 4
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda _: client(url_of(name, service.url), batch), range(4)))
    for got in answers:
        assert got == [expected[templated(*sample)] for sample in batch]
