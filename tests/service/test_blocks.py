"""Packed arrays, as properties over any rows; the attention they allow is checked by hand."""

import doctest

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service import block_tree, blocks, packing
from service.block_tree import BlockTree
from service.blocks import block_tokens, bucket, row_bucket, runs, segments
from service.packing import PackedBudget
from service.prefix import MIN_SUFFIX_TOKENS, pack

SYSTEM = list(range(1000, 1050))
PROMPTS = [SYSTEM + list(range(100 * p, 100 * p + 60)) for p in (1, 2, 3)]
ROW = st.builds(
    lambda p, cut, tail: (PROMPTS[p][:cut] + tail) or [7],
    st.integers(0, 2),
    st.integers(0, 110),
    st.lists(st.integers(0, 2), max_size=40),
)
ROWS = st.lists(ROW, min_size=1, max_size=20)
SIZES = st.sampled_from([4, 8, 16])
WIDEST = 200


def _runs(rows, size, one_run=True):
    return runs([*map(pack, rows)], size, -(-WIDEST // size), one_run)


@pytest.mark.parametrize("module", [block_tree, blocks, packing])
def test_the_examples_in_the_docstrings_hold(module) -> None:
    result = doctest.testmod(module)
    assert result.failed == 0 and result.attempted > 0


@given(ROWS, SIZES, st.booleans())
def test_every_token_sees_exactly_its_row_up_to_itself(rows, size, one_run) -> None:
    """A slot holds the token that wrote it and all that this token saw: that must be the row."""
    pool: dict[int, list[int]] = {}
    answered = []
    for run in _runs(rows, size, one_run):
        feeds = run.feeds
        seen = _seen(feeds, size, pool)
        for token, row in enumerate(run.rows):
            answered.append(row)
            assert seen[feeds["last_index"][token]] == rows[row]
    assert sorted(answered) == list(range(len(rows)))


def _seen(feeds, size: int, pool: dict[int, list[int]]) -> list[list[int]]:
    """For every token of a run, the ids it attends to. What is read must have been written,
    in this run or before it."""
    ids, cumulative = feeds["input_ids"], feeds["cumulative_sequence_length"]
    seen: list[list[int]] = []
    for i, past in enumerate(feeds["past_seqlens"]):
        table = feeds["block_table"][i]

        def slot(place: int, table=table) -> int:
            return int(table[place // size]) * size + place % size

        history = [pool[slot(place)] for place in range(past)]
        sees = list(history[-1]) if past else []
        assert history == [sees[: place + 1] for place in range(past)]
        for token in range(cumulative[i], cumulative[i + 1]):
            place = len(sees)
            sees = [*sees, int(ids[token])]
            seen.append(sees)
            assert feeds["position_ids"][token] == place
            if feeds["slot_mapping"][token] >= 0:
                assert feeds["slot_mapping"][token] == slot(place) not in pool
                pool[slot(place)] = sees
            assert pool[slot(place)] == sees, "read before it is written"
    return seen


@given(ROWS, SIZES)
def test_no_slot_is_written_twice_and_padding_writes_none(rows, size) -> None:
    (run,) = _runs(rows, size)
    slots = run.feeds["slot_mapping"]
    real = slots[slots >= 0]
    tree = BlockTree(size)
    for row in rows:
        tree.add(pack(row))
    assert len(set(real)) == len(real) == tree.tokens
    assert (slots[tree.tokens :] == -1).all() and len(slots) == bucket(tree.tokens)
    assert real.max() // size + 1 == len(set(real // size)) == tree.blocks


@given(ROWS, SIZES)
def test_distinct_tokens_are_computed_once_but_for_part_of_a_block(rows, size) -> None:
    """Counted as a set of beginnings: whole blocks once, what follows them with each row."""
    whole = {
        tuple(row[: (i + 1) * size])
        for row in rows
        for i in range(max(0, len(row) - MIN_SUFFIX_TOKENS) // size)
    }
    rest = sum(len(row) - max(0, len(row) - MIN_SUFFIX_TOKENS) // size * size for row in rows)
    assert sum(part.stop - part.start for part in segments([*map(pack, rows)], size)) == (
        len(whole) * size + rest
    )


@given(ROWS, SIZES)
def test_a_runs_bounds_hold_and_its_shapes_are_few(rows, size) -> None:
    for run in _runs(rows, size, one_run=False):
        feeds = run.feeds
        lengths = np.diff(feeds["cumulative_sequence_length"])
        most_new, most = feeds["attention_metadata"]
        assert lengths.max() <= most_new and (lengths + feeds["past_seqlens"]).max() <= most
        assert most <= feeds["block_table"].size // len(lengths) * size
        count, tokens = len(lengths), len(feeds["input_ids"])
        assert count == row_bucket(count) == len(feeds["last_index"]) == len(feeds["block_table"])
        assert tokens == bucket(tokens)


@given(st.integers(1, 100_000))
def test_a_bucket_wastes_at_most_a_fifth_and_is_its_own(tokens) -> None:
    size = bucket(tokens)
    assert tokens <= size == bucket(size)
    assert size - tokens < max(64, size / 5)


def test_three_levels_are_three_segments_deep() -> None:
    """A system prompt of 2 blocks, prompts of 3 more, 4 responses each, with tails of their own."""
    system = [1] * 8
    prompts = [[*system, *[p] * 12] for p in (2, 3)]
    rows = [[*prompt, r, r, r] for prompt in prompts for r in range(4, 8)]
    parts = segments([*map(pack, rows)], 4)
    assert [part.level for part in parts].count(0) == 1
    assert [(part.start, part.stop) for part in parts if part.level == 1] == [(8, 20)] * 2
    assert [(part.start, part.stop) for part in parts if part.level == 2] == [(20, 23)] * 8
    assert len(_runs(rows, 4, one_run=False)) == 3 and len(_runs(rows, 4)) == 1
    assert sum(part.stop - part.start for part in parts) == 8 + 2 * 12 + 8 * 3


@pytest.mark.parametrize("extra", [-1, 0, 1, 2, 3])
def test_a_prefix_is_floored_to_a_block_and_its_tail_repeated(extra: int) -> None:
    prompt = list(range(8 + extra))
    rows = [[*prompt, 90 + i, 5] for i in range(3)]
    shared = (8 + extra) // 4 * 4
    head, *own = segments([*map(pack, rows)], 4)
    assert (head.start, head.stop, head.last) == (0, shared, False)
    assert [(part.start, part.stop) for part in own] == [(shared, 10 + extra)] * 3
    assert {part.table[: shared // 4] for part in own} == {head.table}


@pytest.mark.parametrize(("head_dim", "expected"), [(64, 256), (96, 128), (128, 128), (256, 64)])
def test_blocks_are_what_flash_attention_reads_in_place(head_dim: int, expected: int) -> None:
    assert block_tokens(head_dim) == expected


BUDGETS = st.builds(PackedBudget, st.integers(1, 600), st.integers(1, 60), SIZES)


@given(ROWS, BUDGETS, st.data())
def test_a_packed_batch_holds_the_seed_once_and_keeps_its_budget(rows, budget, data) -> None:
    seed = data.draw(st.integers(0, len(rows) - 1))
    packed = [*map(pack, rows)]
    planned = budget.plan(packed, seed)
    assert planned.rows[0] == seed and len(set(planned.rows)) == len(planned.rows)
    parts = segments([packed[i] for i in planned.rows], budget.block_tokens)
    computed = sum(part.stop - part.start for part in parts)
    if len(planned.rows) > 1:
        assert computed <= budget.tokens
        assert len({block for part in parts for block in part.table}) <= budget.blocks
    answered = sum(len(rows[i]) for i in planned.rows)
    assert planned.computed_tokens == bucket(computed)
    assert planned.shared_tokens == answered - computed


@given(ROWS, BUDGETS)
def test_a_row_is_left_out_only_where_it_does_not_fit(rows, budget) -> None:
    packed = [*map(pack, rows)]
    planned = budget.plan(packed, 0)
    tree = BlockTree(budget.block_tokens)
    for i in planned.rows:
        tree.add(packed[i])
    for i in set(range(len(rows))) - set(planned.rows):
        tokens, blocks = tree.cost(packed[i])
        # with all of the batch there, it would cost no more than when it was its turn
        assert tree.tokens + tokens > budget.tokens or tree.blocks + blocks > budget.blocks


@given(ROWS, BUDGETS)
def test_taking_packed_batches_until_nothing_waits_runs_every_row_once(rows, budget) -> None:
    waiting, done = list(range(len(rows))), []
    while waiting:
        batch = [waiting[i] for i in budget.plan([pack(rows[i]) for i in waiting], 0).rows]
        assert waiting[0] in batch
        done += batch
        waiting = [i for i in waiting if i not in batch]
    assert sorted(done) == list(range(len(rows)))


def test_the_seeds_group_comes_first_then_others_by_age_and_group() -> None:
    """Groups a, b, c interleaved; room for all of a and b; the seed is of b."""
    groups = [[p] * 16 for p in (1, 2, 3)]
    rows = [pack([*groups[i % 3], 50 + i, 5]) for i in range(12)]
    budget = PackedBudget(tokens=2 * (16 + 4 * 2), blocks=99, block_tokens=16)
    assert budget.plan(rows, seed=4).rows == [4, 1, 7, 10, 0, 3, 6, 9]


def test_a_divided_packed_budget_still_runs_a_row() -> None:
    small = PackedBudget(100, 10, 16).divided(64)
    assert (small.tokens, small.blocks) == (1, 1)
    assert small.plan([pack([1, 2, 3])] * 4, 0).rows == [0]


@given(ROW, SIZES)
def test_rows_that_are_the_same_share_all_but_their_last_tokens(row, size) -> None:
    tree = BlockTree(size)
    first, second = tree.add(pack(row)), tree.add(pack(row))
    assert first[0] == len(row)
    assert second[0] == len(row) - max(0, len(row) - MIN_SUFFIX_TOKENS) // size * size
