"""Padded batches and common beginnings, as properties over any waiting line."""

import doctest

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service import planner, prefix
from service.planner import PaddedBudget
from service.prefix import (
    HEAD_TOKENS,
    MIN_SUFFIX_TOKENS,
    common_tokens,
    pack,
    shareable_tokens,
)

# Rows of a few prompts, cut anywhere, with tails of their own: shared prefixes of many lengths.
PROMPTS = [[p] * 3 + list(range(100 + p, 300 + p)) for p in (1, 2, 3)]
ROW = st.builds(
    lambda p, cut, tail: PROMPTS[p][:cut] + tail,
    st.integers(0, 2),
    st.integers(1, 200),
    st.lists(st.integers(900, 903), min_size=0, max_size=60),
)
ROWS = st.lists(ROW, min_size=1, max_size=40)
BUDGETS = st.builds(PaddedBudget, st.integers(1, 3000), st.floats(0, 0.9), st.floats(0, 2000))


@pytest.mark.parametrize("module", [planner, prefix])
def test_the_examples_in_the_docstrings_hold(module) -> None:
    result = doctest.testmod(module)
    assert result.failed == 0 and result.attempted > 0


@given(ROWS, BUDGETS, st.data())
def test_the_seed_is_in_no_row_is_twice_and_the_budgets_hold(rows, budget, data) -> None:
    seed = data.draw(st.integers(0, len(rows) - 1))
    planned = budget.plan([*map(pack, rows)], seed)
    assert planned.rows[0] == seed and len(set(planned.rows)) == len(planned.rows)
    lengths = [len(rows[i]) for i in planned.rows]
    size = max(lengths) * len(lengths)
    assert (planned.computed_tokens, planned.shared_tokens, planned.prefix_tokens) == (size, 0, 0)
    if len(lengths) > 1:
        assert size <= budget.tokens
        assert size - sum(lengths) <= budget.padding * size


@given(ROWS, BUDGETS)
def test_taking_batches_until_nothing_waits_runs_every_row_once(rows, budget) -> None:
    waiting, done = list(range(len(rows))), []
    while waiting:
        batch = [waiting[i] for i in budget.plan([pack(rows[i]) for i in waiting], 0).rows]
        assert waiting[0] in batch
        done += batch
        waiting = [i for i in waiting if i not in batch]
    assert sorted(done) == list(range(len(rows)))


@given(st.integers(1, 50), st.integers(1, 40))
def test_equal_lengths_fill_the_budget_oldest_first(length, count) -> None:
    rows = [pack([i] * length) for i in range(count)]
    planned = PaddedBudget(tokens=length * 10, padding=0.0).plan(rows, 0)
    assert sorted(planned.rows) == list(range(min(count, 10)))


def test_padding_ends_a_batch_where_another_run_is_cheaper() -> None:
    rows = [pack([i] * (100 if i < 8 else 130)) for i in range(16)]
    assert PaddedBudget(1 << 20, 0.9, run_tokens=20).plan(rows, 0).rows == [*range(8)]
    assert len(PaddedBudget(1 << 20, 0.9, run_tokens=2000).plan(rows, 0).rows) == 16


def test_a_divided_budget_still_runs_a_row() -> None:
    small = PaddedBudget(50, 0.1).divided(64)
    assert small.tokens == 1
    assert small.plan([pack([1, 2, 3])] * 4, 0).rows == [0]


@given(ROW, ROW)
def test_common_tokens_is_the_longest_common_start(first, second) -> None:
    tokens = common_tokens(pack(first), pack(second))
    assert first[:tokens] == second[:tokens]
    assert tokens in (len(first), len(second)) or first[tokens] != second[tokens]


@given(ROW, ROW)
def test_what_two_rows_share_leaves_each_of_them_an_end(first, second) -> None:
    tokens = shareable_tokens(pack(first), pack(second))
    most = min(
        common_tokens(pack(first), pack(second)), min(len(first), len(second)) - MIN_SUFFIX_TOKENS
    )
    assert tokens == (most if most >= HEAD_TOKENS else 0)
