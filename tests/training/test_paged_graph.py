"""The packed graph: what ONNX Runtime says of it, and what 16 bits do."""

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidGraph
from onnxruntime.capi.onnxruntime_pybind11_state import NotImplemented as NoKernel
from scipy.stats import spearmanr

from service.blocks import Pool
from service.errors import TrainingError
from service.paged_engine import PagedEngine
from tests.service.paged_reference import ReferenceRunner
from tests.training.families import DECODERS, MAX_TOKENS, PACKED, tiny
from tests.training.paged import MEAN, packed
from training.paged_decoder import is_fusible
from training.paged_graph import export_paged_graph
from training.predict import predict
from training.rounding import rounded

FAMILIES = ("qwen3", "llama", "gemma", "gpt_neox")
FUSED = ("qwen3", "qwen2", "llama", "mistral")
PRECISIONS = {torch.bfloat16: "BFLOAT16", torch.float16: "FLOAT16"}
RMS = {torch.bfloat16: 0.01, torch.float16: 0.00125}
"""of the rewards' standard deviation: bf16 rounds by 2**-9 of a number at most, 0.0011 on average,
and a few dozen roundings follow each other in three layers; 0.004 to 0.008 seen. fp16 keeps three
bits more, so an eighth"""
POOL = Pool(blocks=200, block_tokens=16)


@pytest.fixture(scope="module", params=PRECISIONS, ids=PRECISIONS.get)
def precision(request):
    return request.param


@pytest.fixture(scope="module", params=FAMILIES)
def graph(request, precision, packed_graph):
    return request.param, packed_graph(request.param, precision)


def _open(model: onnx.ModelProto | str) -> onnxruntime.InferenceSession:
    source = model if isinstance(model, str) else model.SerializeToString()
    return onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])


LACKING = {
    torch.bfloat16: (NoKernel, "NOT_IMPLEMENTED : Could not find an implementation"),
    torch.float16: (
        InvalidGraph,
        r"InsertedPrecisionFreeCast_\w+\) of operator \(PagedAttention\)",
    ),
}
"""what ONNX Runtime says without CUDA. What it has in fp32 alone it feeds by casts from fp16, and
then finds what those do to an operator that takes no fp32"""


def test_onnx_runtime_takes_the_graph_and_lacks_kernels_alone(graph, precision) -> None:
    """Types, shapes and the operator's schema are checked before kernels are looked for."""
    _, file = graph
    kind, message = LACKING[precision]
    with pytest.raises(kind, match=message):
        _open(str(file))


@pytest.mark.parametrize("family", ["qwen3", "llama"])
def test_fused_layers_copy_no_states(family: str, packed_graph) -> None:
    """Once a Gather between rotation and attention took a tenth of the time on an H100. Three are
    left, of embeddings, cosines and sines; two GatherND take the rows' last tokens."""
    model = onnx.load(packed_graph(family, torch.float16))
    counts = Counter(node.op_type for node in model.graph.node)
    copying = ("Gather", "GatherND", "Concat", "Slice", "Split", "Transpose", "Expand", "Cast")
    assert {name: counts[name] for name in copying if counts[name]} == {
        "Gather": 3,
        "GatherND": 2,
        "Cast": 1,  # the rows' last tokens into fp32
    }


def test_a_wrong_type_would_have_been_seen(graph) -> None:
    model = onnx.load(graph[1])
    (slots,) = (entry for entry in model.graph.input if entry.name == "slot_mapping")
    slots.type.tensor_type.elem_type = TensorProto.INT64
    with pytest.raises(Exception, match=r"slot_mapping.* of operator \(PagedAttention\)") as raised:
        _open(model)
    assert not isinstance(raised.value, NoKernel)


@pytest.mark.parametrize("family", FAMILIES)
def test_where_all_else_has_kernels_paged_attention_is_missing(family, packed_graph) -> None:
    """In fp32 but for the operator, whose inputs are cast: the CPU has kernels for the rest."""
    model = onnx.load(packed_graph(family, torch.float32))
    nodes = []
    for node in model.graph.node:
        before, after = [], []
        if node.op_type == "PagedAttention":
            for i in range(3):
                name = f"{node.name}_cast_{i}"
                before.append(_cast(node.input[i], name, TensorProto.BFLOAT16))
                node.input[i] = name
            after = [_cast(f"{node.output[0]}_16", node.output[0], TensorProto.FLOAT)]
            node.output[0] = f"{node.output[0]}_16"
        nodes += [*before, node, *after]
    del model.graph.node[:], model.graph.value_info[:]
    model.graph.node.extend(nodes)
    for entry in (*model.graph.input, *model.graph.output):
        if "_cache_" in entry.name:
            entry.type.tensor_type.elem_type = TensorProto.BFLOAT16
    with pytest.raises(NoKernel, match=r"implementation for PagedAttention\(1\) node"):
        _open(model)


def _cast(source: str, target: str, kind: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [target], to=kind)


def test_layers_are_in_16_bits_and_what_follows_them_in_fp32(graph, precision) -> None:
    family, file = graph
    model = onnx.load(file)
    types = {each.name: each.data_type for each in model.graph.initializer}
    weights = {
        name: kind for name, kind in types.items() if name.startswith(("backbone.", "fused."))
    }
    frequencies = [name for name in weights if name.endswith("inv_freq")]
    assert all(weights.pop(name) == TensorProto.FLOAT for name in frequencies)
    assert weights and set(weights.values()) == {TensorProto.DataType.Value(PRECISIONS[precision])}
    assert {kind for name, kind in types.items() if name.startswith(("norm", "head"))} == {
        TensorProto.FLOAT
    }
    bias = next(each for each in model.graph.initializer if each.name == "head.bias")
    expected = tiny(family).score.bias.item() - MEAN
    assert onnx.numpy_helper.to_array(bias).item() == pytest.approx(expected, abs=1e-7)


def test_rewards_in_16_bits_are_torchs_and_near_those_in_fp32(graph, precision) -> None:
    family, file = graph
    rng = np.random.default_rng(0)
    prompts = [rng.integers(3, 800, n).tolist() for n in (20, 32, 50)]
    rows = [
        [*prompt, *rng.integers(3, 800, n).tolist()] for prompt in prompts for n in range(1, 21)
    ]
    got = PagedEngine(ReferenceRunner(file, POOL), POOL, MAX_TOKENS, "cpu", "numpy").run(rows)
    models = tiny(family), rounded(tiny(family), precision)
    exact, coarse = (predict(each, rows) - MEAN for each in models)
    most = RMS[precision]
    for other in (exact, coarse):
        off = np.abs(got - other) / exact.std()
        assert np.sqrt((off**2).mean()) <= most and off.max() <= 4 * most
    assert spearmanr(got, exact).statistic >= 0.999


@pytest.mark.parametrize("family", PACKED)
def test_biases_norms_and_rotations_are_those_of_torch(family: str, packed_graph) -> None:
    """In fp32, over rows up to the last position, alone and behind a shared prompt."""
    rng = np.random.default_rng(0)
    prompt = rng.integers(3, 800, 40).tolist()
    rows = [[*prompt, *rng.integers(3, 800, n).tolist()] for n in (1, 17, MAX_TOKENS - 40)]
    rows += [rng.integers(3, 800, n).tolist() for n in (2, 50, MAX_TOKENS)]
    file = packed_graph(family, torch.float32)
    got = PagedEngine(ReferenceRunner(file, POOL), POOL, MAX_TOKENS, "cpu", "numpy").run(rows)
    assert np.abs(got - (predict(tiny(family), rows) - MEAN)).max() <= 1e-4


def test_what_the_fused_operators_cannot_rotate_is_left_to_transformers() -> None:
    assert [family for family in PACKED if not is_fusible(tiny(family))] == ["llama-yarn"]
    assert [each for each in DECODERS if is_fusible(tiny(each))] == list(FUSED)
    partly = tiny("llama")
    partly.backbone.rotary_emb.inv_freq = partly.backbone.rotary_emb.inv_freq[:4]
    assert not is_fusible(partly)


@pytest.mark.parametrize("family", ["mistral-0.3", "qwen2-biased"])
def test_a_sliding_window_is_refused_by_fused_layers_too(family: str, tmp_path) -> None:
    model = tiny(family)
    owner = model.config if family.startswith("mistral") else model.backbone.layers[1].self_attn
    owner.sliding_window = 8
    with pytest.raises(TrainingError, match="sliding_window=8, which is not exported"):
        export_paged_graph(rounded(model, torch.bfloat16), 0.0, tmp_path / "paged.onnx")


def test_the_same_weights_give_the_same_file(graph, precision, tmp_path) -> None:
    family, file = graph
    again = packed(family, tmp_path / "again", precision)
    for name in ("paged.onnx", "paged.onnx.data"):
        assert (again.parent / name).read_bytes() == (file.parent / name).read_bytes()


@pytest.mark.parametrize("family", ["qwen2", "gpt2"])
def test_heads_without_a_kernel_are_refused(family: str, tmp_path) -> None:
    with pytest.raises(
        TrainingError, match="head_dim: 12, but PagedAttention takes multiples of 8"
    ):
        export_paged_graph(rounded(tiny(family), torch.bfloat16), 0.0, tmp_path / "paged.onnx")


def test_every_decoder_has_one_final_norm_that_stays_in_fp32() -> None:
    for family in DECODERS:
        copied = rounded(tiny(family), torch.bfloat16)
        types = [parameter.dtype for parameter in copied.backbone.parameters()]
        assert set(types) == {torch.bfloat16, torch.float32}
        assert types.count(torch.float32) <= 2, family  # its weight, and a bias
        assert torch.equal(copied.score.weight, tiny(family).score.weight)
