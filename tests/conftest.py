"""A real tiny bundle, trained, exported and proved in seconds, once per session."""

import json
import os
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")

from service import bundle as bundles
from service.bundle import Bundle
from service.config import ServiceConfig
from service.scorer import Scorer
from tests.training.paged import packed, written
from training.config import read_config
from training.demo.data import write
from training.export import export
from training.pipeline import train
from training.run import Run

CONFIGS = Path(__file__).parent.parent / "training" / "configs"
SHARED = Path(__file__).parent.parent.parent / "shared"


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run on 150 prompts of the demo's data: its rewards vary, and mean little."""
    path = tmp_path_factory.mktemp("run")
    write(path / "data.jsonl", prompts=150, seed=1)
    settings = [f"out={path / 'run'}", f"data.train={path / 'data.jsonl'}", "name=tiny"]
    return train(read_config(CONFIGS / "tiny.toml", settings))


@pytest.fixture(scope="session")
def bundle(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return export(run, tmp_path_factory.mktemp("bundle") / "tiny")


@pytest.fixture(scope="session")
def family_bundle(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Bundle]:
    """A family's fp32 bundle; an export takes seconds, so each is made once."""
    return cache(lambda family: written(family, run, tmp_path_factory.mktemp(family) / "bundle"))


@pytest.fixture(scope="session")
def packed_graph(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str, torch.dtype], Path]:
    """The packed graph of a family's model in a precision, made once."""
    return cache(
        lambda family, precision: packed(
            family, tmp_path_factory.mktemp(family) / "graph", precision
        )
    )


@pytest.fixture
def copy(bundle: Bundle, tmp_path: Path) -> Path:
    """A copy of the bundle's files, to be damaged."""
    target = tmp_path / "copy"
    for name in (*bundle.manifest.files, bundles.MANIFEST):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_bytes(bundle.file(name).read_bytes())
    return target


@pytest.fixture(scope="session")
def config(bundle: Bundle) -> ServiceConfig:
    return ServiceConfig(bundle=bundle.path, device="cpu", threads=2, max_body_bytes=200_000)


@pytest.fixture(scope="session")
def scorer(config: ServiceConfig) -> Iterator[Scorer]:
    scorer = Scorer.open(config)
    yield scorer
    scorer.close()


def rewrite_manifest(path: Path, **changes: object) -> None:
    """Change top-level fields of manifest.json, as somebody with an editor would."""
    manifest = json.loads((path / bundles.MANIFEST).read_bytes())
    (path / bundles.MANIFEST).write_text(json.dumps(manifest | changes))
