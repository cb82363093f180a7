"""Every series, declared once, and the recorder that collects them. Knows neither Ray nor us.

Recording is a dictionary update; whoever publishes drains the recorder now and then. Ray exports a
series as `ray_<name>`, a counter as `ray_<name>_total`.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Literal

Labels = tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Series:
    """Known by its identity, which is quicker to look up than by all of its fields."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 120)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)

REQUESTS = Series("reward_requests", "counter", "Requests by route and code.", ("route", "code"))
ERRORS = Series("reward_errors", "counter", "Refused or failed requests by error code.", ("error",))
ROWS = Series("reward_rows", "counter", "Pairs scored.", ("bundle",))
TOKENS = Series("reward_tokens", "counter", "Tokens of pairs that ran, without padding.")
SHARED = Series(
    "reward_shared_tokens", "counter", "Of those, tokens that another row's prefix saved."
)
PADDING = Series("reward_padding_tokens", "counter", "Tokens of padding computed beside them.")
BATCH_ROWS = Series("reward_batch_rows", "histogram", "Pairs per engine run.", (), _ROWS)
DROPPED = Series(
    "reward_dropped_rows",
    "counter",
    "Pairs that never reached the engine: their caller left, or their deadline passed.",
    ("reason",),
)
REUSED = Series(
    "reward_reused_rows",
    "counter",
    "Pairs answered without a run of their own: the same pair was `in_flight` or in `score_cache`.",
    ("where",),
)
SHORTAGES = Series(
    "reward_memory_shortages",
    "counter",
    "Engine runs that ran out of memory and were made smaller.",
)
QUEUE_ROWS = Series("reward_queue_rows", "gauge", "Pairs waiting for the engine.")
QUEUE_TOKENS = Series("reward_queue_tokens", "gauge", "Tokens waiting for or in the engine.")
QUEUE_WAIT = Series(
    "reward_queue_wait_seconds", "histogram", "From queued to the first batch.", (), _SECONDS
)
TOKENIZE = Series(
    "reward_tokenize_seconds", "histogram", "Template and tokenizer, per request.", (), _SECONDS
)
ENGINE = Series("reward_engine_seconds", "histogram", "One engine run.", (), _SECONDS)
# A Ray Histogram takes no boundary at or below 0 and makes its sum of bucket middles, so the
# distribution of a reward is counters: cumulative buckets, and the two parts of the sum. All are
# there from the first reward: histogram_quantile takes 0 for the end of a bucket that is missing,
# and a difference of two series needs both.
REWARD_BUCKET = Series(
    "reward_distribution_bucket", "counter", "Rewards at or below `le`.", ("bundle", "le")
)
REWARD_POSITIVE = Series(
    "reward_distribution_positive", "counter", "Sum of the rewards above 0.", ("bundle",)
)
REWARD_NEGATIVE = Series(
    "reward_distribution_negative", "counter", "Minus the sum of the rewards below 0.", ("bundle",)
)
REWARD_BOUNDARIES = (-6, -4, -3, -2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2, 3, 4, 6)
LE = (*(f"{boundary:g}" for boundary in REWARD_BOUNDARIES), "+Inf")

SERIES = (
    *(
        REQUESTS,
        ERRORS,
        ROWS,
        TOKENS,
        SHARED,
        PADDING,
        BATCH_ROWS,
        DROPPED,
        REUSED,
        SHORTAGES,
        QUEUE_ROWS,
        QUEUE_TOKENS,
    ),
    *(QUEUE_WAIT, TOKENIZE, ENGINE, REWARD_BUCKET, REWARD_POSITIVE, REWARD_NEGATIVE),
)


@dataclass(slots=True)
class Recorder:
    """What happened since it was last drained. Used from one event loop."""

    listening: bool = True
    "False: nobody will drain it, so nothing is kept"
    added: dict[tuple[Series, Labels], float] = field(default_factory=lambda: defaultdict(float))
    watched: dict[Series, Callable[[], float]] = field(default_factory=dict)
    "gauges, which are read when they are published"
    observed: dict[tuple[Series, Labels], list[float]] = field(
        default_factory=lambda: defaultdict(list)
    )

    rewarded: dict[str, list[int]] = field(
        default_factory=lambda: defaultdict(lambda: [0] * len(LE))
    )
    "by bundle, for how many rewards each bucket is the first that holds them"

    def add(self, series: Series, value: float = 1, *labels: str) -> None:
        if self.listening:
            self.added[series, labels] += value

    def watch(self, gauge: Series, read: Callable[[], float]) -> None:
        if self.listening:
            self.watched[gauge] = read

    def observe(self, series: Series, value: float, *labels: str) -> None:
        if self.listening:
            self.observed[series, labels].append(value)

    def rewards(self, bundle: str, rewards: Iterable[float]) -> None:
        """Add rewards to their bundle's distribution."""
        if not self.listening:
            return
        counts = self.rewarded[bundle]
        positive = negative = 0.0
        for reward in rewards:
            counts[bisect_left(REWARD_BOUNDARIES, reward)] += 1
            if reward > 0:
                positive += reward
            else:
                negative -= reward
        self.added[REWARD_POSITIVE, (bundle,)] += positive
        self.added[REWARD_NEGATIVE, (bundle,)] += negative

    def drain(self) -> "Recorder":
        """Hand over what was recorded and begin anew; gauges stay watched."""
        for bundle, counts in self.rewarded.items():
            for le, count in zip(LE, accumulate(counts), strict=True):
                self.added[REWARD_BUCKET, (bundle, le)] += count
        self.rewarded.clear()
        taken = Recorder(True, self.added, self.watched, self.observed)
        self.added, self.observed = defaultdict(float), defaultdict(list)
        return taken
