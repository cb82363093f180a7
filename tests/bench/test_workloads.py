"""What is sent: the lengths it promises, the same from the same seed, the rewards it must get."""

from itertools import pairwise

import numpy as np
import pytest

from loadtests.bench import workloads
from loadtests.bench.measure import WrongReward, check
from loadtests.bench.model import words
from loadtests.bench.workloads import HH_PROMPT, HH_RESPONSE, THROUGHPUT, Writer
from service.bundle import Bundle
from service.text import Encoder

WORDS = [f"w{i}" for i in range(500)]


def _lengths(texts: list[str]) -> np.ndarray:
    return np.array([len(text.split()) for text in texts])


@pytest.mark.parametrize("name", THROUGHPUT)
def test_a_seed_gives_one_workload(name: str) -> None:
    def make(seed: int) -> workloads.Workload:
        return THROUGHPUT[name](Writer(WORDS, seed), 64)

    assert make(1) == make(1) != make(2)
    assert len(make(1).pairs) == 64


def test_a_word_is_a_token_in_the_model_that_is_measured(bundle: Bundle) -> None:
    write, encoder = Writer(words(bundle.path), 1), Encoder.of(bundle)
    base = encoder.encode(write.text(1), "")
    for tokens in (1, 2, 17, 60):
        encoded = encoder.encode(write.text(tokens), write.text(tokens))
        assert encoded.prompt_tokens == base.prompt_tokens + tokens - 1
        assert len(encoded.ids) == len(base.ids) + 2 * tokens - 1


def test_singles_have_the_lengths_of_hh_and_neighbours_share_their_prompt() -> None:
    pairs = workloads.singles(Writer(WORDS, 3), 20_000).pairs
    prompts, responses = _lengths([p.prompt for p in pairs]), _lengths([p.response for p in pairs])
    assert all(a.prompt == b.prompt for a, b in zip(pairs[::2], pairs[1::2], strict=True))
    assert len({pair.prompt for pair in pairs}) == 10_000
    # 10,000 draws: the standard error of a quantile near the median is about 1 % of the length
    for got, expected in ((prompts, HH_PROMPT), (responses, HH_RESPONSE)):
        assert np.percentile(got, [25, 50, 75]) == pytest.approx(expected[[5, 10, 15]], rel=0.06)
    # The logarithm is a straight line between percentiles: 127 and 52 tokens on average, where the
    # file has 121 and 47, since its last five percent are no such line. The standard error is 1 %.
    even = np.linspace(0, 100, 100_001)
    for got, table in ((prompts, HH_PROMPT), (responses, HH_RESPONSE)):
        drawn_from = np.expm1(np.interp(even, np.linspace(0, 100, len(table)), np.log1p(table)))
        assert got.mean() == pytest.approx(drawn_from.mean(), rel=0.04)


@pytest.mark.parametrize(
    ("name", "prompt", "responses"), [("groups", (461, 563), 16), ("long", (2048, 2048), 8)]
)
def test_groups_are_sent_one_pair_at_a_time(name: str, prompt: tuple, responses: int) -> None:
    workload = THROUGHPUT[name](Writer(WORDS, 3), 10 * responses)
    assert all(len(request) == 1 for request in workload.requests)
    pairs = workload.pairs
    changes = [a.prompt != b.prompt for a, b in pairwise(pairs)]
    assert [i + 1 for i, change in enumerate(changes) if change] == [
        *range(responses, 10 * responses, responses)
    ]
    lengths = _lengths([pair.prompt for pair in pairs])
    assert prompt[0] <= lengths.min() and lengths.max() <= prompt[1]
    of_responses = _lengths([pair.response for pair in pairs])
    assert of_responses.min() >= 96 and of_responses.max() <= 160


def test_a_part_of_a_workload_is_its_beginning() -> None:
    workload = workloads.batches(Writer(WORDS, 3), 512)
    assert [len(request) for request in workload.requests] == [32] * 16
    part = workload.first(64)
    assert part.requests == workload.requests[:2] and part.in_flight == 2


def test_one_bit_is_a_wrong_reward() -> None:
    expected = [np.array([1.5, -2.0], np.float32)]
    near = [np.nextafter(expected[0], np.float32(9), dtype=np.float32)]
    check(expected, expected, exact=True)
    check(near, expected, exact=False)  # a baseline promises no bits
    with pytest.raises(WrongReward, match="request 0"):
        check(near, expected, exact=True)
    with pytest.raises(WrongReward):
        check([expected[0] + np.float32(0.01)], expected, exact=False)
    with pytest.raises(WrongReward):
        check([expected[0][:1]], expected, exact=False)
