"""Which waiting rows form the next batch. Pure: packed token ids in, indices out."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from service.buckets import Buckets
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
    buckets: Buckets | None = None
    "the shapes that the engine pads to; None: to the longest row"

    def divided(self, by: int) -> "Budget":
        """A smaller batch, for an engine that is short of memory."""
        return replace(
            self,
            padded_tokens=max(1, self.padded_tokens // by),
            state_tokens=max(1, self.state_tokens // by),
        )

    @property
    def full_tokens(self) -> int:
        return self.padded_tokens

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
    computed_tokens: int = 0
    "that the engine computes for them, padding included"
    shared_tokens: int = 0
    "that it need not compute, because rows of the batch share them"


class Limits(Protocol):
    """What one run may hold, and how a batch within it is planned."""

    @property
    def full_tokens(self) -> int:
        """So many waiting tokens fill a batch, but for what they share."""
        ...

    def plan(
        self, rows: Sequence[bytes], seed: int, cached_tokens: int = 0, costs: Costs = TYPICAL
    ) -> Plan:
        """The next batch, which holds `seed`; rows: packed token ids, oldest first."""
        ...

    def divided(self, by: int) -> "Limits":
        """A smaller batch, for an engine that is short of memory."""
        ...


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
    without a prefix, and with prefixes of some lengths, where only rows join that have the
    seed's, or one that another row shares. The one that answers most tokens per cost is taken, and
    not more of it than that takes: padding, to the longest row or to a bucket, ends a batch where
    one more run would be cheaper.

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
        own = [group if group == groups[seed] else None for group in groups]
        for joining in (own, groups):
            rate, planned = _fill(lengths, seed, budget, costs, prefix, joining, cached_tokens)
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
        if prefix and groups[row] not in heads:
            if heads and prefix * (len(heads) + 1) > budget.padded_tokens:
                continue  # one more prefix would not fit; rows behind those chosen may follow
            heads.add(groups[row])
        batch.append(row)
        longest = max(longest, MIN_TOKENS, lengths[row] - prefix)
        answered += lengths[row]
        size = longest * len(batch)
        computed_size = _computed(len(batch), longest, budget.buckets)
        waste = size - (answered - prefix * len(batch))
        if len(batch) > 1 and (
            computed_size > budget.padded_tokens
            or waste > budget.padding * (size + prefix * len(heads))
            or (prefix + longest) * len(batch) > budget.state_tokens
        ):
            break
        kept = min(prefix, cached_tokens) if len(heads) <= 1 or prefix <= cached_tokens else 0
        computed = prefix * len(heads) - kept
        cost = costs.batch(len(batch), longest, prefix, computed) + computed_size - size
        rate = answered / cost
        if rate > best_rate:
            shared = prefix * (len(batch) - len(heads))
            own = prefix * len(heads) + computed_size
            best_rate, best = rate, Plan(batch[:], prefix, len(heads), own, shared)
    return best_rate, best


def _computed(rows: int, longest: int, buckets: Buckets | None) -> int:
    """Tokens that a run over so many rows of up to `longest` tokens computes, past apart."""
    return buckets.padded_tokens(rows, longest) if buckets else rows * longest


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
    order = sorted(members, key=size.__getitem__)  # stable: the older first among equals
    first = order.index(seed)
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
    families: dict[int, list[int]] = {}
    for i in members:
        if (group := groups[i]) is not None:
            families.setdefault(group, []).append(i)
    size = list(lengths)
    for family in families.values():
        if len(family) <= FAMILY_ROWS:
            longest = max(lengths[i] for i in family)
            for i in family:
                size[i] = longest
    return size
