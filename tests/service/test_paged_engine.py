"""The packed graph through the engine that serves it, its operator in numpy, against a CPU."""

import asyncio

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from service import metrics
from service.blocks import Pool, bucket
from service.errors import BundleError
from service.manifest import Architecture
from service.metrics import Recorder
from service.packing import PackedBudget
from service.paged_engine import PagedEngine, SessionRunner, pool
from service.ragged_engine import RaggedEngine
from service.scheduler import Scheduler
from tests.service.paged_reference import PagedAttention, ReferenceRunner, WritesLate
from tests.training.families import MAX_TOKENS

POOL = Pool(blocks=200, block_tokens=16)
TOLERANCE = 1e-4
"as fp32 graphs are held to torch (training/export.py): numpy sums in another order"
FAMILIES = ("qwen3", "llama", "gemma", "gpt_neox")


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, family_bundle, packed_graph):
    """An fp32 engine, and the packed graph of the same weights in fp32."""
    engine = RaggedEngine(family_bundle(request.param), "fp32", 2)
    return engine, packed_graph(request.param, torch.float32)


def _engine(graph, one_run=True, operator: type = PagedAttention, pool: Pool = POOL) -> PagedEngine:
    runner = ReferenceRunner(graph, pool, operator)
    return PagedEngine(runner, pool, MAX_TOKENS, "cpu", "numpy", one_run)


def _ids(count: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(3, 800, count).tolist()


def _ragged() -> list[list[int]]:
    lengths = (1, 2, 3, 15, 16, 17, 18, 31, 32, 33, 34, 47, 48, 49, 95, MAX_TOKENS)
    return [_ids(length, seed=length) for length in lengths]


def _groups() -> list[list[int]]:
    """Prompts at a block's edge and beside it, responses of 1 to 20 tokens."""
    return [
        [*_ids(prompt, seed=prompt), *_ids(response, seed=1000 * prompt + response)]
        for prompt in (31, 32, 33, 50)
        for response in (1, 2, 3, 16, 20)
    ]


def _levels() -> list[list[int]]:
    """A system prompt, two prompts behind it, three responses each, and a row of the system
    prompt alone."""
    system = _ids(35)
    prompts = [[*system, *_ids(30, seed=p)] for p in (1, 2)]
    return [[*prompt, *_ids(3 + r, seed=9 + r)] for prompt in prompts for r in range(3)] + [system]


CASES = {"ragged": _ragged, "groups": _groups, "levels": _levels, "same": lambda: [_ids(40)] * 3}


@pytest.mark.parametrize("rows", CASES.values(), ids=CASES)
@pytest.mark.parametrize("one_run", [True, False], ids=["one-run", "run-per-level"])
def test_rewards_are_those_of_the_padded_graph(family, rows, one_run: bool) -> None:
    fp32, graph = family
    expected = np.concatenate([fp32.run([row]) for row in rows()])
    got = _engine(graph, one_run).run(rows())
    assert np.abs(got - expected).max() <= TOLERANCE
    assert expected.std() > 100 * TOLERANCE or rows is CASES["same"], "nothing could be told apart"


def test_single_rows_give_what_they_give_together(family) -> None:
    _, graph = family
    engine, rows = _engine(graph), _levels()
    alone = np.concatenate([engine.run([row]) for row in rows])
    assert np.abs(alone - engine.run(rows)).max() <= TOLERANCE


def test_only_the_form_of_one_run_needs_writes_before_reads(family) -> None:
    """With a kernel that writes late, a run per level still reads what earlier ones wrote; in one
    run the shared blocks would not be there yet, and the pool holds NaN."""
    fp32, graph = family
    rows = _levels()
    expected = fp32.run(rows)
    per_level = _engine(graph, one_run=False, operator=WritesLate).run(rows)
    assert np.abs(per_level - expected).max() <= TOLERANCE
    assert np.isnan(_engine(graph, operator=WritesLate).run(rows)).any()


def test_a_shared_prompt_is_computed_once(family) -> None:
    _, graph = family
    engine = _engine(graph)
    rows = [[*_ids(64), *_ids(8, seed=1 + r)] for r in range(20)]
    engine.run(rows)
    (feeds,) = engine._runner.runs
    assert len(feeds["input_ids"]) == 256  # 64 + 20 x 8 = 224, to the next bucket; 1,440 unshared


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 60), st.integers(1, 30)), min_size=1))
def test_any_rows_agree_in_both_forms(family, shapes) -> None:
    fp32, graph = family
    rows = [[*_ids(60, seed=p)[:cut], *_ids(tail, seed=cut + tail)] for p, cut, tail in shapes[:12]]
    expected = np.concatenate([fp32.run([row]) for row in rows])
    for one_run in (True, False):
        assert np.abs(_engine(graph, one_run).run(rows) - expected).max() <= TOLERANCE


def test_a_batch_that_the_pool_cannot_hold_names_the_limit(family) -> None:
    _, graph = family
    engine = _engine(graph, pool=Pool(blocks=7, block_tokens=16))
    rows = [_ids(40, seed=i) for i in range(3)]
    with pytest.raises(
        MemoryError, match=r"3 rows need 9 blocks of 16 tokens, max_state_bytes .* 7"
    ):
        engine.run(rows)
    assert len(engine.run(rows[:2])) == 2


def test_the_scheduler_fills_packed_batches(family) -> None:
    """Groups and single rows at once: the rewards in order, fewer tokens than the rows have, and
    the counters say which of them were computed."""
    fp32, graph = family
    engine = _engine(graph)
    recorder = Recorder()
    scheduler = Scheduler(engine, PackedBudget(256, POOL.blocks, 16), 100_000, recorder)
    rows = [*_groups(), *_levels(), *_ragged()]
    scored = asyncio.run(scheduler.score(rows))
    scheduler.close()
    expected = np.concatenate([fp32.run([row]) for row in rows])
    assert np.abs(np.array(scored.rewards) - expected).max() <= TOLERANCE
    computed = [len(feeds["input_ids"]) for feeds in engine._runner.runs]
    assert max(computed) <= 256 and sum(computed) < sum(map(len, rows))
    tokens, shared, padding = (
        recorder.added[name, ()] for name in (metrics.TOKENS, metrics.SHARED, metrics.PADDING)
    )
    assert tokens - shared + padding == sum(computed) and 0 < shared < tokens
    assert tokens == sum(len(row) for row in {tuple(row) for row in rows})


def test_a_batch_waits_behind_the_one_that_a_gpu_runs(family) -> None:
    """The engine as on CUDA, which is handed a batch ahead: rewards and their order stay."""
    fp32, graph = family
    engine = _engine(graph)
    engine.ahead = 1
    scheduler = Scheduler(engine, PackedBudget(256, POOL.blocks, 16), max_queued_tokens=100_000)
    rows = [_ids(60, seed=i) for i in range(20)]
    scored = asyncio.run(scheduler.score(rows))
    scheduler.close()
    expected = np.concatenate([fp32.run([row]) for row in rows])
    assert np.abs(np.array(scored.rewards) - expected).max() <= TOLERANCE


@pytest.mark.parametrize(
    ("tokens", "blocks", "most"), [(0, 200, 1), (3 * MAX_TOKENS, 200, 3), (9 * MAX_TOKENS, 13, 2)]
)
def test_the_first_run_is_as_large_as_any(family, tokens: int, blocks: int, most: int) -> None:
    """A row of the greatest length takes 6 blocks of 16 tokens."""
    _, graph = family
    engine = _engine(graph, pool=Pool(blocks, 16))
    engine.warm(tokens)
    (feeds,) = engine._runner.runs
    assert len(feeds["input_ids"]) == bucket(most * MAX_TOKENS)


def test_the_pool_is_as_many_blocks_as_fit_and_one_row_at_least() -> None:
    sizes = Architecture(
        kind="causal", family="", layers=3, hidden_size=48, heads=4, kv_heads=2, head_dim=16,
        vocab_size=800, parameters=1,
    )  # fmt: skip
    block = 2 * 3 * 2 * 16 * 2 * 256  # keys and values, layers, heads, width, bytes; tokens
    assert pool(sizes, 512, 10 * block + 1) == Pool(10, 256)
    with pytest.raises(
        BundleError, match=rf"max_state_bytes: {block} is 1 .* set it to {2 * block} "
    ):
        pool(sizes, 512, block)


def test_the_session_runner_keeps_each_cache_in_its_buffer(tmp_path) -> None:
    """ONNX Runtime on the CPU, with a graph that writes its tokens' ids to their slots and gives
    the sum over the cache: what one run wrote, the next one finds."""
    file = tmp_path / "cache.onnx"
    onnx.save(_summing(), file)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    runner = SessionRunner(session, 1, Pool(2, 4), "cpu", (1, 1), item_type=TensorProto.FLOAT)
    everything = np.arange(8, dtype=np.int64)[:, None]
    zeros = {"slots": everything, "values": np.zeros(8, np.float32)}
    assert runner(zeros).tolist() == [0.0, 0.0]
    some = {"slots": np.array([[1], [6]]), "values": np.array([2, 3], np.float32)}
    assert runner(some).tolist() == [5.0, 5.0]
    assert runner({"slots": np.array([[1]]), "values": np.ones(1, np.float32)}).tolist() == [4, 4]


def _summing() -> onnx.ModelProto:
    flat, shape = (onnx.numpy_helper.from_array(np.array(each)) for each in ([-1], [2, 4, 1, 1]))
    flat.name, shape.name = "flat", "shape"
    nodes, caches = [], []
    for kind in ("key", "value"):
        nodes += [
            helper.make_node("Reshape", [f"{kind}_cache_0", "flat"], [f"{kind}_flat"]),
            helper.make_node("ScatterND", [f"{kind}_flat", "slots", "values"], [f"{kind}_new"]),
            helper.make_node("Reshape", [f"{kind}_new", "shape"], [f"{kind}_cache_out_0"]),
            helper.make_node("ReduceSum", [f"{kind}_new"], [f"{kind}_sum"], keepdims=0),
            helper.make_node("Reshape", [f"{kind}_sum", "flat"], [f"{kind}_row"]),
        ]
        caches.append(f"{kind}_cache")
    nodes.append(helper.make_node("Concat", ["key_row", "value_row"], ["reward"], axis=0))

    def value(name, shape, kind=TensorProto.FLOAT):
        return helper.make_tensor_value_info(name, kind, shape)

    inputs = [value("slots", ["n", 1], TensorProto.INT64), value("values", ["n"])]
    inputs += [value(f"{name}_0", [2, 4, 1, 1]) for name in caches]
    outputs = [value("reward", [2]), *(value(f"{name}_out_0", [2, 4, 1, 1]) for name in caches)]
    graph = helper.make_graph(nodes, "sums", inputs, outputs, [flat, shape])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
