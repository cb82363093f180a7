"""The engine for CPUs: the same bits however a row is split, and its memory."""

import resource
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil
import pytest

from service.bundle import Bundle
from service.engine import OnnxEngine
from service.prefix import HEAD_TOKENS, TYPICAL
from service.warmup import measure_costs

CHUNK = 24


def _rows(count: int, length: int = 12, seed: int = 0) -> list[list[int]]:
    return np.random.default_rng(seed).integers(3, 600, (count, length)).tolist()


@pytest.mark.parametrize("length", [18, 19, 33, 64, 130])
def test_every_split_gives_the_same_bits_cached_or_not(bundle: Bundle, length: int) -> None:
    engine = OnnxEngine(bundle, "fp32", "cpu", 2)
    one_thread = OnnxEngine(bundle, "fp32", "cpu", 1)
    row = _rows(1, length, seed=length)[0]
    others = [[*row[:-1], 5], [*row, 7, 8]]
    alone = engine.run([row])[0]
    assert one_thread.run([row])[0] == alone
    for tokens in range(2, length - 2):
        assert engine.run([row, *others], tokens)[0] == alone
        if tokens >= HEAD_TOKENS:
            assert engine.cached_tokens(row) == tokens
        assert engine.run([row], tokens)[0] == alone


def test_states_are_kept_within_their_bytes_the_latest_longest(bundle: Bundle) -> None:
    sizes = bundle.manifest.architecture
    engine = OnnxEngine(bundle, "fp32", "cpu", 2, 100 * sizes.state_bytes_per_token())
    rows = _rows(3, 60)
    kept = []
    for row in rows:
        engine.run([row], 50)
        kept.append([engine.cached_tokens(row) for row in rows])
    assert kept == [[50, 0, 0], [50, 50, 0], [0, 50, 50]]


def test_a_batch_comes_before_kept_states(bundle: Bundle) -> None:
    token = bundle.manifest.architecture.state_bytes_per_token()
    engine = OnnxEngine(bundle, "fp32", "cpu", 2, 1000 * token, 400 * token)
    first, second, other = _rows(3, 60)
    engine.run([first], 50)
    engine.run([second], 50)
    engine.run([other])  # 120 tokens' states, 280 left
    assert engine.cached_tokens(first) == engine.cached_tokens(second) == 50
    engine.run([other] * 3)  # 360, 40 left
    assert engine.cached_tokens(first) == engine.cached_tokens(second) == 0


def test_prompts_take_the_states_of_their_common_system_prompt(bundle: Bundle) -> None:
    engine = OnnxEngine(bundle, "fp32", "cpu", 2)
    system, first, second = _rows(3, 40)
    rows = [[*system, *prompt, 7, 8] for prompt in (first, second)]
    alone = [engine.run([row])[0] for row in rows]
    assert engine.run([rows[0]], 80)[0] == alone[0]
    assert engine.cached_tokens(rows[1]) == 40
    assert engine.run([rows[1]], 80)[0] == alone[1]
    assert engine.cached_tokens(rows[1]) == 80


def test_prompts_of_one_batch_start_from_their_common_system_prompt(
    bundle: Bundle, monkeypatch
) -> None:
    engine = OnnxEngine(bundle, "fp32", "cpu", 2)
    system, *prompts = _rows(4, 40)
    rows = [[*system, *prompt, *tail] for prompt in prompts for tail in ([7, 8], [9, 10, 11])]
    alone = [engine.run([row])[0] for row in rows]
    engine.run([rows[0]], 40)
    computed, run_states = [], engine._run_states

    def watched(rows, past, done):
        computed.append((len(rows), len(rows[0]) - done))
        return run_states(rows, past, done)

    monkeypatch.setattr(engine, "_run_states", watched)
    assert engine.run(rows, 80).tolist() == alone
    assert computed == [(3, 40)]


def test_a_batch_has_prefixes_of_many_kinds(bundle: Bundle) -> None:
    engine = OnnxEngine(bundle, "fp32", "cpu", 2)
    prompts, tails = _rows(4, 40), _rows(12, 9, seed=1)
    rows = [[*prompts[i % 4], *tails[i][: 2 + i % 8]] for i in range(12)]
    alone = [engine.run([row])[0] for row in rows]
    engine.run([rows[1]], 40)  # one kind is kept, three are computed
    assert engine.run(rows, 40).tolist() == alone
    assert [engine.cached_tokens(row) for row in rows] == [40] * 12
    assert engine.run(rows, 40).tolist() == alone
    assert engine.run(rows, 31).tolist() == alone


def test_batches_at_once_give_the_bits_they_have_alone(bundle: Bundle) -> None:
    """Four threads, prompts that they share, and a cache so small that states come and go."""
    alone = OnnxEngine(bundle, "fp32", "cpu", 1)
    sizes = bundle.manifest.architecture
    engine = OnnxEngine(
        bundle, "fp32", "cpu", 2, prefix_cache_bytes=100 * sizes.state_bytes_per_token(), at_once=4
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


def test_a_prefix_that_two_runs_want_is_computed_once(bundle: Bundle) -> None:
    class Slow(OnnxEngine):
        computed = 0

        def _compute(self, prefixes):
            self.computed += len(prefixes)
            time.sleep(0.1)  # the others come meanwhile
            return super()._compute(prefixes)

    engine = Slow(bundle, "fp32", "cpu", 1, at_once=4)
    rows = [[*[7] * 40, i, i] for i in range(8)]
    with ThreadPoolExecutor(4) as threads:
        got = list(threads.map(lambda row: engine.run([row], 40)[0], rows))
    assert engine.computed == 1
    np.testing.assert_array_equal(got, engine.run(rows))


def test_a_run_waits_until_its_states_fit_and_is_not_overtaken(bundle: Bundle) -> None:
    row_bytes = 2 * 50 * bundle.manifest.architecture.state_bytes_per_token()
    engine = OnnxEngine(bundle, "fp32", "cpu", 1, max_state_bytes=2 * row_bytes, at_once=3)
    small, large = [[7] * 50], [[7] * 50] * 5
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
    engine = OnnxEngine(bundle, "fp32", "cpu", 2)
    monkeypatch.setattr("service.engine.CHUNK_TOKENS", 10**9)
    whole = [engine.run([row])[0] for row in rows]
    monkeypatch.setattr("service.engine.CHUNK_TOKENS", CHUNK)
    assert [engine.run([row])[0] for row in rows] == whole
    assert engine.run(rows).tolist() == whole
    prefix = CHUNK * 2 - 5
    same = [[*rows[0][:prefix], *row[prefix:]] for row in rows]
    assert engine.run(same, prefix).tolist() == [engine.run([row])[0] for row in same]
    assert engine.cached_tokens(same[0]) == prefix


def test_the_runtimes_own_shortage_is_told_from_other_failures(bundle: Bundle) -> None:
    """A real allocation that cannot succeed, in a process that may grow by 256 MiB: 5,000 rows
    take 1.1 GB. Without that limit the machine's other processes pay. The arena says so in its own
    words, and where its allocator throws, in C++'s."""
    engine = OnnxEngine(bundle, "fp32", "cpu", 2)
    row = _rows(1, 40)[0]
    engine.run([row], 20)
    before = resource.getrlimit(resource.RLIMIT_AS)
    most = psutil.Process().memory_info().vms + 256 * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (most, before[1]))
    try:
        with pytest.raises(MemoryError, match=r"BFCArena|bad_alloc"):
            engine.run([row] * 5000)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert engine.cached_tokens(row) == 0
    assert np.isfinite(engine.run([row])[0])


def test_costs_are_measured_on_the_engine_that_serves(bundle: Bundle) -> None:
    costs = measure_costs(OnnxEngine(bundle, "fp32", "cpu", 2), 4096)
    assert costs != TYPICAL and costs.run_tokens > 0 and 0 <= costs.past_token <= 1
    assert measure_costs(OnnxEngine(bundle, "fp32", "cpu", 2), 40) == TYPICAL
