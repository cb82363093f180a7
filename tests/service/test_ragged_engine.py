"""The engine for CPUs: the same bits however a row is split, and its memory."""

import resource
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil
import pytest

from service.bundle import Bundle
from service.config import ServiceConfig
from service.engines import open_engine
from service.errors import BundleError
from service.prefix import HEAD_TOKENS
from service.ragged_budget import RaggedBudget
from service.ragged_engine import RaggedEngine

CHUNK = 24


def _rows(count: int, length: int = 12, seed: int = 0) -> list[list[int]]:
    return np.random.default_rng(seed).integers(3, 600, (count, length)).tolist()


@pytest.mark.parametrize(("asked", "tokens"), [(0, 768), (700, 700)])
def test_cpus_run_the_ragged_graph_in_batches_as_large_as_is_set(
    bundle: Bundle, asked: int, tokens: int
) -> None:
    config = ServiceConfig(
        bundle=bundle.path, device="cpu", max_state_bytes=1_000_000, max_batch_tokens=asked,
        runs_at_once=1,
    )  # fmt: skip
    engine, limits = open_engine(bundle, config)
    assert isinstance(engine, RaggedEngine)
    token = 2 * bundle.manifest.architecture.state_bytes_per_token()
    assert limits == RaggedBudget(tokens, 1_000_000 // token)
    assert engine.kept_tokens == 128 * 2**20 // (token // 2)
    sizes = bundle.manifest.text.model_copy(update={"max_prompt_tokens": 10**6})
    manifest = bundle.manifest.model_copy(update={"text": sizes})
    engine, _ = open_engine(bundle.model_copy(update={"manifest": manifest}), config)
    assert engine.kept_tokens == 2 * 10**6


@pytest.mark.parametrize(
    ("cpus", "threads", "runs", "opened"),
    [(4, 0, 0, (2, 2)), (3, 0, 0, (2, 2)), (1, 0, 0, (1, 1)), (4, 3, 0, (1, 3)), (2, 0, 3, (3, 1))],
)
def test_two_runs_at_once_share_the_cores_unless_it_is_set(
    bundle: Bundle,
    family_bundle,
    monkeypatch,
    cpus: int,
    threads: int,
    runs: int,
    opened: tuple[int, int],
) -> None:
    monkeypatch.setattr("service.engines.usable_cpus", lambda: cpus)
    for each in (bundle, family_bundle("bert")):
        options = {"bundle": each.path, "device": "cpu", "threads": threads, "runs_at_once": runs}
        engine, _ = open_engine(each, ServiceConfig(**options))
        assert (engine.at_once, int(engine.fingerprint.rpartition("threads=")[2])) == opened


@pytest.mark.parametrize("length", [18, 19, 33, 64, 130])
def test_every_split_gives_the_same_bits_cached_or_not(bundle: Bundle, length: int) -> None:
    engine, one_thread = RaggedEngine(bundle, "fp32", 2), RaggedEngine(bundle, "fp32", 1)
    row = _rows(1, length, seed=length)[0]
    others = [[*row[:-1], 5], [*row, 7, 8]]
    alone = engine.run([row])[0]
    assert one_thread.run([row])[0] == alone
    for tokens in range(2, length - 2):
        assert engine.run([row, *others], tokens)[0] == alone
        if tokens >= HEAD_TOKENS:
            assert engine.cached_tokens(row) >= tokens
        assert engine.run([row], tokens)[0] == alone


def test_states_are_kept_within_their_bytes_the_latest_longest(bundle: Bundle) -> None:
    sizes = bundle.manifest.architecture
    engine = RaggedEngine(bundle, "fp32", 2, 100 * sizes.state_bytes_per_token())
    rows = _rows(3, 60)
    kept = []
    for row in rows:
        engine.run([row], 50)
        kept.append([engine.cached_tokens(row) for row in rows])
    assert kept == [[50, 0, 0], [50, 50, 0], [0, 50, 50]]


def test_a_batch_comes_before_kept_states(bundle: Bundle) -> None:
    token = bundle.manifest.architecture.state_bytes_per_token()
    engine = RaggedEngine(bundle, "fp32", 2, 1000 * token, 400 * token)
    first, second, *others = _rows(5, 60)
    engine.run([first], 50)
    engine.run([second], 50)
    engine.run(others[:1])  # 120 tokens' states, 280 left
    assert engine.cached_tokens(first) == engine.cached_tokens(second) == 50
    engine.run(others)  # 360, 40 left
    assert engine.cached_tokens(first) == engine.cached_tokens(second) == 0


def test_prompts_take_the_states_of_their_common_system_prompt(bundle: Bundle) -> None:
    engine = RaggedEngine(bundle, "fp32", 2)
    system, first, second = _rows(3, 40)
    rows = [[*system, *prompt, 7, 8] for prompt in (first, second)]
    alone = [engine.run([row])[0] for row in rows]
    assert engine.run([rows[0]], 80)[0] == alone[0]
    assert engine.cached_tokens(rows[1]) == 40
    assert engine.run([rows[1]], 80)[0] == alone[1]
    assert engine.cached_tokens(rows[1]) == 80


def test_batches_at_once_give_the_bits_they_have_alone(bundle: Bundle) -> None:
    """Four threads, prompts that they share, and a cache so small that states come and go."""
    alone = RaggedEngine(bundle, "fp32", 1)
    sizes = bundle.manifest.architecture
    engine = RaggedEngine(
        bundle, "fp32", 2, prefix_cache_bytes=100 * sizes.state_bytes_per_token(), at_once=4
    )
    random = np.random.default_rng(5)
    prompts = random.integers(3, 600, (5, 40)).tolist()

    def batch(seed: int) -> list[list[int]]:
        chosen = np.random.default_rng(seed)
        ends = [chosen.integers(3, 600, n).tolist() for n in chosen.integers(2, 30, 6)]
        return [prompts[chosen.integers(len(prompts))] + end for end in ends]

    batches = [batch(seed) for seed in range(60)]
    expected = [alone.run(rows) for rows in batches]
    with ThreadPoolExecutor(4) as threads:
        got = list(threads.map(engine.run, batches, [40, 30, 0] * 20))
    for rewards, right in zip(got, expected, strict=True):
        np.testing.assert_array_equal(rewards, right)
    assert engine._room.left == 2 * 1024**3


def test_a_run_waits_until_its_states_fit_and_is_not_overtaken(bundle: Bundle) -> None:
    row_bytes = 2 * 50 * bundle.manifest.architecture.state_bytes_per_token()
    engine = RaggedEngine(bundle, "fp32", 1, max_state_bytes=2 * row_bytes, at_once=3)
    small, large = [[7] * 50], _rows(5, 50)
    with ThreadPoolExecutor(3) as threads:
        alone = engine.run(small)
        with engine._room.taken(row_bytes):
            np.testing.assert_array_equal(threads.submit(engine.run, small).result(60), alone)
            waiting = threads.submit(engine.run, large)
            while not engine._room._next.locked():
                time.sleep(0.001)
            after = threads.submit(engine.run, small)  # it would fit now
            for run in (waiting, after):
                with pytest.raises(TimeoutError):
                    run.result(0.1)
        assert len(waiting.result(60)) == 5  # alone it runs, however large
        assert len(after.result(60)) == 1


@pytest.mark.parametrize("lengths", [(CHUNK * 2, CHUNK * 2 + 3), (CHUNK * 3 + 1, CHUNK * 4)])
def test_long_rows_run_in_chunks_to_the_same_bits(bundle: Bundle, monkeypatch, lengths) -> None:
    rows = [_rows(1, length, seed=length)[0] for length in lengths]
    whole = [RaggedEngine(bundle, "fp32", 2).run([row])[0] for row in rows]
    monkeypatch.setattr("service.ragged.CHUNK_TOKENS", CHUNK)
    engine = RaggedEngine(bundle, "fp32", 2)
    assert [engine.run([row])[0] for row in rows] == whole
    assert engine.run(rows).tolist() == whole
    prefix = CHUNK * 2 - 5
    same = [[*rows[0][:prefix], *row[prefix:]] for row in rows]
    assert engine.run(same, prefix).tolist() == [engine.run([row])[0] for row in same]
    assert engine.cached_tokens(same[0]) == prefix


def test_the_runtimes_own_shortage_is_told_from_other_failures(bundle: Bundle) -> None:
    """A real allocation that cannot succeed, in a process that may grow by 256 MiB: 5,000 rows
    take more. Without that limit the machine's other processes pay. The arena says so in its own
    words, and where its allocator throws, in C++'s."""
    engine = RaggedEngine(bundle, "fp32", 2)
    row, rows = _rows(1, 40)[0], _rows(5000, 40, seed=1)
    right = engine.run([row], 20)
    before = resource.getrlimit(resource.RLIMIT_AS)
    most = psutil.Process().memory_info().vms + 256 * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (most, before[1]))
    try:
        with pytest.raises(MemoryError, match=r"BFCArena|bad_alloc"):
            engine.run(rows)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert engine.cached_tokens(row) == 0  # what was kept is given up first
    assert engine.run([row]) == right


def test_a_graph_that_the_manifest_does_not_list_is_refused(bundle: Bundle) -> None:
    padded = bundle.manifest.variants[0].model_copy(update={"ragged": None})
    manifest = bundle.manifest.model_copy(update={"variants": (padded,)})
    with pytest.raises(
        BundleError, match="variant fp32 has no graph that CPUs run; export the model again"
    ):
        RaggedEngine(bundle.model_copy(update={"manifest": manifest}), "fp32")
