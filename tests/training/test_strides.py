"""Graphs whose rows do not lie 4 KiB apart: the same rewards, to the bit."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import pytest

from service.manifest import Variant
from service.ragged_engine import RaggedEngine
from tests.training.families import MAX_TOKENS, tiny
from tests.training.paged import written
from training import int8, strides
from training.graph import export_graph
from training.run import Run
from training.variants import with_variant

WIDTH = 48
"of the tiny models' residual stream; their MLPs have a multiple of it"


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "modernbert"])
def test_no_product_is_left_over_such_a_width_and_no_bit_changes(
    family: str, family_bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, wide = family_bundle(family).file("model.onnx"), tmp_path / "wide.onnx"
    monkeypatch.setattr(strides, "COLUMNS", WIDTH)
    model = onnx_ir.load(plain)
    strides.widen(model)
    onnx_ir.save(model, wide, external_data="wide.onnx.data")
    before = _reduced(plain)
    assert sum(size % WIDTH == 0 for size in before) >= 6
    assert _reduced(wide) == [size + 16 * (size % WIDTH == 0) for size in before]
    assert _rewards(plain).std() > 0.01
    assert _rewards(wide).tolist() == _rewards(plain).tolist()


def test_what_cpus_run_has_the_same_bits_over_other_widths_and_int8_takes_them(
    family_bundle, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = family_bundle("llama")
    monkeypatch.setattr(strides, "COLUMNS", WIDTH)
    wide = written("llama", run, tmp_path / "wide")
    assert any(size % WIDTH == 16 for size in _reduced(wide.file("model.ragged.onnx")))
    rows = np.random.default_rng(0).integers(3, 800, (5, 40)).tolist()
    rewards = [RaggedEngine(bundle, "fp32", 2).run(rows) for bundle in (plain, wide)]
    assert rewards[0].std() > 0.01 and rewards[0].tolist() == rewards[1].tolist()
    int8._quantize(wide.file("model.ragged.onnx"), wide.path / int8.GRAPH)
    variant = Variant(tolerance=1.0, **int8._FIXED, ragged=int8.GRAPH)
    rounded = RaggedEngine(with_variant(wide, variant), int8.NAME, 2).run(rows)
    assert 0 < np.abs(rounded - rewards[0]).max() < rewards[0].std()
    nodes = onnx.load(wide.path / int8.GRAPH).graph.node
    blocked = [
        a.i for n in nodes if n.op_type == "MatMulNBits" for a in n.attribute if a.name == "K"
    ]
    assert blocked == [k for k in _reduced(plain.file("model.ragged.onnx")) if k]
    assert not any(node.op_type == "Pad" for node in nodes)


def test_weights_that_make_the_left_side_are_widened_and_all_else_is_padded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of Llama: what its norms give is padded, for all products at once; its MLPs need nothing."""
    monkeypatch.setattr(strides, "COLUMNS", WIDTH)
    export_graph(tiny("llama"), 0.0, tmp_path / "wide.onnx")
    nodes = onnx.load(tmp_path / "wide.onnx").graph.node
    padded = [node.input[0] for node in nodes if node.op_type == "Pad"]
    norms = [node.output[0] for node in nodes if node.op_type == "RMSNormalization"]
    # the last norm, of a token that it takes from all of them, is sliced before the head
    assert set(norms[:-1]) <= set(padded) and len(padded) == len(norms)


def _reduced(file: Path) -> list[int]:
    """Of every product with weights, how many columns it reduces. Heads of encoders, one row for
    each text, are left out."""
    graph = onnx.load(file).graph
    weights = {each.name: each.dims for each in graph.initializer}
    products = (node for node in graph.node if node.op_type in strides.PRODUCTS)
    turned = {n.name for n in graph.node for a in n.attribute if a.name == "transB" and a.i}
    return [
        weights[node.input[1]][0]
        for node in products
        if node.input[1] in weights and node.name not in turned
    ]


def _rewards(file: Path) -> np.ndarray:
    """Of rows of all lengths, each alone."""
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    random, rewards = np.random.default_rng(0), []
    for length in (2, 3, 16, 17, 48, MAX_TOKENS):
        ids = random.integers(3, 800, (1, length))
        feeds = {
            "input_ids": ids,
            "position_ids": np.arange(length)[None],
            "attention_mask": np.ones_like(ids),
            "last_index": np.array([length - 1]),
        }
        names = {entry.name: entry.shape for entry in session.get_inputs()}
        past = {
            name: np.zeros((1, shape[1], 0, shape[3]), np.float32)
            for name, shape in names.items()
            if name.startswith("past_")
        }
        known = {name: feeds[name] for name in names if name in feeds}
        rewards.append(session.run(["reward"], known | past)[0][0])
    return np.array(rewards)
