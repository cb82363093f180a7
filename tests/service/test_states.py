"""Kept states against a plain list of what should be kept."""

import itertools
import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.prefix import HEAD_TOKENS, ITEM, common_tokens, pack
from service.states import StateCache

TOKEN_BYTES = 8


def states(row: list[int]) -> dict[str, np.ndarray]:
    """Each token's state is its id."""
    return {"past_key_0": np.array(row, np.int64)[None, None, :, None]}


# Three beginnings, so that rows share some of their tokens, all of them, or none.
rows = st.builds(
    lambda head, end: [head] * HEAD_TOKENS + end,
    st.sampled_from([1, 2, 1 << 20]),
    st.lists(st.sampled_from([1, 2, 256]), max_size=5),
)


@given(st.lists(rows, max_size=30), rows, st.integers(0, 200))
def test_what_is_kept_is_what_was_put_last_and_fits(
    put: list[list[int]], asked: list[int], max_tokens: int
) -> None:
    cache, kept = StateCache(max_tokens * TOKEN_BYTES), []
    for row in put:
        cache.put(pack(row), states(row))
        if len(row) <= max_tokens and not any(old[: len(row)] == row for old in kept):
            kept = [*(old for old in kept if row[: len(old)] != old), row]
            while sum(map(len, kept)) > max_tokens:
                kept.pop(0)
    common = max((common_tokens(pack(old), pack(asked)) for old in kept), default=0)
    found = cache.common(pack(asked))
    assert found == (common if common >= HEAD_TOKENS else 0)
    if found:
        [state] = cache.get(pack(asked), found).values()
        assert state.flatten().tolist() == asked[:found]


def test_the_least_recently_used_is_dropped_first() -> None:
    first, second, third = ([i] * HEAD_TOKENS for i in (1, 2, 3))
    cache = StateCache(2 * HEAD_TOKENS * TOKEN_BYTES)
    for row in (first, second):
        cache.put(pack(row), states(row))
    cache.get(pack(first), HEAD_TOKENS)
    cache.put(pack(third), states(third))
    assert [cache.common(pack(row)) for row in (first, second, third)] == [16, 0, 16]


def test_what_is_too_short_to_be_shared_is_not_kept() -> None:
    row = [1] * (HEAD_TOKENS - 1)
    cache = StateCache(1 << 20)
    cache.put(pack(row), states(row))
    assert cache.common(pack(row)) == cache.common(pack([*row, 1])) == 0


def test_what_is_common_may_be_asked_while_states_come_and_go() -> None:
    """The scheduler asks while the engine's thread keeps and drops: a right answer for a neighbour
    at worst, never more than the row has in common with anything."""
    cache = StateCache(40 * HEAD_TOKENS * TOKEN_BYTES)
    known, other = [1] * (2 * HEAD_TOKENS), [2] * HEAD_TOKENS
    stop = threading.Event()

    def change() -> None:
        for i in itertools.count(3):
            if stop.is_set():
                return
            row = [i % 500] * HEAD_TOKENS
            cache.put(pack(row), states(row))
            cache.put(pack(known), states(known))

    writers = [threading.Thread(target=change) for _ in range(3)]
    for writer in writers:
        writer.start()
    try:
        found = {cache.common(pack([*known, 9])) for _ in range(20_000)}
        strange = {cache.common(pack([*other, 9])) for _ in range(20_000)}
    finally:
        stop.set()
        for writer in writers:
            writer.join()
    assert found <= {0, 2 * HEAD_TOKENS} and 2 * HEAD_TOKENS in found
    assert strange <= {0, HEAD_TOKENS}
    assert cache._sorted == sorted(cache._entries)
    assert cache._bytes == sum(len(row) // ITEM * TOKEN_BYTES for row in cache._entries)


@pytest.mark.parametrize("system_prompt", [0, 100], ids=["apart", "one system prompt"])
def test_ten_thousand_prompts_do_not_make_the_next_one_slow(system_prompt: int) -> None:
    """Against a hundred. An index made anew with every prompt took 98 times as long, a list of the
    keys copied with every one 5 times, and moving its end up by one place, as now, 1.5 to 2."""

    def seconds(count: int) -> float:
        cache = StateCache(1 << 30)
        for i in range(count):
            row = [7] * system_prompt + [i] * HEAD_TOKENS
            cache.put(pack(row), states(row))
        laps = []
        for i in range(count, count + 50):
            row = [7] * system_prompt + [i] * HEAD_TOKENS
            made, started = states(row), time.perf_counter()
            cache.put(pack(row), made)
            cache.common(pack(row))
            laps.append(time.perf_counter() - started)
        return min(laps)

    assert seconds(10_000) < 4 * seconds(100)
