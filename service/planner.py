"""Which waiting rows form the next batch. Pure: packed token ids in, indices out."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from service.prefix import HEAD_TOKENS, ITEM, MIN_SUFFIX_TOKENS, TYPICAL, Beginnings, Costs

MIN_TOKENS = 2
"rows are padded to this: a run over a single token takes another matrix kernel, with other bits"
LEVELS, CUTS = 4, (0.85, 0.7)
"prefixes that are tried: of the seed's own that many, and the longest cut to these shares of it"
FAMILY_ROWS = 4
"rows of a smaller group join a batch together; a larger group is divided by length"


@dataclass(frozen=True, slots=True)
class Budget:
    """What one engine run may hold."""

    padded_tokens: int
    padding: float
    "share of padding among the padded tokens"
    state_tokens: int = 1 << 40
    "tokens whose key/value states exist at once: rows times prefix and padded suffix"
    share_prefixes: bool = True
    "False where the engine computes every row in full"

    def divided(self, by: int) -> "Budget":
        """A smaller batch, for an engine that is short of memory."""
        return replace(
            self,
            padded_tokens=max(1, self.padded_tokens // by),
            state_tokens=max(1, self.state_tokens // by),
        )

    def plan(
        self, rows: Sequence[bytes], seed: int, cached_tokens: int = 0, costs: Costs = TYPICAL
    ) -> "Plan":
        return plan(rows, seed, self, cached_tokens, costs)


@dataclass(frozen=True, slots=True)
class Plan:
    """Rows to run together behind `prefix_tokens` of past, of which there are `prefixes` kinds."""

    rows: list[int]
    prefix_tokens: int = 0
    prefixes: int = 0
    computed: tuple[int, int] | None = None
    """tokens that the engine computes, padding included, and those that it need not because rows
    share them; None: they follow from the prefix"""

    def tokens(self, lengths: Sequence[int]) -> tuple[int, int]:
        """Both, for the lengths of these rows."""
        if self.computed is not None:
            return self.computed
        shared = self.prefix_tokens * (len(lengths) - self.prefixes)
        return padded_tokens(lengths, self.prefix_tokens, self.prefixes), shared


class Limits(Protocol):
    """What one run may hold, and how a batch within it is planned."""

    def plan(
        self, rows: Sequence[bytes], seed: int, cached_tokens: int = 0, costs: Costs = TYPICAL
    ) -> Plan:
        """The next batch, which holds `seed`; rows: packed token ids, oldest first."""
        ...

    def divided(self, by: int) -> "Limits":
        """A smaller batch, for an engine that is short of memory."""
        ...


def padded_tokens(lengths: Sequence[int], prefix_tokens: int = 0, prefixes: int = 0) -> int:
    """Tokens that are computed for rows of these lengths, their prefixes once each."""
    suffix = max(MIN_TOKENS, max(lengths) - prefix_tokens)
    return prefix_tokens * prefixes + len(lengths) * suffix


def plan(
    rows: Sequence[bytes],
    seed: int,
    budget: Budget,
    cached_tokens: int = 0,
    costs: Costs = TYPICAL,
) -> Plan:
    """The next batch. It begins with `seed`, which is always in it.

    rows: packed token ids of every waiting row, oldest first; cached_tokens: how much of the seed
    the engine still has states of. Rows join by nearness in length to those already there, the
    older first among equals, while the batch stays within the budget. Several batches are tried:
    without a prefix, and with prefixes of some lengths, where only rows join whose prefix
    another row shares. The one that answers most tokens per cost is taken, and not more of it
    than that takes: padding ends a batch where one more run would be cheaper.

    >>> from service.prefix import pack
    >>> rows = [pack([7] * n) for n in (10, 50, 11, 9, 52)]
    >>> plan(rows, seed=0, budget=Budget(padded_tokens=40, padding=0.2)).rows
    [0, 3, 2]
    """
    lengths = [len(row) // ITEM for row in rows]
    best_rate, best = _fill(lengths, seed, budget, costs)
    if not budget.share_prefixes:
        return best
    beginnings = Beginnings(rows)
    for prefix in _prefixes(beginnings, seed, cached_tokens):
        groups = beginnings.groups(prefix)
        rate, planned = _fill(lengths, seed, budget, costs, prefix, groups, cached_tokens)
        if rate > best_rate:
            best_rate, best = rate, planned
    return best


def _prefixes(beginnings: Beginnings, seed: int, cached_tokens: int) -> list[int]:
    """Lengths of prefixes worth trying: those that save the seed's own rows most, or shorter ones
    at which other groups join."""
    counts = Counter(beginnings.shared_with(seed))
    saving, sharing = {}, 0
    for tokens in sorted(counts, reverse=True):
        sharing += counts[tokens]
        saving[tokens] = sharing * tokens
    levels = sorted(saving, key=lambda tokens: (-saving[tokens], -tokens))[:LEVELS]
    if levels:
        own = max(levels)
        others = sorted({t for t in beginnings.longest() if HEAD_TOKENS <= t < own}, reverse=True)
        for share in CUTS:
            levels += [t for t in others if t >= share * own][-1:]
    if cached_tokens >= HEAD_TOKENS:
        levels.append(cached_tokens)
    return list(dict.fromkeys(levels))


def _fill(
    lengths: Sequence[int],
    seed: int,
    budget: Budget,
    costs: Costs,
    prefix: int = 0,
    groups: Sequence[int | None] = (),
    cached_tokens: int = 0,
) -> tuple[float, Plan]:
    """Tokens answered per cost, and the batch that answers most. `groups` only with a prefix."""
    batch: list[int] = []
    heads: set[int | None] = set()
    best_rate, best = 0.0, Plan([seed])
    longest = answered = 0
    for row in _nearest(lengths, seed, prefix, groups):
        batch.append(row)
        if prefix:
            heads.add(groups[row])
        longest = max(longest, MIN_TOKENS, lengths[row] - prefix)
        answered += lengths[row]
        size = longest * len(batch)
        waste = size - (answered - prefix * len(batch))
        if len(batch) > 1 and (
            size > budget.padded_tokens
            or prefix * len(heads) > max(prefix, budget.padded_tokens)
            or waste > budget.padding * (size + prefix * len(heads))
            or (prefix + longest) * len(batch) > budget.state_tokens
        ):
            break
        kept = min(prefix, cached_tokens) if len(heads) <= 1 or prefix <= cached_tokens else 0
        computed = prefix * len(heads) - kept
        rate = answered / costs.batch(len(batch), longest, prefix, computed)
        if rate > best_rate:
            best_rate, best = rate, Plan(batch[:], prefix, len(heads))
    return best_rate, best


def _nearest(
    lengths: Sequence[int], seed: int, prefix: int, groups: Sequence[int | None]
) -> Iterator[int]:
    """The seed, then the others by nearness in length to those before them.

    With a prefix, only rows of groups; a small group counts as long as its longest row, so that
    its rows come together.
    """
    if not prefix:
        members, size = list(range(len(lengths))), list(lengths)
    else:
        members = [
            i
            for i, group in enumerate(groups)
            if i == seed or (group is not None and lengths[i] >= prefix + MIN_SUFFIX_TOKENS)
        ]
        size = _family_sizes(lengths, groups, members)
    order = sorted(members, key=lambda i: (size[i], i))
    first = bisect_left(order, (size[seed], seed), key=lambda i: (size[i], i))
    yield seed
    shortest = longest = size[seed]
    below, above = first - 1, first + 1
    while below >= 0 or above < len(order):
        down = shortest - size[order[below]] if below >= 0 else None
        up = size[order[above]] - longest if above < len(order) else None
        if up is None or (down is not None and down <= up):
            row, below = order[below], below - 1
        else:
            row, above = order[above], above + 1
        yield row
        shortest, longest = min(shortest, size[row]), max(longest, size[row])


def _family_sizes(
    lengths: Sequence[int], groups: Sequence[int | None], members: Sequence[int]
) -> list[int]:
    rows: dict[int | None, list[int]] = {}
    for i in members:
        rows.setdefault(groups[i], []).append(lengths[i])
    size = list(lengths)
    for i in members:
        if groups[i] is not None and len(rows[groups[i]]) <= FAMILY_ROWS:
            size[i] = max(rows[groups[i]])
    return size
