"""Ragged arrays and batches, as properties over any rows; the attention they allow, by hand."""

import doctest
from collections.abc import Iterable
from itertools import permutations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from service import ragged, ragged_budget
from service.prefix import (
    HEAD_TOKENS,
    ITEM,
    MIN_SUFFIX_TOKENS,
    common_tokens,
    pack,
    shareable_tokens,
)
from service.ragged_budget import RaggedBudget

SYSTEM = list(range(1000, 1040))
PROMPTS = [SYSTEM + list(range(100 * p, 100 * p + 40)) for p in (1, 2, 3)]
ROW = st.builds(
    lambda p, cut, tail: (PROMPTS[p][:cut] + tail) or [7],
    st.integers(0, 2),
    st.integers(0, 80),
    st.lists(st.integers(0, 2), max_size=30),
)
ROWS = st.lists(ROW, min_size=1, max_size=16)


def _known(kept: list[list[int]]):
    """States of these rows, of which the arrays need nothing but their length."""

    def known(row: bytes):
        lengths = [common_tokens(row, pack(each)) for each in kept]
        most = max(lengths, default=0)
        return (most, {"": np.zeros(0)}) if most >= HEAD_TOKENS else (0, {})

    return known


def _distinct(rows: Iterable[list[int]]) -> int:
    """Tokens of these rows, those after the same beginning once."""
    return len({tuple(row[: i + 1]) for row in rows for i in range(len(row))})


def _seen(rows, run) -> list[list[int]]:
    """For every token of the run, the ids at the places that it attends to."""
    feeds = run.feeds
    past = [i for p in run.past for i in rows[p.row][p.start : p.stop]]
    ids = [*past, *feeds["input_ids"]]
    seen = []
    for start, stop, first, end in feeds["segments"]:
        assert stop - start >= MIN_SUFFIX_TOKENS  # one alone takes another matrix kernel
        shown = [int(ids[place]) for place in feeds["seen"][first:end]]
        for token in range(start, stop):
            mine = shown[: len(shown) - (stop - 1 - token)]
            assert len(mine) == feeds["position_ids"][token] + 1
            assert mine[-1] == feeds["input_ids"][token]
            seen.append(mine)
    return seen


@given(ROWS, st.lists(ROW, max_size=4), st.integers(0, 90), st.sampled_from([3, 20, 512]))
def test_every_token_sees_exactly_its_row_up_to_itself(rows, kept, prefix, chunk) -> None:
    before, ragged.CHUNK_TOKENS = ragged.CHUNK_TOKENS, chunk
    try:
        packed = [*map(pack, rows)]
        prefix = prefix if MIN_SUFFIX_TOKENS <= prefix <= len(rows[0]) - MIN_SUFFIX_TOKENS else 0
        run = ragged.run(packed, ragged.parts(packed, _known(kept), prefix))
    finally:
        ragged.CHUNK_TOKENS = before
    seen = _seen(rows, run)
    assert sorted(run.rows) == list(range(len(rows)))
    for i, row in enumerate(run.rows):
        pair, (start, stop, first, end) = run.feeds["last_index"][i], run.feeds["row_segments"][i]
        assert (start, stop) == (2 * i, 2 * i + 2)
        if len(rows[row]) == 1:  # the only token twice; what pads it is seen by nobody
            assert pair[0] == pair[1] and len(set(run.feeds["seen"][first:end])) == 1
            assert seen[pair[1]] == rows[row]
        else:
            assert [seen[token] for token in pair] == [rows[row][:-1], rows[row]]
            assert end - first == len(rows[row])
    ids = [i for p in run.past for i in rows[p.row][p.start : p.stop]] + [*run.feeds["input_ids"]]
    assert len(ids) == run.places
    for beginning, places in run.kept.items():
        assert [ids[place] for place in places] == np.frombuffer(beginning, np.int32).tolist()


@given(ROWS)
def test_what_rows_share_is_computed_once(rows) -> None:
    packed = [*map(pack, rows)]
    computed = len(ragged.run(packed, ragged.parts(packed, _known([]))).feeds["input_ids"])
    # every fork below HEAD_TOKENS, and the last tokens of every row, may be computed again
    most = _distinct(rows) + (HEAD_TOKENS + MIN_SUFFIX_TOKENS) * len(rows)
    assert _distinct(rows) <= computed <= most
    assert computed <= sum(max(MIN_SUFFIX_TOKENS, len(row)) for row in rows)


def test_the_first_tokens_of_the_first_row_are_kept_on_demand() -> None:
    rows = [pack(PROMPTS[0]), pack(PROMPTS[1])]
    run = ragged.run(rows, ragged.parts(rows, _known([]), 60))
    assert run.kept.keys() == {rows[0][: 60 * ITEM], rows[0][: len(SYSTEM) * ITEM]}


def test_the_examples_in_the_docstrings_hold() -> None:
    result = doctest.testmod(ragged_budget)
    assert result.failed == 0 and result.attempted > 0


BUDGETS = st.builds(RaggedBudget, st.integers(1, 400), st.integers(1, 600))


@given(ROWS, st.lists(ROW, max_size=4), BUDGETS, st.data())
def test_a_batch_stays_within_its_budget_and_holds_its_seed(rows, kept, budget, data) -> None:
    packed, known = [*map(pack, rows)], _known(kept)
    seed = data.draw(st.integers(0, len(rows) - 1))

    def cached(row: int) -> int:
        return max(0, min(known(packed[row])[0], len(rows[row]) - MIN_SUFFIX_TOKENS))

    plan = budget.plan(packed, seed, cached)
    assert plan.rows[0] == seed and len(set(plan.rows)) == len(plan.rows)
    answered = sum(len(rows[row]) for row in plan.rows)
    assert plan.computed_tokens + plan.shared_tokens == answered
    if len(plan.rows) > 1:
        assert plan.computed_tokens <= budget.tokens + max(0, plan.prefix_tokens - cached(seed))
    chosen = [packed[row] for row in plan.rows]
    width = sum(len(row) == 1 for row in map(rows.__getitem__, plan.rows))  # padded by one
    run = ragged.run(chosen, ragged.parts(chosen, known))
    assert len(plan.rows) == 1 or _distinct(rows[row] for row in plan.rows) <= budget.state_tokens
    # what a fork shares below HEAD_TOKENS more than the last one is computed with each row
    slack = HEAD_TOKENS * len(plan.rows)
    assert plan.computed_tokens <= len(run.feeds["input_ids"]) - width
    assert len(run.feeds["input_ids"]) <= plan.computed_tokens + width + slack


@given(ROWS)
def test_neighbours_tell_what_any_two_rows_share(rows) -> None:
    packed = [*map(pack, rows)]
    alike = ragged_budget._Alike(packed, lambda _: 0)
    for i, j in permutations(range(len(rows)), 2):
        assert alike.shared(i, j) == shareable_tokens(packed[i], packed[j])
        assert alike.least_cost(i) <= len(rows[i]) - alike.shared(i, j)


@given(ROWS)
def test_a_budget_that_just_holds_all_rows_takes_all(rows) -> None:
    packed = [*map(pack, rows)]
    everything = RaggedBudget(1_000_000).plan(packed, seed=0)
    needed = everything.computed_tokens
    assert sorted(everything.rows) == [*range(len(rows))]
    assert RaggedBudget(1_000_000, needed).plan(packed, seed=0) == everything
    assert len(RaggedBudget(1_000_000, needed - 1).plan(packed, seed=0).rows) < max(2, len(rows))


def test_a_group_that_does_not_fit_waits_whole_behind_the_seeds() -> None:
    """Its prompt would be computed twice, with a row of it now and with the others later."""
    rows = [[*PROMPTS[i // 2], i, i, i] for i in range(4)]
    packed = [*map(pack, rows)]
    assert RaggedBudget(tokens=6 + 40).plan(packed, seed=0).rows == [0, 1]  # one more would fit
    assert RaggedBudget(tokens=6 + 46).plan(packed, seed=0).rows == [0, 1, 2, 3]


def test_rows_behind_prompts_with_states_fill_a_batch_together() -> None:
    """None of the three prompts is computed, so none counts, whoever the seed is."""
    rows = [[*PROMPTS[i % 3], i, i, i] for i in range(12)]
    packed = [*map(pack, rows)]
    plan = RaggedBudget(tokens=12 * 3).plan(packed, 0, lambda _: len(PROMPTS[0]))
    assert sorted(plan.rows) == [*range(12)]
    assert (plan.computed_tokens, plan.shared_tokens) == (12 * 3, 12 * len(PROMPTS[0]))
