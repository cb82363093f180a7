"""verl 0.9.1's own reward loop: our manager by its plugin name, and its client of reward models."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reward_client import Client
from tests.trainers.conftest import TORCH, Trainer
from tests.trainers.flags import flags
from training.demo.walk import Service

Samples = list[dict[str, str]]


@pytest.fixture(scope="module")
def verl(environment: Callable[..., Trainer]) -> Trainer:
    return environment("verl", TORCH, "verl==0.9.1")


@pytest.fixture(scope="module")
def samples(demo: Path) -> Samples:
    with (demo / "held_out.jsonl").open() as records:
        return [
            {"prompt": record["prompt"], "response": response}
            for record in map(json.loads, (next(records) for _ in range(4)))
            for response in record["responses"][:4]
        ]


@pytest.fixture
def run(verl: Trainer, service: Service, demo: Path, samples: Samples, tmp_path: Path) -> Any:
    path = tmp_path / "samples.jsonl"
    path.write_text("".join(json.dumps(sample) + "\n" for sample in samples))

    def go(engine: str, *overrides: str) -> Any:
        return verl.run("verl_rewards.py", engine, service.url, demo / "base", path, *overrides)

    return go


def _rewards(samples: Samples, client: Client) -> list[float]:
    pairs = [([{"role": "user", "content": s["prompt"]}], s["response"]) for s in samples]
    return client.score(pairs).rewards


def test_our_manager_by_its_plugin_name_alone(
    run, samples: Samples, client: Client, service: Service
) -> None:
    """Nothing but the installed entry point tells verl what `remote_reward` is."""
    done = run("naive", *flags("verl.sh", service.url).split())
    assert done["manager"] == "RemoteRewardManager"
    assert [output["reward_score"] for output in done["outputs"]] == _rewards(samples, client)
    assert len({tuple(output["reward_extra_info"]) for output in done["outputs"]}) == 1


def test_our_reward_function(run, samples: Samples, client: Client, service: Service) -> None:
    function = "reward.custom_reward_function"
    done = run(
        "naive",
        f"{function}.path=pkg://reward_client.verl",
        f"{function}.reward_kwargs.url={service.url}",
    )
    assert done["manager"] == "NaiveRewardManager"
    assert [output["reward_score"] for output in done["outputs"]] == _rewards(samples, client)


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_its_own_client_against_classify_and_embeddings(
    run, samples: Samples, client: Client, engine: str
) -> None:
    """`compute_score_disrm`: the templated text in, the reward out."""
    texts = [
        f"<|im_start|>user\n{s['prompt']}<|im_end|>\n<|im_start|>assistant\n{s['response']}<|im_end|>\n"
        for s in samples
    ]
    outputs = run(engine)["outputs"]
    assert [output["reward_score"] for output in outputs] == client.score_texts(texts).rewards
