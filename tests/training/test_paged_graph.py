"""The packed graph: what ONNX Runtime says of it, what 16 bits do, how it comes into a bundle."""

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from onnxruntime.capi.onnxruntime_pybind11_state import NotImplemented as NoKernel
from scipy.stats import spearmanr
from typer.testing import CliRunner

from service import bundle as bundles
from service.blocks import Pool
from service.config import ServiceConfig
from service.errors import BundleError, DeviceUnavailable, TrainingError
from service.paged_engine import PagedEngine
from service.scorer import Scorer
from tests.service.paged_reference import ReferenceRunner
from tests.training.families import DECODERS, MAX_TOKENS, PACKED, tiny
from tests.training.paged import MEAN, packed
from training import paged
from training.__main__ import app
from training.export import export
from training.foreign import export_foreign
from training.paged_decoder import is_fusible
from training.paged_graph import export_paged_graph
from training.predict import predict
from training.rounding import rounded
from training.run import Run

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
def graph(request, precision, tmp_path_factory):
    path = tmp_path_factory.mktemp(request.param) / "graph"
    return request.param, packed(request.param, path, precision)


def _open(model: onnx.ModelProto | str) -> onnxruntime.InferenceSession:
    source = model if isinstance(model, str) else model.SerializeToString()
    return onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])


LACKING = {
    torch.bfloat16: "NOT_IMPLEMENTED : Could not find an implementation",
    torch.float16: r"InsertedPrecisionFreeCast_\w+\) of operator \(PagedAttention\)",
}
"""what ONNX Runtime says without CUDA. What it has in fp32 alone it feeds by casts from fp16, and
then finds what those do to an operator that takes no fp32"""


def test_onnx_runtime_takes_the_graph_and_lacks_kernels_alone(graph, precision) -> None:
    """Types, shapes and the operator's schema are checked before kernels are looked for."""
    _, file = graph
    with pytest.raises(Exception, match=LACKING[precision]):
        _open(str(file))


@pytest.mark.parametrize("family", ["qwen3", "llama"])
def test_fused_layers_copy_no_states(family: str, tmp_path) -> None:
    """Once a Gather between rotation and attention took a tenth of the time on an H100. Three are
    left, of embeddings, cosines and sines; two GatherND take the rows' last tokens."""
    model = onnx.load(packed(family, tmp_path / "graph", torch.float16))
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
def test_where_all_else_has_kernels_paged_attention_is_what_is_missing(family, tmp_path) -> None:
    """In fp32 but for the operator, whose inputs are cast: the CPU has kernels for the rest."""
    model = onnx.load(packed(family, tmp_path / "fp32", torch.float32))
    nodes = []
    for node in model.graph.node:
        before, after = [], []
        if node.op_type == "PagedAttention":
            for i in range(3):
                name = f"{node.name}_{i}"
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
def test_biases_norms_and_rotations_are_those_of_torch(family: str, tmp_path) -> None:
    """In fp32, over rows up to the last position, alone and behind a shared prompt."""
    rng = np.random.default_rng(0)
    prompt = rng.integers(3, 800, 40).tolist()
    rows = [[*prompt, *rng.integers(3, 800, n).tolist()] for n in (1, 17, MAX_TOKENS - 40)]
    rows += [rng.integers(3, 800, n).tolist() for n in (2, 50, MAX_TOKENS)]
    file = packed(family, tmp_path / "fp32", torch.float32)
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
        export_paged_graph(rounded(model), 0.0, tmp_path / "paged.onnx")


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
        export_paged_graph(rounded(tiny(family)), 0.0, tmp_path / "paged.onnx")


def test_every_decoder_has_one_final_norm_that_stays_in_fp32() -> None:
    for family in DECODERS:
        copied = rounded(tiny(family))
        types = [parameter.dtype for parameter in copied.backbone.parameters()]
        assert set(types) == {torch.bfloat16, torch.float32}
        assert types.count(torch.float32) <= 2, family  # its weight, and a bias
        assert torch.equal(copied.score.weight, tiny(family).score.weight)


@pytest.fixture(scope="module")
def exported(run: Run, tmp_path_factory) -> bundles.Bundle:
    return export(run, tmp_path_factory.mktemp("paged") / "tiny", list(paged.KINDS))


def test_a_bundle_holds_both_beside_fp32(exported) -> None:
    assert [(each.name, each.precision) for each in exported.manifest.variants] == [
        ("fp32", "fp32"),
        ("bf16-paged", "bf16"),
        ("fp16-paged", "fp16"),
    ]


@pytest.mark.parametrize("name", paged.KINDS)
def test_the_manifest_says_what_was_measured_and_with_what(exported, name: str) -> None:
    variant = exported.manifest.variant(name)
    assert variant.devices == ("cuda",) and not variant.bit_invariant
    measured = exported.manifest.evaluation[name]
    precision = variant.precision
    assert measured["measured_with"] == (
        f"torch in {precision} on the CPU; the graph itself was not run"
    )
    least, most = paged.KINDS[name].tolerance * measured["std"], paged.ROOM * paged.MAX_DISTANCE
    assert least <= variant.tolerance <= most * measured["std"]
    assert 0 < measured["golden_distance"] <= variant.tolerance
    assert paged.MIN_SPEARMAN <= variant.spearman <= 1


@pytest.mark.parametrize("name", paged.KINDS)
def test_the_exported_variant_scores_its_golden_rows(exported, name: str) -> None:
    """The bundle's own file, with the operator in numpy, within the tolerance it states."""
    rows = exported.golden()
    longest = exported.manifest.text.max_tokens
    runner = ReferenceRunner(exported.file(f"model.{name}.onnx"), POOL)
    rewards = PagedEngine(runner, POOL, longest, "cpu", "numpy").run([row.ids for row in rows])
    expected = np.array([row.reward for row in rows])
    assert np.abs(rewards - expected).max() <= exported.manifest.variant(name).tolerance


def test_fp16_is_nearer_than_bf16(exported) -> None:
    """By three bits, so by four times at least."""
    off = {name: exported.manifest.evaluation[name]["rms_distance"] for name in paged.KINDS}
    assert 4 * off["fp16-paged"] < off["bf16-paged"]


def test_fp32_of_the_same_bundle_is_served_as_before(exported) -> None:
    scorer = Scorer.open(ServiceConfig(bundle=exported.path, device="cpu"))
    assert scorer.verify() <= exported.manifest.variant("fp32").tolerance
    scorer.close()


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("cpu", "device cpu: this variant supports cuda"),
        ("auto", "device cpu: this variant supports cuda"),
        ("cuda", 'onnxruntime has no CUDA provider; install the "gpu" extra'),
    ],
)
def test_without_a_gpu_serving_it_is_a_clear_error(exported, device: str, message: str) -> None:
    config = ServiceConfig(bundle=exported.path, variant="bf16-paged", device=device)
    with pytest.raises(DeviceUnavailable, match=message):
        Scorer.open(config)


@pytest.mark.parametrize("name", paged.KINDS)
def test_it_refuses_to_keep_bits_whatever_shares_a_run(exported, name: str) -> None:
    config = ServiceConfig(bundle=exported.path, variant=name, invariant=True)
    with pytest.raises(BundleError, match=f"invariant was asked for, but variant {name} "):
        Scorer.open(config)


def test_a_bundle_without_it_says_what_it_has(bundle: bundles.Bundle) -> None:
    config = ServiceConfig(bundle=bundle.path, variant="bf16-paged", device="cpu")
    with pytest.raises(
        BundleError, match=r"variant 'bf16-paged' is not in bundle 'tiny'; .*: fp32"
    ):
        Scorer.open(config)


def test_it_is_refused_where_bf16_changes_the_rewards_too_much(run, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(paged, "MIN_SPEARMAN", 1.1)
    with pytest.raises(TrainingError, match=r"bf16 changes .* without --variant bf16-paged"):
        export(run, tmp_path / "out", ["bf16-paged"])
    assert not (tmp_path / "out").exists()


def test_fp16_is_refused_where_it_does_not_hold_the_models_numbers(run: Run, tmp_path) -> None:
    """Its last weights are beyond fp16, not beyond bf16; the norm behind them takes that back."""
    from transformers import AutoTokenizer

    model = tiny("qwen3")
    with torch.no_grad():
        model.backbone.layers[-1].mlp.down_proj.weight.mul_(1e8)
    model.save(tmp_path / "model", mean=0.0)
    AutoTokenizer.from_pretrained(run.model).save_pretrained(tmp_path / "model")
    text = {"max_prompt_tokens": 48, "max_response_tokens": 48}
    with pytest.raises(TrainingError, match=r"fp16 does not hold .* without --variant fp16-paged"):
        export_foreign(tmp_path / "model", tmp_path / "fp16", text, variants=["fp16-paged"])
    made = export_foreign(tmp_path / "model", tmp_path / "bf16", text, variants=["bf16-paged"])
    assert made.manifest.variant("bf16-paged").precision == "bf16"


def _checkpoint(family: str, run: Run, path) -> None:
    from transformers import AutoTokenizer

    tiny(family).save(path, mean=0.25)
    AutoTokenizer.from_pretrained(run.model).save_pretrained(path)


def test_somebody_elses_decoder_may_have_it(run: Run, tmp_path) -> None:
    _checkpoint("qwen3", run, tmp_path / "model")
    text = {"max_prompt_tokens": 48, "max_response_tokens": 48}
    made = export_foreign(tmp_path / "model", tmp_path / "out", text, variants=["bf16-paged"])
    assert [each.name for each in made.manifest.variants] == ["fp32", "bf16-paged"]


def test_an_encoder_is_refused_with_the_reason(run: Run, tmp_path) -> None:
    _checkpoint("bert", run, tmp_path / "model")
    arguments = ["export", str(tmp_path / "model"), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, [*arguments, "--variant", "bf16-paged"])
    assert result.exit_code != 0
    assert "every token sees every other" in str(result.exception)
    assert not (tmp_path / "out").exists()
