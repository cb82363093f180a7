"""One environment per trainer, with reward-client and that trainer; the service has its own.

`make trainers` runs the files `prove_*.py`; `make test` does not, since they install packages.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from reward_client import Client
from training.demo.walk import Service, serving

ROOT = Path(__file__).parent.parent.parent
BUILD = ROOT / "build" / "trainers"
DEMO = ROOT / "runs" / "demo"
SCRIPTS = Path(__file__).parent / "scripts"
TORCH = "torch==2.13.0"
INSTALL_TIMEOUT_S = 900


@dataclass(frozen=True)
class Trainer:
    """An environment in which a trainer's own code runs."""

    python: Path

    def start(self, script: str, *arguments: object, **environment: str) -> subprocess.Popen[str]:
        command = [str(self.python), str(SCRIPTS / script), *map(str, arguments)]
        # One thread each: two trainings and the service share two cores.
        limits = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline"}
        return subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | limits | environment,
        )

    def run(self, script: str, *arguments: object, **environment: str) -> Any:
        """The script's last line, which is JSON."""
        return finish(self.start(script, *arguments, **environment))


def finish(process: subprocess.Popen[str], timeout_s: float = 300) -> Any:
    try:
        output, _ = process.communicate(timeout=timeout_s)
    finally:
        process.kill()
    assert process.returncode == 0, output[-6000:]
    return json.loads(output.strip().splitlines()[-1])


@pytest.fixture(scope="session")
def environment() -> Callable[..., Trainer]:
    """`environment(name, *requirements)`; made once, and again when the requirements change.

    uv takes pip's wheel directories; UV_TORCH_BACKEND=cpu chooses PyTorch's CPU index elsewhere.
    """

    def make(name: str, *requirements: str, without_dependencies: str | None = None) -> Trainer:
        path = BUILD / name
        python = path / "bin" / "python"
        stamp = path / "requirements.json"
        wanted = json.dumps([requirements, without_dependencies])
        if not stamp.exists() or stamp.read_text() != wanted:
            _uv("venv", "--quiet", "--clear", "--python", "3.11", str(path))
            if without_dependencies:
                _uv("pip", "install", "--python", str(python), "--no-deps", without_dependencies)
            _uv("pip", "install", "--python", str(python), *requirements)
            stamp.write_text(wanted)
        # setuptools leaves a copy beside the sources and would install from it what is gone since.
        shutil.rmtree(ROOT / "service" / "client" / "build", ignore_errors=True)
        client = ("--reinstall-package", "reward-client", str(ROOT / "service" / "client"))
        _uv("pip", "install", "--python", str(python), *client)
        return Trainer(python)

    return make


def _uv(*arguments: str) -> None:
    wheels = os.environ.get("PIP_FIND_LINKS")
    links = {"UV_FIND_LINKS": wheels} if wheels else {}
    done = subprocess.run(
        [str(ROOT / ".venv" / "bin" / "uv"), *arguments],
        capture_output=True,
        text=True,
        timeout=INSTALL_TIMEOUT_S,
        env=links | os.environ,
    )
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.fixture(scope="session")
def demo() -> Path:
    """The demo's run directory: bundle, base model, held-out prompts."""
    assert (DEMO / "bundle" / "manifest.json").exists(), "no demo bundle; run: make demo"
    return DEMO


@pytest.fixture(scope="session")
def service(demo: Path) -> Iterator[Service]:
    with serving(demo / "bundle") as service:
        yield service


@pytest.fixture
def client(service: Service) -> Iterator[Client]:
    with Client(service.url) as client:
        yield client
