"""The work that is counted is that of a trie, node by node."""

from hypothesis import given
from hypothesis import strategies as st

from loadtests.bench.roofline import Work, distinct
from service.manifest import Architecture

ROWS = st.lists(st.lists(st.integers(0, 2), max_size=8), max_size=8)
"three token ids, so that prefixes of every depth are shared"


@given(ROWS)
def test_every_distinct_prefix_counts_once_with_all_tokens_before_it(rows: list[list[int]]) -> None:
    prefixes = {tuple(row[:end]) for row in rows for end in range(1, len(row) + 1)}
    unique = set(map(tuple, rows))
    assert distinct(rows) == Work(
        len(prefixes), sum(map(len, prefixes)), len(unique), sum(map(len, unique))
    )


def test_flop_of_a_group_by_hand() -> None:
    """2 layers, width 2 x 4, 100 parameters of which 10 x 3 embed: 70 in linear layers."""
    sizes = Architecture(
        kind="causal",
        family="qwen3",
        layers=2,
        hidden_size=3,
        heads=2,
        kv_heads=1,
        head_dim=4,
        vocab_size=10,
        parameters=100,
    )
    # prompt 0 1 2, responses 3 and 4 5: 6 tokens; keys seen: 1 + 2 + 3, 4, 4 + 5
    work = distinct([[0, 1, 2, 3], [0, 1, 2, 4, 5]])
    assert work == Work(6, 19, rows=2, read=9)
    assert work.flop(sizes) == 2 * 70 * 6 + 4 * 2 * 8 * 19
    # of the last layer's 35 parameters, 2 x 3 x 4 make keys and values for all 6 tokens
    linear = 35 * 6 + 24 * 6 + 11 * 2
    assert work.pruned_flop(sizes) == 2 * linear + 4 * 8 * (19 + 9)


def test_a_group_costs_what_the_bound_of_a_shared_prefix_says() -> None:
    """G(P+R) / (P+GR) for tokens: 16 responses of 128 to a prompt of 512, 4 times fewer."""
    prompt = list(range(512))
    rows = [[*prompt, *([1000 + i] * 128)] for i in range(16)]
    assert sum(map(len, rows)) / distinct(rows).tokens == 16 * (512 + 128) / (512 + 16 * 128) == 4
