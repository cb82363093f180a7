"""Shapes on a GPU: few, none much larger than its rows, the same for the same row if asked for."""

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.buckets import RATIO, SHORTEST, STEP, Buckets
from service.planner import PaddedBudget
from service.prefix import pack

LIMITS = st.tuples(st.integers(1, 9000), st.integers(1, 70_000))


@given(LIMITS)
def test_lengths_grow_by_no_more_than_the_ratio_and_hold_the_longest_row(limits) -> None:
    buckets = Buckets(*limits)
    lengths = buckets.lengths
    assert lengths[0] == min(SHORTEST, limits[0]) and lengths[-1] == limits[0]
    assert all(length % STEP == 0 for length in lengths[:-1])
    assert all(a < b <= a * RATIO for a, b in pairwise(lengths))


@given(LIMITS, st.booleans(), st.data())
def test_every_row_runs_once_in_a_shape_that_was_warmed_up(limits, fixed: bool, data) -> None:
    buckets = Buckets(*limits, fixed)
    rows = st.lists(st.integers(1, limits[0]), min_size=1, max_size=40)
    lengths = data.draw(rows)
    known = set(buckets.shapes())
    seen = []
    for members, (most, columns) in buckets.runs(lengths):
        assert (most, columns) in known
        assert len(members) <= most and max(lengths[i] for i in members) <= columns
        assert most == 1 or most * columns <= limits[1]
        seen += members
    assert sorted(seen) == [*range(len(lengths))]


@given(LIMITS, st.data())
def test_a_fixed_row_has_one_shape_whatever_its_company(limits, data) -> None:
    buckets = Buckets(*limits, fixed=True)
    lengths = data.draw(st.lists(st.integers(1, limits[0]), min_size=1, max_size=40))

    def shape(company: list[int], i: int):
        return next(shape for members, shape in buckets.runs(company) if i in members)

    for i, tokens in enumerate(lengths):
        assert shape(lengths, i) == shape([tokens], 0)


@given(LIMITS, st.booleans(), st.data())
def test_what_is_counted_is_what_runs(limits, fixed: bool, data) -> None:
    buckets = Buckets(*limits, fixed)
    lengths = data.draw(st.lists(st.integers(1, limits[0]), min_size=1, max_size=40))
    counted = buckets.padded_tokens(Counter(map(buckets.columns, lengths)))
    assert counted == sum(rows * columns for _, (rows, columns) in buckets.runs(lengths))


def test_an_invariant_batch_stays_within_its_budget_whatever_its_lengths() -> None:
    """Rows of other columns run in shapes of their own, each as large as the budget."""
    budget = PaddedBudget(2048, padding=0.3, buckets=Buckets(512, 2048, fixed=True))
    lengths = [46, 47, 52, 55, 60, 64, 66]
    rows, waiting = [pack([7] * n) for n in lengths], [*range(len(lengths))]
    while waiting:
        plan = budget.plan([rows[i] for i in waiting], 0)
        members = [lengths[waiting[i]] for i in plan.rows]
        runs = budget.buckets.runs(members)
        assert plan.computed_tokens == sum(r * c for _, (r, c) in runs) <= 2048
        waiting = [row for i, row in enumerate(waiting) if i not in plan.rows]


def test_the_largest_shape_comes_first_and_there_are_few() -> None:
    shapes = Buckets(max_tokens=2752, budget=16_384).shapes()
    sizes = [rows * columns for rows, columns in shapes]
    assert sizes == sorted(sizes, reverse=True)
    # 22 lengths, 512 to 4 rows: powers of two from 1 on
    assert len(shapes) == len(set(shapes)) < 150


def test_a_row_over_every_bucket_is_refused() -> None:
    with pytest.raises(ValueError, match="the buckets end at 100"):
        Buckets(max_tokens=100, budget=256).columns(101)


def test_a_batch_ends_at_a_full_bucket_where_more_would_be_padding() -> None:
    """17 rows of 64 would run as 32: 16 and another run for one row cost less than 15 of padding.
    With 31 the one that is missing costs less than another run."""
    budget = PaddedBudget(4096, 0.15, run_tokens=100, buckets=Buckets(64, 4096))
    for waiting, together in ((16, 16), (17, 16), (31, 31), (64, 64), (70, 64)):
        rows = [pack([i] * 64) for i in range(waiting)]
        assert len(budget.plan(rows, 0).rows) == together
