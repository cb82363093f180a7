"""`make bench` in small, on the tiny bundle: every system for real, every reward checked."""

import json
from pathlib import Path

import numpy as np
import pytest

from loadtests.bench import (
    compositions,
    measure,
    model,
    report,
    run,
    servers,
    soak,
    workloads,
)
from loadtests.bench.measure import WrongReward
from loadtests.bench.offline import Offline
from loadtests.bench.plan import QUICK
from loadtests.bench.workloads import Writer
from service.bundle import Bundle

WORKLOADS = ["singles", "groups"]


def test_one_run_measures_every_system_and_writes_its_results(
    bundle: Bundle, tmp_path: Path
) -> None:
    names = [*WORKLOADS, "one", "mixed"]
    result = run.bench(bundle.path, names, QUICK, ["serve_batch", "one_by_one"])
    report.write(tmp_path / "bench", result)
    written = json.loads((tmp_path / "bench.json").read_text())
    assert (tmp_path / "bench.png").stat().st_size > 10_000
    for name in WORKLOADS:
        systems = written["medians"][name]
        assert set(systems) == {"service", "offline", "serve_batch", "one_by_one"}
        for system in systems.values():
            assert 0 < system["of_roofline"] < 1 and system["pairs_per_s"] > 0
        assert systems["service"]["p99_ms"] >= systems["service"]["p50_ms"] > 0
        # groups share at most 15/16 of 128 tokens, the tiny bundle's limit, of twice as many
        assert 0 <= systems["service"]["prefix_hit_rate"] <= 0.5
        assert 0 <= systems["service"]["padding_share"] < 0.5
        assert systems["service"]["rows_per_run"] >= 1
    assert written["one"]["p50_ms"] > written["one"]["engine_p50_ms"] > 0
    assert written["mixed"]["during_p99_ms"] > 0
    assert written["pss_bytes"] > 300 * 2**20  # Ray alone takes more
    assert len(written["goals"]) == 9


def test_a_soak_and_random_compositions_check_every_reward(bundle: Bundle) -> None:
    """In small: whether memory is flat takes more requests than a test has time for."""
    words = model.words(bundle.path)
    texts, groups = soak.pool(words, 5)[:300], compositions.pool(words, 6)
    offline = Offline(bundle.path)
    expected = offline.run(texts).rewards
    offline.close()
    alone = compositions.score_alone(bundle.path, groups)
    with servers.service(bundle.path) as service:
        soaked = soak.stream(service, texts, expected, 300, print)
        assert len(soaked["pss_bytes"]) == 100 and min(soaked["pss_bytes"]) > 300 * 2**20
        composed = compositions.mix(service, groups, alone, 100, print)
        assert composed["runs"] >= 100 and composed["differing"] == 0
        pair = next(iter(alone))
        off = np.nextafter(alone[pair], np.float32(9), dtype=np.float32)
        wrong = compositions.mix(service, groups, alone | {pair: off}, 100, print)
        assert wrong["differing"] > 0 and not wrong["reached"]
        with pytest.raises(WrongReward):
            soak.stream(service, texts[:1], [off], 100, print)


def test_the_service_answers_on_an_engine_that_costs_nothing(bundle: Bundle) -> None:
    work = workloads.singles(Writer(model.words(bundle.path), 1), 64)
    with servers.module("null_engine", bundle.path) as service:
        measured = measure.over_http(service, work)
    assert [reward.tolist() for reward in measured.rewards] == [[0.0]] * 64
    assert measured.cpu_s and 0 < measured.client_cpu < 1


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
