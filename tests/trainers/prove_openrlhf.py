"""OpenRLHF 0.11.2's own agent against `/get_reward`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from reward_client import Client
from tests.trainers.conftest import TORCH, Trainer
from tests.trainers.flags import url_of
from tests.trainers.flaky import flaky
from training.demo.walk import Service

SAMPLES = 64


@pytest.fixture(scope="module")
def openrlhf(environment: Callable[..., Trainer]) -> Trainer:
    """Without flash-attn, deepspeed and vLLM, which need a GPU and its agent does not."""
    needed = (TORCH, "aiohttp", "transformers==5.15.0", "sympy", "pylatexenc")
    return environment("openrlhf", *needed, without_dependencies="openrlhf==0.11.2")


@pytest.fixture(scope="module")
def samples(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 different (prompt, response) pairs of the demo's held-out records."""
    path = tmp_path_factory.mktemp("samples") / "samples.jsonl"
    with (demo / "held_out.jsonl").open() as records, path.open("w") as file:
        for record in map(json.loads, (next(records) for _ in range(SAMPLES // 4))):
            for response in record["responses"][:4]:
                file.write(json.dumps({"prompt": record["prompt"], "response": response}) + "\n")
    return path


def _check(results: list[dict[str, Any]], samples: Path, client: Client) -> None:
    """Every text has the reward that `/score` gives its conversation, and the same extra logs."""
    assert len(results) == SAMPLES
    rows = [json.loads(line) for line in samples.read_text().splitlines()]
    rewards = client.score([(row["prompt"], row["response"]) for row in rows]).rewards
    by_text = {
        f"<|im_start|>user\n{row['prompt']}<|im_end|>\n<|im_start|>assistant\n"
        f"{row['response']}<|im_end|>": reward
        for row, reward in zip(rows, rewards, strict=True)
    }
    expected = [by_text[result["text"]] for result in results]
    # float32 written in JSON and read into a float32 tensor is the same float32.
    assert [result["reward"] for result in results] == [[reward] for reward in expected]
    assert len({tuple(sorted(result["logs"])) for result in results}) == 1
    assert len(set(expected)) > SAMPLES // 2


def test_sixty_four_samples_at_once(
    openrlhf: Trainer, service: Service, client: Client, demo: Path, samples: Path
) -> None:
    url = url_of("openrlhf.sh", service.url)
    _check(openrlhf.run("openrlhf_agent.py", url, demo / "base", samples), samples, client)


def test_two_urls(
    openrlhf: Trainer, service: Service, client: Client, demo: Path, samples: Path
) -> None:
    with flaky(service.url, 0) as other:
        urls = ",".join(url_of("openrlhf.sh", url) for url in (service.url, other.url))
        _check(openrlhf.run("openrlhf_agent.py", urls, demo / "base", samples), samples, client)
        assert len(other.requests) == SAMPLES // 2


def test_a_503_first(
    openrlhf: Trainer, service: Service, client: Client, demo: Path, samples: Path
) -> None:
    with flaky(service.url, 20) as proxy:
        url = url_of("openrlhf.sh", proxy.url)
        _check(openrlhf.run("openrlhf_agent.py", url, demo / "base", samples), samples, client)
        assert proxy.requests.count("503") == 20
        assert len(proxy.requests) == SAMPLES + 20


def test_empty_lists_are_answered_with_empty_lists(service: Service) -> None:
    """What its 0.9.1 to 0.11.1 send to the second of two URLs."""
    answer = httpx.post(
        f"{service.url}/get_reward", json={"query": [], "prompts": [], "labels": []}
    )
    assert answer.status_code == 200
    assert (answer.json()["rewards"], answer.json()["scores"]) == ([], [])
