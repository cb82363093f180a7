"""The planner and the prefixes, as properties over any waiting line."""

import doctest

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from service import planner, prefix
from service.planner import MIN_TOKENS, Budget, plan
from service.prefix import (
    HEAD_TOKENS,
    MIN_SUFFIX_TOKENS,
    Beginnings,
    Costs,
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
BUDGETS = st.builds(
    Budget,
    st.integers(1, 3000),
    st.floats(0, 0.9),
    st.one_of(st.just(1 << 40), st.integers(1, 9000)),
)
COSTS = st.builds(Costs, st.floats(0, 2000), st.floats(0, 1))


@pytest.mark.parametrize("module", [planner, prefix])
def test_the_examples_in_the_docstrings_hold(module) -> None:
    result = doctest.testmod(module)
    assert result.failed == 0 and result.attempted > 0


@given(ROWS, BUDGETS, COSTS, st.data())
def test_the_seed_is_in_no_row_is_twice_and_the_budgets_hold(rows, budget, costs, data) -> None:
    seed = data.draw(st.integers(0, len(rows) - 1))
    planned = plan([*map(pack, rows)], seed, budget, costs=costs)
    assert planned.rows[0] == seed and len(set(planned.rows)) == len(planned.rows)
    prefix, prefixes = planned.prefix_tokens, planned.prefixes
    assert len({tuple(rows[i][:prefix]) for i in planned.rows}) == prefixes or not prefix
    if len(planned.rows) > 1:
        lengths = [len(rows[i]) for i in planned.rows]
        columns = max(MIN_TOKENS, max(lengths) - prefix)
        size = prefix * prefixes + columns * len(lengths)
        real = sum(lengths) - prefix * (len(lengths) - prefixes)
        assert (planned.computed_tokens, planned.shared_tokens) == (size, sum(lengths) - real)
        assert size - prefix * prefixes <= budget.padded_tokens
        assert prefix * prefixes <= max(prefix, budget.padded_tokens)
        assert size - real <= budget.padding * size
        assert (prefix + columns) * len(lengths) <= budget.state_tokens


@given(ROWS, BUDGETS, st.integers(0, 220), COSTS)
def test_a_planned_prefix_leaves_two_tokens_and_is_shared(rows, budget, cached, costs) -> None:
    cached = min(cached, max(0, len(rows[0]) - MIN_SUFFIX_TOKENS))
    planned = plan([*map(pack, rows)], 0, budget, cached, costs)
    tokens = planned.prefix_tokens
    if tokens:
        assert all(len(rows[i]) >= tokens + MIN_SUFFIX_TOKENS for i in planned.rows)
        assert planned.prefixes < len(planned.rows) or cached


@given(ROWS, BUDGETS, COSTS)
def test_a_prefix_never_makes_a_batch_dearer_than_none(rows, budget, costs) -> None:
    """Tokens answered per cost, against the batch that is planned where nothing is shared."""
    planned = plan([*map(pack, rows)], 0, budget, costs=costs)
    apart = [[1000 * i + 5] * len(row) for i, row in enumerate(rows)]
    without = plan([*map(pack, apart)], 0, budget, costs=costs)

    def rate(plan) -> float:
        lengths = [len(rows[i]) for i in plan.rows]
        columns = max(MIN_TOKENS, max(lengths) - plan.prefix_tokens)
        computed = plan.prefix_tokens * plan.prefixes
        return sum(lengths) / costs.batch(len(lengths), columns, plan.prefix_tokens, computed)

    assert rate(planned) >= rate(without) * (1 - 1e-9)


@given(ROWS, BUDGETS)
def test_taking_batches_until_nothing_waits_runs_every_row_once(rows, budget) -> None:
    waiting, done = list(range(len(rows))), []
    while waiting:
        batch = [waiting[i] for i in plan([pack(rows[i]) for i in waiting], 0, budget).rows]
        assert waiting[0] in batch
        done += batch
        waiting = [i for i in waiting if i not in batch]
    assert sorted(done) == list(range(len(rows)))


@given(st.integers(MIN_TOKENS, 50), st.integers(1, 40))
def test_equal_lengths_fill_the_budget_oldest_first(length, count) -> None:
    rows = [[1000 * i + j for j in range(length)] for i in range(count)]
    budget = Budget(padded_tokens=length * 10, padding=0.0)
    assert sorted(plan([*map(pack, rows)], 0, budget).rows) == list(range(min(count, 10)))


def test_padding_ends_a_batch_where_another_run_is_cheaper() -> None:
    rows = [pack([1000 * i + j for j in range(100 if i < 8 else 130)]) for i in range(16)]
    assert plan(rows, 0, Budget(1 << 20, 0.9), costs=Costs(run_tokens=20)).rows == [*range(8)]
    assert len(plan(rows, 0, Budget(1 << 20, 0.9), costs=Costs(run_tokens=2000)).rows) == 16


def test_of_two_levels_the_one_that_saves_more_is_taken() -> None:
    system = list(range(60))
    prompts = [system + [1000 * p + i for i in range(300)] for p in range(1, 4)]
    group = [[*prompts[0], 7, i, 9] for i in range(8)]
    others = [[*prompt, 7, 8] for prompt in prompts[1:]]
    budget = Budget(4096, 0.15)
    first = plan([pack(row) for row in (*group, *others)], 0, budget)
    assert (first.prefix_tokens, sorted(first.rows)) == (361, [*range(8)])
    singles = [[*system, *range(1000 * i, 1000 * i + 30)] for i in range(1, 9)]
    assert plan([*map(pack, singles)], 0, budget).prefix_tokens == 60


def test_pairs_of_many_prompts_share_in_one_batch() -> None:
    """Chosen and rejected of 12 conversations of 150 to 161 tokens."""
    rows = [
        pack([1000 * p] * (150 + p) + [90_000 + 2 * p + side] * (30 + 3 * side))
        for p in range(12)
        for side in (0, 1)
    ]
    planned = plan(rows, 0, Budget(4096, 0.15))
    assert planned.prefix_tokens >= 140 and len(planned.rows) >= 12
    assert planned.prefixes == len(planned.rows) // 2


@pytest.mark.parametrize("waiting", [64, 256, 1024])
def test_a_long_line_does_not_hide_a_group(waiting: int) -> None:
    """A system prompt of 40 tokens common to all, prompts of 500, groups of 16 times 128."""
    system = list(range(40))
    rows = [
        pack([*system, *range(1000 * p, 1000 * p + 460), *range(90_000 + r, 90_128 + r)])
        for p in range(waiting // 16)
        for r in range(16)
    ]
    planned = plan(rows, 0, Budget(padded_tokens=4096, padding=0.15))
    assert planned.prefix_tokens == 500
    assert len(planned.rows) / planned.prefixes == 16


@pytest.mark.parametrize(("prompt", "prompts"), [(2048, 1), (700, 2), (500, 4)])
def test_rows_of_long_prompts_go_together_among_many_prompts(prompt: int, prompts: int) -> None:
    """8 rows of each of 8 prompts, lengths mixed: the batch has as many prompts as fit into it."""
    random = np.random.default_rng(0)
    rows = [
        pack([*range(10_000 * p, 10_000 * p + prompt), r, *range(90_000, 90_000 + tokens)])
        for p in range(1, 9)
        for r, tokens in enumerate(random.integers(100, 160, 8))
    ]
    planned = plan(rows, 0, Budget(padded_tokens=2048, padding=0.15))
    assert planned.prefix_tokens == prompt
    assert planned.prefixes <= prompts
    assert len(planned.rows) >= 4 * planned.prefixes, planned


def test_a_prefix_shorter_than_a_head_is_never_shared() -> None:
    assert plan([pack([5, 6, 7])] * 200, 0, Budget(4096, 0.15)).prefix_tokens == 0


@given(ROW, ROW)
def test_common_tokens_is_the_longest_common_start(first, second) -> None:
    tokens = common_tokens(pack(first), pack(second))
    assert first[:tokens] == second[:tokens]
    assert tokens in (len(first), len(second)) or first[tokens] != second[tokens]


@given(st.integers(2, 60), st.integers(HEAD_TOKENS, 150), COSTS)
def test_a_prefix_is_shared_exactly_where_that_is_cheaper(count, tokens, costs) -> None:
    """Against the cost of both ways, counted by hand."""
    rows = [pack([*range(tokens), 1000 + i, 7, 8]) for i in range(count)]
    apart = costs.run_tokens + count * (tokens + 3)
    behind = count * (3 + costs.past_token * tokens)
    together = 2 * costs.run_tokens + tokens + behind
    planned = plan(rows, 0, Budget(1 << 30, 0.0), costs=costs)
    assume(abs(apart - together) > 1e-6 * apart)  # a tie may go either way
    assert (planned.prefix_tokens == tokens) == (together < apart)


def test_kept_states_make_a_prefix_cheaper() -> None:
    rows = [pack([*range(100), 1000 + i, 7, 8]) for i in range(2)]
    costs = Costs(run_tokens=90, past_token=0.01)
    assert plan(rows, 0, Budget(4096, 0.1), 0, costs).prefix_tokens == 100
    costs = Costs(run_tokens=110, past_token=0.01)
    assert plan(rows, 0, Budget(4096, 0.1), 0, costs).prefix_tokens == 0
    assert plan(rows, 0, Budget(4096, 0.1), 100, costs).prefix_tokens == 100
    assert plan(rows[:1], 0, Budget(4096, 0.1), 100, costs).prefix_tokens == 100


def test_a_divided_budget_still_runs_a_row() -> None:
    small = Budget(100, 0.1, 50).divided(64)
    assert (small.padded_tokens, small.state_tokens) == (1, 1)
    assert plan([pack([1, 2, 3])] * 4, 0, small).rows == [0]


@given(ROWS)
def test_beginnings_are_those_of_every_two_rows(rows) -> None:
    """But for two tokens, where a row that ends early stands between."""
    packed = [*map(pack, rows)]
    beginnings = Beginnings(packed)
    for i, row in enumerate(packed):
        others = [shareable_tokens(row, other) for j, other in enumerate(packed) if j != i]
        most = sorted(others, reverse=True)
        found = [*beginnings.shared_with(i), *[0] * len(rows)]
        for truth, here in zip(most, found, strict=False):
            assert here <= truth
            assert here >= truth - MIN_SUFFIX_TOKENS or truth < HEAD_TOKENS + MIN_SUFFIX_TOKENS
        assert beginnings.longest()[i] == found[0]
        for tokens in set(found) - {0}:
            assert beginnings.groups(tokens)[i] is not None


def test_an_engine_that_shares_nothing_is_given_no_prefix() -> None:
    rows = [pack([7] * 400 + [i, i]) for i in range(6)]
    shared = plan(rows, 0, Budget(padded_tokens=4000, padding=0.5))
    alone = plan(rows, 0, Budget(padded_tokens=4000, padding=0.5, share_prefixes=False))
    assert shared.prefix_tokens == 400 and alone.prefix_tokens == 0
    assert len(alone.rows) * 402 <= 4000
