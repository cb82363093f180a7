"""The packed variants: how they come into a bundle, what it says of them, who may serve them."""

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from service import bundle as bundles
from service.blocks import Pool
from service.config import ServiceConfig
from service.errors import BundleError, DeviceUnavailable, TrainingError
from service.paged_engine import PagedEngine
from service.scorer import Scorer
from tests.service.paged_reference import ReferenceRunner
from tests.training.families import tiny
from training import paged
from training.__main__ import app
from training.export import export
from training.foreign import export_foreign
from training.run import Run

POOL = Pool(blocks=200, block_tokens=16)


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
    assert [each.name for each in made.manifest.variants] == ["fp32", "bf16-paged"]


def test_an_encoder_is_refused_with_the_reason(run: Run, tmp_path) -> None:
    from transformers import AutoTokenizer

    tiny("bert").save(tmp_path / "model", mean=0.25)
    AutoTokenizer.from_pretrained(run.model).save_pretrained(tmp_path / "model")
    arguments = ["export", str(tmp_path / "model"), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, [*arguments, "--variant", "bf16-paged"])
    assert result.exit_code != 0
    assert "every token sees every other" in str(result.exception)
    assert not (tmp_path / "out").exists()
