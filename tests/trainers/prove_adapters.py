"""Adapters that their trainer's own code calls here without a whole training."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from reward_client import Client
from tests.trainers.conftest import TORCH, Trainer
from training.demo.walk import Service

AREAL_NEEDS = """torch==2.13.0 transformers==5.8.0 aiohttp omegaconf ray datasets colorlog tenacity
    flask torchdata lark uvloop hydra-core pillow numba orjson einops aiofiles openai""".split()
"what its import needs; all of its dependencies would be gigabytes of CUDA"

Samples = list[dict[str, str]]


@pytest.fixture(scope="module")
def samples(demo: Path) -> Samples:
    with (demo / "held_out.jsonl").open() as records:
        return [
            {"prompt": record["prompt"], "response": response}
            for record in map(json.loads, (next(records) for _ in range(8)))
            for response in record["responses"][:4]
        ]


def _run(trainer: Trainer, script: str, samples: Samples, path: Path, url: str) -> list[float]:
    path.write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    return trainer.run(script, path, REWARD_SERVICE_URL=url)


@pytest.mark.parametrize(
    ("name", "requirements"),
    [
        ("swift", (TORCH, "ms-swift==4.6.0")),
        ("skyrl", ("skyrl-gym==0.4.0",)),
        ("verifiers", ("verifiers==0.4.0",)),
    ],
)
def test_the_trainers_own_scoring_gets_the_services_rewards(
    environment: Callable[..., Trainer],
    service: Service,
    client: Client,
    samples: Samples,
    tmp_path: Path,
    name: str,
    requirements: tuple[str, ...],
) -> None:
    trainer = environment(name, *requirements)
    got = _run(trainer, f"{name}_rewards.py", samples, tmp_path / "samples.jsonl", service.url)
    pairs = [([{"role": "user", "content": s["prompt"]}], s["response"]) for s in samples]
    assert got == client.score(pairs).rewards


def test_areals_reward_wrapper_in_its_process_pool(
    environment: Callable[..., Trainer],
    service: Service,
    client: Client,
    samples: Samples,
    tmp_path: Path,
) -> None:
    trainer = environment("areal", *AREAL_NEEDS, without_dependencies="areal==1.0.4")
    texts = [
        {
            "prompt": f"<|im_start|>user\n{s['prompt']}<|im_end|>\n<|im_start|>assistant\n",
            "response": f"{s['response']}<|im_end|>",
        }
        for s in samples
    ]
    got = _run(trainer, "areal_rewards.py", texts, tmp_path / "samples.jsonl", service.url)
    assert got == client.score_texts([s["prompt"] + s["response"] for s in texts]).rewards
