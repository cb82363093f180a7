"""`make bench-gpu` in small, on a CPU; and its arithmetic."""

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests.bench.workloads import Writer
from loadtests.bench_gpu import models, report
from loadtests.bench_gpu.baselines import batches
from loadtests.bench_gpu.kernels import covered
from loadtests.bench_gpu.ulp import histogram, ulp_distance
from loadtests.bench_gpu.workloads import WORKLOADS, Lengths

MODULE = [sys.executable, "-m", "loadtests.bench_gpu.run"]
FLOATS = st.floats(-(2.0**100), 2.0**100, width=32)


def test_it_runs_from_end_to_end_without_a_gpu_and_says_so(tmp_path: Path) -> None:
    options = ["--device=cpu", "--models=tiny", "--quick", f"--room={tmp_path}/bundles"]
    done = subprocess.run(
        [*MODULE, *options, f"--out={tmp_path}"], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert report.NO_GPU in done.stdout
    (file,) = tmp_path.glob("bench-gpu-cpu-self-test-*.json")
    assert file.with_suffix(".png").stat().st_size > 10_000
    result = json.loads(file.read_text())
    assert result["machine"]["device"] == "cpu" and report.NO_GPU in result["notes"]
    rows = {(row["workload"], row["system"]): row for row in result["rows"]}
    systems = ("fp32", "torch padded", "torch by length")
    assert set(rows) == {(w, s) for w in WORKLOADS for s in systems}
    for row in rows.values():
        assert row["pairs_per_s"] > 0 and row["of_ceiling"] > row["of_ceiling_pruned"] > 0
    ours = rows["groups", "fp32"]
    # 16 responses of 16 tokens to a prompt of 64: at best 15/16 of 64 of 80 tokens are saved
    assert 0 < ours["prefix_saving"] <= 0.75
    assert ours["p99_ms"] >= ours["p50_ms"] > 0 and 0 < ours["loop_gap"] < 1
    assert rows["batches", "fp32"]["prefix_saving"] == 0
    (company,) = result["invariance"]
    assert company["same_bits"] == 1 and company["ulp"] == {"0": company["rows"]}
    ours, torch_itself = result["parity"]
    assert (ours["system"], torch_itself["system"]) == ("fp32", "torch float32")
    assert ours["rows"] > 0
    # fp32 through two layers: the parity that every exported family is held to
    assert ours["largest_of_std"] * ours["reward_std"] <= 1e-4


def test_a_model_without_a_gpu_and_an_unknown_variant_end_with_one_line() -> None:
    for options, said in (
        (["--device=cpu", "--models=tiny", "--variants=int3"], "--variants int3: not of fp32"),
        (["--device=cpu", "--models=none"], "--models none: not of tiny"),
    ):
        done = subprocess.run([*MODULE, *options], capture_output=True, text=True, timeout=60)
        assert done.returncode == 1 and said in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_a_bundle_in_bf16_has_its_layers_in_bf16_and_its_reward_in_fp32(tmp_path: Path) -> None:
    import onnx

    path = models.build("tiny", "bf16", tmp_path)
    graph = onnx.load(path / "model.onnx", load_external_data=False).graph
    kinds = onnx.TensorProto
    values = {
        entry.name: entry.type.tensor_type.elem_type for entry in (*graph.input, *graph.output)
    }
    assert values["reward"] == kinds.FLOAT and values["input_ids"] == kinds.INT64
    assert values["past_key_0"] == values["present_value_1"] == kinds.BFLOAT16
    large = [each for each in graph.initializer if np.prod(each.dims) > 1000]
    assert len(large) >= 2 * 7 and all(each.data_type == kinds.BFLOAT16 for each in large)


@pytest.mark.parametrize(
    ("variant", "name"), [("bf16-paged", "BFLOAT16"), ("fp16-paged", "FLOAT16")]
)
def test_a_packed_bundle_has_its_caches_in_16_bits_and_its_head_in_fp32(
    variant: str, name: str, tmp_path: Path
) -> None:
    import onnx

    path = models.build("tiny", variant, tmp_path)
    graph = onnx.load(path / models.GRAPH, load_external_data=False).graph
    kinds = onnx.TensorProto
    precision = kinds.DataType.Value(name)
    values = {
        entry.name: entry.type.tensor_type.elem_type for entry in (*graph.input, *graph.output)
    }
    assert values["reward"] == kinds.FLOAT
    assert values["key_cache_0"] == values["value_cache_out_1"] == precision
    assert sum(node.op_type == "PagedAttention" for node in graph.node) == 2
    # embeddings and seven matrices of each of two layers; the head of 64 weights is not among them
    large = [each for each in graph.initializer if np.prod(each.dims) > 1000]
    assert len(large) >= 2 * 7 and all(each.data_type == precision for each in large)
    head = [node.input[1] for node in graph.node if node.op_type in ("MatMul", "Gemm")][-1]
    assert {e.name: e.data_type for e in graph.initializer}[head] == kinds.FLOAT


@given(FLOATS)
def test_the_next_number_is_one_ulp_away(value: float) -> None:
    first = np.float32([value, value])
    around = np.nextafter(first, np.float32([np.inf, -np.inf]), dtype=np.float32)
    # -0 and 0 are the same number, so their neighbours on the other side are one away as well
    moved = (around != first).astype(int)
    assert ulp_distance(first, around).tolist() == moved.tolist()
    assert ulp_distance(first, first).tolist() == [0, 0]


def test_ulp_distances_by_hand() -> None:
    one, two = np.float32([1.0]), np.float32([2.0])
    assert ulp_distance(one, two) == 1 << 23  # all mantissas of one exponent
    smallest = np.float32([np.finfo(np.float32).smallest_subnormal])
    assert ulp_distance(-smallest, smallest) == 2
    assert histogram(np.array([0, 1, 2, 3, 4, 7, 8])) == {
        "0": 1,
        "1": 1,
        "2-3": 2,
        "4-7": 2,
        "8-15": 1,
    }


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50))))
def test_time_that_is_covered_counts_once(intervals: list[tuple[int, int]]) -> None:
    spans = [(min(pair), max(pair)) for pair in intervals]
    assert covered(spans) == len({at for begin, end in spans for at in range(begin, end)})


@given(st.lists(st.integers(1, 300), min_size=1, max_size=60), st.booleans())
def test_a_baselines_batches_hold_every_row_once_within_their_budget(lengths, by_length) -> None:
    found = list(batches(lengths, 400, by_length))
    assert sorted(i for batch in found for i in batch) == [*range(len(lengths))]
    for batch in found:
        assert len(batch) == 1 or max(lengths[i] for i in batch) * len(batch) <= 400


@pytest.mark.parametrize("name", WORKLOADS)
def test_a_seed_gives_one_workload_of_the_size_that_was_asked_for(name: str) -> None:
    def make(seed: int):
        return WORKLOADS[name][0](Writer(models.WORDS, seed), Lengths(), 64)

    workload = make(1)
    assert workload == make(1) != make(2)
    assert len(workload.pairs) == 64
    tokens = [len((pair.prompt + pair.response).split()) for pair in workload.pairs]
    limits = {"batches": (225, 375), "singles": (225, 375), "groups": (1280, 1280)}
    low, high = limits.get(name, (8192, 8192))
    assert low <= min(tokens) and max(tokens) <= high
    if name == "groups":
        changes = [a.prompt != b.prompt for a, b in pairwise(workload.pairs)]
        assert sum(changes) == 3
