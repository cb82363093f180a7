"""The int8 variant: measured, gated, served beside fp32."""

import asyncio

import numpy as np
import pytest
from typer.testing import CliRunner

from service import bundle as bundles
from service.config import ServiceConfig
from service.errors import TrainingError
from service.pairs import Pair
from service.scorer import Scorer
from training import int8
from training.__main__ import app
from training.data import read_groups
from training.export import export
from training.run import Run

MIN_RANK = 0.95
"as in the manifest of a model whose rewards mean little; the gate itself is tested below"


@pytest.fixture(scope="module")
def quantized(run: Run, tmp_path_factory: pytest.TempPathFactory) -> bundles.Bundle:
    return export(run, tmp_path_factory.mktemp("int8") / "tiny", variants=["int8"])


def test_the_manifest_says_what_int8_does_to_the_rewards(quantized, run: Run) -> None:
    fp32, variant = quantized.manifest.variants
    assert (fp32.name, variant.name, variant.precision) == ("fp32", "int8", "int8")
    assert fp32.spearman is None and variant.spearman >= MIN_RANK
    groups, _ = read_groups(run.held_out)
    exact, rounded = (_flat(quantized, name, groups) for name in ("fp32", "int8"))
    assert 0 < np.abs(exact - rounded).max() < exact.std()
    ranks = [np.argsort(np.argsort(each)) for each in (exact, rounded)]
    assert variant.spearman == pytest.approx(np.corrcoef(*ranks)[0, 1], abs=1e-3)  # ties


def test_int8_is_served_and_says_whether_it_keeps_bits(quantized) -> None:
    scorer = Scorer.open(ServiceConfig(bundle=quantized.path, variant="int8", device="cpu"))
    pairs = [Pair("What is 2 plus 2?", f"The sum is {i}.") for i in range(4)]
    scored = asyncio.run(scorer.score(pairs))
    assert scorer.bit_invariant == quantized.manifest.variant("int8").bit_invariant
    assert np.isfinite([result.reward for result in scored.results]).all()
    assert scorer.verify() <= quantized.manifest.variant("int8").tolerance
    scorer.close()


def test_int8_is_refused_where_it_changes_the_rewards_too_much(
    run: Run, copy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int8, "MIN_SPEARMAN", 1.1)
    groups, _ = read_groups(run.held_out)
    with pytest.raises(TrainingError, match=r"rank correlation .* without --variant int8"):
        int8.add_int8(bundles.load(copy), groups)


def test_a_model_from_elsewhere_has_nothing_to_measure_int8_on(tmp_path) -> None:
    out = tmp_path / "out"
    arguments = ["export", str(tmp_path), "--out", str(out), "--uncalibrated", "--variant", "int8"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code != 0 and "held-out" in str(result.exception) + result.output


def _flat(bundle: bundles.Bundle, variant: str, groups) -> np.ndarray:
    return np.concatenate(int8._rewards(bundle, variant, groups))
