"""The exporter's program: its names hang on nothing but the model."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

EXPORT = """
import sys
from pathlib import Path

from tests.training.families import tiny
from training.graph import export_graph

out = Path(sys.argv[1])
out.mkdir()
export_graph(tiny("qwen3"), 0.5, out / "model.onnx")
"""
ROOT = Path(__file__).parents[2]


def test_the_same_weights_give_the_same_graph_whatever_the_hash_seed(tmp_path: Path) -> None:
    """torch 2.13 numbers what it traces in the order of a set: with these two seeds differently."""
    exports = [
        subprocess.Popen(
            [sys.executable, "-c", EXPORT, str(tmp_path / seed)],
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
        )
        for seed in ("0", "1")
    ]
    assert [process.wait() for process in exports] == [0, 0]
    one, other = ({f.name: _digest(f) for f in (tmp_path / seed).iterdir()} for seed in ("0", "1"))
    assert one.keys() == {"model.onnx", "model.onnx.data"}
    assert one == other


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
