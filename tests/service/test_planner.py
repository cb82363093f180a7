"""The planner, as properties over any waiting line."""

import doctest

from hypothesis import given
from hypothesis import strategies as st

from service import planner
from service.planner import MIN_TOKENS, Budget, padded_tokens, plan

LENGTHS = st.lists(st.integers(1, 300), min_size=1, max_size=60)
BUDGETS = st.builds(Budget, st.integers(1, 2000), st.floats(0, 0.9))


def test_the_example_in_the_docstring_holds() -> None:
    assert doctest.testmod(planner).failed == 0


@given(LENGTHS, BUDGETS, st.data())
def test_the_seed_is_in_no_row_is_twice_and_the_budget_holds(lengths, budget, data) -> None:
    seed = data.draw(st.integers(0, len(lengths) - 1))
    batch = plan(lengths, seed, budget)
    assert batch[0] == seed and len(set(batch)) == len(batch)
    if len(batch) > 1:
        chosen = [lengths[i] for i in batch]
        size = padded_tokens(chosen)
        assert size <= budget.padded_tokens
        assert size - sum(chosen) <= budget.padding * size


@given(LENGTHS, BUDGETS)
def test_taking_batches_until_nothing_waits_runs_every_row_once(lengths, budget) -> None:
    waiting, done = list(range(len(lengths))), []
    while waiting:
        batch = [waiting[i] for i in plan([lengths[i] for i in waiting], 0, budget)]
        assert waiting[0] in batch
        done += batch
        waiting = [i for i in waiting if i not in batch]
    assert sorted(done) == list(range(len(lengths)))


@given(st.integers(MIN_TOKENS, 50), st.integers(1, 40))
def test_equal_rows_fill_the_budget_oldest_first(length, rows) -> None:
    budget = Budget(padded_tokens=length * 10, padding=0.0)
    assert sorted(plan([length] * rows, 0, budget)) == list(range(min(rows, 10)))
