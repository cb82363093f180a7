"""`make bench` in small, on the tiny bundle: every system for real, every reward checked."""

import json
from pathlib import Path

import pytest

from loadtests.bench import report, run
from loadtests.bench.compositions import compositions
from loadtests.bench.plan import QUICK
from loadtests.bench.soak import soak
from service.bundle import Bundle

EVERYTHING = ["singles", "batches", "groups", "long", "one", "mixed", "no-op"]


def test_one_run_measures_every_system_and_writes_its_results(
    bundle: Bundle, tmp_path: Path
) -> None:
    result = run.bench(bundle.path, EVERYTHING, QUICK, ["serve_batch", "one_by_one"])
    report.write(tmp_path / "bench", result)
    written = json.loads((tmp_path / "bench.json").read_text())
    assert (tmp_path / "bench.png").stat().st_size > 10_000
    for name in EVERYTHING[:4]:
        systems = written["medians"][name]
        assert set(systems) == {"service", "offline", "serve_batch", "one_by_one"}
        for system in systems.values():
            assert 0 < system["of_roofline"] < 1 and system["pairs_per_s"] > 0
        assert systems["service"]["p99_ms"] >= systems["service"]["p50_ms"] > 0
        assert 0 <= systems["service"]["padding_share"] < 0.5
    # a run of so small a model costs as much as hundreds of tokens, so short prefixes stay apart
    assert written["medians"]["groups"]["service"]["prefix_hit_rate"] > 0.2
    assert written["one"]["p50_ms"] > written["one"]["engine_p50_ms"] > 0
    assert written["no_op"]["null_engine_per_s"] > 0
    assert written["pss_bytes"] > 300 * 2**20  # Ray alone takes more
    assert len(written["goals"]) == 12


def test_a_soak_and_random_compositions_check_every_reward(bundle: Bundle) -> None:
    """In small: whether memory is flat takes more requests than a test has time for."""
    soaked = soak(bundle.path, 400, print)
    assert len(soaked["pss_bytes"]) == 100 and min(soaked["pss_bytes"]) > 300 * 2**20
    assert abs(soaked["growth"]) < 0.2
    composed = compositions(bundle.path, 300, print)
    assert composed["runs"] >= 300 and composed["differing"] == 0
    assert composed["reached"] and composed["shared_tokens"] > 0.05


def test_a_summary_is_the_median_of_ratios_within_rounds() -> None:
    """The machine halves its speed in the second round and doubles it in the third: no ratio moves,
    though the medians of the rates do."""
    rows = [
        {
            "round": turn,
            "workload": "singles",
            "system": system,
            "pairs_per_s": speed * rate,
            "of_roofline": 0.5,
        }
        for turn, speed in enumerate((1.0, 0.5, 2.0))
        for system, rate in (("service", 90.0), ("offline", 100.0 + turn))
    ]
    medians = report.summary(rows)["singles"]
    assert medians["service"]["pairs_per_s"] == 90
    assert medians["service"]["over"]["offline"] == pytest.approx(90 / 101)
