"""What the benchmark sends, from a seed. Pure: words in, requests out; knows no server.

Every word is one token and no two prompts begin alike, so lengths in tokens are exact and the only
shared prefixes are those that a workload is about (and the opening of the chat template).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from service.pairs import Pair

PERCENT = np.linspace(0, 100, 21)
HH_PROMPT = np.array(
    [7, 12, 14, 17, 21, 29, 43, 57, 69, 81, 93, 106, 119, 133, 148, 167, 190, 223, 272, 350, 842]
)
"""Tokens of a prompt of Anthropic HH (harmless-base, test split, the 2,307 records whose two sides
have the same prompt), at every fifth percentile; mean 121. Tokens of a byte-level BPE of 8,192,
trained on that file, as the benchmark's model has."""
HH_RESPONSE = np.array(
    [0, 6, 9, 11, 14, 16, 19, 22, 25, 28, 32, 36, 41, 47, 54, 61, 71, 84, 102, 134, 580]
)
"the same for its 4,614 responses; mean 47"
LONG_PROMPT = 2048
GROUP_PROMPT, GROUP_RESPONSES, RESPONSE = 512, 16, 128
LONG_RESPONSES = 8
BATCH_PAIRS = 32
BIG_POST_TEXT = 16
"words about a prompt and about a response of the big request: its 5,000 rows shall take seconds"

Request = tuple[Pair, ...]


@dataclass(frozen=True, slots=True)
class Workload:
    name: str
    requests: tuple[Request, ...]
    in_flight: int
    "requests that wait for their answer at the same time"

    @property
    def pairs(self) -> list[Pair]:
        return [pair for request in self.requests for pair in request]

    def first(self, pairs: int) -> "Workload":
        """Its first requests, with about this many pairs; what a slow system is measured on."""
        per_request = len(self.requests[0])
        count = max(1, round(pairs / per_request))
        return Workload(self.name, self.requests[:count], min(self.in_flight, count))


class Writer:
    """Texts of exactly so many tokens, from a seed."""

    def __init__(self, words: Sequence[str], *seed: int) -> None:
        self._words = np.array(words)
        self._random = np.random.default_rng(seed)

    def text(self, tokens: int) -> str:
        """`tokens` words, each with the space before it that makes it one token."""
        return "".join(" " + word for word in self._random.choice(self._words, int(tokens)))

    def of(self, percentiles: np.ndarray) -> int:
        """A length, its logarithm interpolated between the percentiles."""
        at = self._random.uniform(0, 100)
        return round(np.expm1(np.interp(at, PERCENT, np.log1p(percentiles))))

    def log_uniform(self, tokens: int) -> int:
        """From 1 to `tokens`, every order of magnitude as likely as the next."""
        return round(float(np.exp(self._random.uniform(0, np.log(tokens)))))

    def about(self, tokens: int, spread: float) -> int:
        low, high = round(tokens * (1 - spread)), round(tokens * (1 + spread))
        return int(self._random.integers(low, high + 1))


def singles(write: Writer, pairs: int) -> Workload:
    """One pair per request, lengths of HH; chosen and rejected of one prompt are neighbours."""
    return Workload("singles", tuple((pair,) for pair in _hh(write, pairs)), in_flight=64)


def batches(write: Writer, pairs: int) -> Workload:
    """The same lengths, 32 pairs per request."""
    rows = _hh(write, max(1, pairs // BATCH_PAIRS) * BATCH_PAIRS)
    requests = tuple(tuple(rows[i : i + BATCH_PAIRS]) for i in range(0, len(rows), BATCH_PAIRS))
    return Workload("batches", requests, in_flight=4)


def groups(write: Writer, pairs: int) -> Workload:
    """16 responses of about 128 tokens to every prompt of about 512, one pair per request."""
    prompts = max(1, pairs // GROUP_RESPONSES)
    rows = _groups(write, prompts, lambda: write.about(GROUP_PROMPT, 0.1), GROUP_RESPONSES)
    return Workload("groups", tuple((pair,) for pair in rows), in_flight=64)


def long(write: Writer, pairs: int) -> Workload:
    """8 responses of about 128 tokens to every prompt of 2,048, one pair per request."""
    prompts = max(1, pairs // LONG_RESPONSES)
    rows = _groups(write, prompts, lambda: LONG_PROMPT, LONG_RESPONSES)
    return Workload("long", tuple((pair,) for pair in rows), in_flight=64)


def one(write: Writer, pairs: int) -> Workload:
    """A single client that waits for every answer; singles."""
    return Workload("one", singles(write, pairs).requests, in_flight=1)


def big_post(write: Writer, pairs: int) -> Workload:
    """Many short rows of different prompts in a single request."""
    rows = tuple(
        Pair(
            write.text(write.about(BIG_POST_TEXT, 0.75)),
            write.text(write.about(BIG_POST_TEXT, 0.75)),
        )
        for _ in range(pairs)
    )
    return Workload("big post", (rows,), in_flight=1)


THROUGHPUT: dict[str, Callable[[Writer, int], Workload]] = {
    "singles": singles,
    "batches": batches,
    "groups": groups,
    "long": long,
}


def _hh(write: Writer, pairs: int) -> list[Pair]:
    rows = []
    for _ in range((pairs + 1) // 2):
        prompt = write.text(write.of(HH_PROMPT))
        rows += [Pair(prompt, write.text(write.of(HH_RESPONSE))) for _ in range(2)]
    return rows[:pairs]


def _groups(
    write: Writer, prompts: int, prompt_tokens: Callable[[], int], responses: int
) -> list[Pair]:
    rows = []
    for _ in range(prompts):
        prompt = write.text(prompt_tokens())
        rows += [Pair(prompt, write.text(write.about(RESPONSE, 0.25))) for _ in range(responses)]
    return rows
