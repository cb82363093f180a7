"""A real tiny bundle, trained, exported and proved in seconds, once per session."""

import gc
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from filelock import FileLock

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


# An export makes hundreds of thousands of objects and no garbage to speak of. Looking for it as
# often as Python does by default took 0.1 to 0.2 of the time of Llama's two graphs (29 Nov 2026).
gc.set_threshold(100_000, 20, 100)

Once = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Once:
    """What takes long to make: its path, made by the first process of pytest-xdist that asks."""
    root = tmp_path_factory.getbasetemp()
    shared = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root

    def made(name: str, make: Callable[[Path], object]) -> Path:
        path, finished = shared / "once" / name, shared / "once" / f"{name}.finished"
        path.parent.mkdir(exist_ok=True)
        with FileLock(path.with_name(f"{name}.lock")):
            if not finished.exists():
                shutil.rmtree(path, ignore_errors=True)  # of one that failed
                make(path)
                finished.touch()
        return path

    return made


@pytest.fixture(scope="session")
def run(once: Once) -> Run:
    """A finished run on 150 prompts of the demo's data: its rewards vary, and mean little."""

    def make(path: Path) -> None:
        path.mkdir()
        write(path / "data.jsonl", prompts=150, seed=1)
        settings = [f"out={path / 'run'}", f"data.train={path / 'data.jsonl'}", "name=tiny"]
        train(read_config(CONFIGS / "tiny.toml", settings))

    return Run.open(once("tiny-run", make) / "run")


@pytest.fixture(scope="session")
def bundle(run: Run, once: Once) -> Bundle:
    return bundles.load(once("tiny", lambda path: export(run, path)))


@pytest.fixture(scope="session")
def family_bundle(run: Run, once: Once) -> Callable[[str], Bundle]:
    """A family's fp32 bundle."""
    return lambda family: bundles.load(once(family, lambda path: written(family, run, path)))


@pytest.fixture(scope="session")
def packed_graph(once: Once) -> Callable[[str, torch.dtype], Path]:
    """The packed graph of a family's model in a precision."""

    def graph(family: str, precision: torch.dtype) -> Path:
        name = f"{family}-{precision}".replace("torch.", "packed-")
        return once(name, lambda path: packed(family, path, precision)) / "paged.onnx"

    return graph


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
