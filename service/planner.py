"""Which waiting rows form the next batch; here, that of a padded engine. Pure: indices out."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from service.buckets import Buckets
from service.prefix import ITEM

RUN_TOKENS = 48.0
"of a small model on a CPU"


@dataclass(frozen=True, slots=True)
class Plan:
    """Rows to run together."""

    rows: list[int]
    prefix_tokens: int = 0
    "of the first row, that others go on from"
    computed_tokens: int = 0
    "that the engine computes for them, padding included"
    shared_tokens: int = 0
    "that it need not compute: rows of the batch share them, or it has their states"


class Limits(Protocol):
    """What one run may hold, and how a batch within it is planned."""

    @property
    def full_tokens(self) -> int:
        """So many waiting tokens fill a batch, but for what they share."""
        ...

    def plan(
        self, rows: Sequence[bytes], seed: int, cached_tokens: Callable[[int], int] = lambda _: 0
    ) -> Plan:
        """The next batch, which holds `seed`.

        rows: packed token ids of every waiting row, oldest first; cached_tokens: how many of a
        row's first tokens the engine still has states of.
        """
        ...

    def divided(self, by: int) -> "Limits":
        """A smaller batch, for an engine that is short of memory."""
        ...


@dataclass(frozen=True, slots=True)
class PaddedBudget:
    """What one run may hold of rows that are padded, to the longest of them or to a bucket.

    Such an engine computes every row in full, whatever rows share.
    """

    tokens: int
    "padding included"
    padding: float
    "share of padding among the tokens"
    run_tokens: float = RUN_TOKENS
    """A run takes as long as computing so many tokens, whatever is in it. Decides how fast rewards
    come, never which."""
    buckets: Buckets | None = None
    "the shapes that the engine pads to; None: to the longest row"

    @property
    def full_tokens(self) -> int:
        return self.tokens

    def divided(self, by: int) -> "PaddedBudget":
        return replace(self, tokens=max(1, self.tokens // by))

    def plan(
        self, rows: Sequence[bytes], seed: int, cached_tokens: Callable[[int], int] = lambda _: 0
    ) -> Plan:
        """The next batch. Rows join by nearness in length to those already there, the older first
        among equals, while it stays within the budget. Of those batches the one that answers most
        tokens in its time is taken: padding ends a batch where one more run would be cheaper.

        >>> from service.prefix import pack
        >>> rows = [pack([7] * n) for n in (10, 50, 11, 9, 52)]
        >>> PaddedBudget(tokens=40, padding=0.2).plan(rows, seed=0).rows
        [0, 3, 2]
        """
        lengths = [len(row) // ITEM for row in rows]
        batch: list[int] = []
        best_rate, best = 0.0, Plan([seed])
        longest = answered = 0
        columns: Counter[int] = Counter()
        for row in _nearest(lengths, seed):
            batch.append(row)
            longest = max(longest, lengths[row])
            answered += lengths[row]
            columns[self._columns(lengths[row])] += 1
            size = longest * len(batch)
            computed = self.buckets.padded_tokens(columns) if self.buckets else size
            padded = size - answered > self.padding * size
            if len(batch) > 1 and (computed > self.tokens or padded):
                break
            rate = answered / (self.run_tokens + computed)
            if rate > best_rate:
                best_rate, best = rate, Plan(batch[:], computed_tokens=computed)
        return best

    def _columns(self, tokens: int) -> int:
        return self.buckets.columns(tokens) if self.buckets else tokens


def _nearest(lengths: Sequence[int], seed: int) -> Iterator[int]:
    """The seed, then the others by nearness in length to those before them."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)  # the older first among equals
    place = order.index(seed)
    yield seed
    shortest = longest = lengths[seed]
    below, above = place - 1, place + 1
    while below >= 0 or above < len(order):
        down = shortest - lengths[order[below]] if below >= 0 else None
        up = lengths[order[above]] - longest if above < len(order) else None
        if up is None or (down is not None and down <= up):
            row, below = order[below], below - 1
        else:
            row, above = order[above], above + 1
        yield row
        shortest, longest = min(shortest, lengths[row]), max(longest, lengths[row])
