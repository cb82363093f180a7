"""Which waiting rows a ragged engine computes next. Pure: packed token ids in, indices out."""

from bisect import bisect_left, insort
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, replace

from service.planner import Plan
from service.prefix import HEAD_TOKENS, ITEM, alike_tokens, common_tokens, shareable_tokens

PASSED_OVER = 16
"rows that do not fit, and then no more are tried"


@dataclass(frozen=True, slots=True)
class RaggedBudget:
    """What one run of a ragged engine may hold: nothing is padded, so lengths need not be alike."""

    tokens: int
    "that are computed, the prefix of the first row apart"
    state_tokens: int = 1 << 40
    "whose keys and values exist at once"

    @property
    def full_tokens(self) -> int:
        return self.tokens

    def divided(self, by: int) -> "RaggedBudget":
        return replace(
            self, tokens=max(1, self.tokens // by), state_tokens=max(1, self.state_tokens // by)
        )

    def plan(
        self, rows: Sequence[bytes], seed: int, cached_tokens: Callable[[int], int] = lambda _: 0
    ) -> Plan:
        """The next batch: `seed`, the rows that share most with it, then the others, the oldest
        first, as far as the budget goes.

        rows: packed token ids of every waiting row, oldest first. cached_tokens: how many of a
        row's first tokens the engine has states of, and need not compute. The prefix is what the
        seed shares with another one, or has states of; as it is computed at most once, however many
        rows it serves, it does not count. The seed is always in the batch, another row only
        together with the one that it shares most with, so that neither computes alone what both
        need.

        >>> from service.prefix import pack
        >>> a, b = [1] * 20, [2] * 20
        >>> rows = [pack(row) for row in ([*a, 5, 5], [*b, 6, 6], [*a, 7, 7], [*b, 8, 8])]
        >>> RaggedBudget(tokens=28).plan(rows, seed=0).rows
        [0, 2, 1, 3]
        >>> RaggedBudget(tokens=27).plan(rows, seed=0).rows
        [0, 2]
        """
        alike = _Alike(rows, cached_tokens)
        family, cached = alike.family(seed), alike.cached(seed)
        prefix = max(cached, alike.shared(seed, family[0]) if family else 0)
        prefix = prefix if prefix >= HEAD_TOKENS else 0
        batch = _Batch(alike, self.tokens + max(0, prefix - cached), self.state_tokens)
        batch.add(seed)
        for queue, together in ((family, False), (range(len(rows)), True)):
            passed = 0
            for row in queue:
                if row not in batch and not batch.take(row, together):
                    passed += 1
                if passed == PASSED_OVER:
                    break
        answered = sum(len(rows[row]) // ITEM for row in batch.rows)
        return Plan(batch.rows, prefix, batch.tokens, shared_tokens=answered - batch.tokens)


class _Alike:
    """Rows in the order of their bytes, where those that begin alike stand together."""

    def __init__(self, rows: Sequence[bytes], cached_tokens: Callable[[int], int]) -> None:
        self._rows, self._cached_tokens = rows, cached_tokens
        self._cached: dict[int, int] = {}
        self.order = sorted(range(len(rows)), key=rows.__getitem__)
        self.place = {row: place for place, row in enumerate(self.order)}
        self._common: list[int | None] = [None] * len(rows)
        "of the rows at each place and the next, once it was asked for; 0: their heads differ"

    def length(self, row: int) -> int:
        return len(self._rows[row]) // ITEM

    def cached(self, row: int) -> int:
        """Tokens of the row that are never computed; asked for once."""
        if (known := self._cached.get(row)) is None:
            known = self._cached[row] = self._cached_tokens(row)
        return known

    def shared(self, first: int, second: int) -> int:
        low, high = sorted((self.place[first], self.place[second]))
        common = self._next(low) if high - low == 1 else None
        return shareable_tokens(self._rows[first], self._rows[second], common)

    def least_cost(self, row: int) -> int:
        """Tokens that the row adds to any batch: no row has more in common with it than the two
        beside it."""
        place, last = self.place[row], len(self.order) - 1
        before = self._next(place - 1) if place else 0
        after = self._next(place) if place < last else 0
        return self.length(row) - max(before, after, self.cached(row))

    def family(self, row: int) -> list[int]:
        """Rows that share something with this one, the most first, the older first among equals."""
        mine, found = self._rows[row], list[tuple[int, int]]()
        head = HEAD_TOKENS * ITEM
        for side in (-1, 1):
            place, common = self.place[row] + side, len(mine) // ITEM
            while 0 <= place < len(self.order):
                other = self.order[place]
                theirs = self._rows[other]
                if theirs[:head] != mine[:head]:
                    break
                # further away in this order, no more is shared
                if theirs[: common * ITEM] != mine[: common * ITEM]:
                    common = common_tokens(mine, theirs)
                if tokens := shareable_tokens(mine, theirs, common):
                    found.append((-tokens, other))
                place += side
        return [other for _, other in sorted(found)]

    def nearest(self, row: int, taken: Container[int]) -> int | None:
        """Of the rows that are not taken, one that shares most with this one; None: none does."""
        best, most = None, 0
        for side in (-1, 1):
            place = self.place[row] + side
            while 0 <= place < len(self.order) and self.order[place] in taken:
                place += side
            tokens = self.shared(row, self.order[place]) if 0 <= place < len(self.order) else 0
            if tokens > most:
                best, most = self.order[place], tokens
        return best

    def _next(self, place: int) -> int:
        """What the rows at this place and the next have in common."""
        common = self._common[place]
        if common is None:
            first, second = self._rows[self.order[place]], self._rows[self.order[place + 1]]
            common = self._common[place] = alike_tokens(first, second)
        return common


class _Batch:
    """Rows so far, the distinct tokens that they have, and those of them that are computed."""

    def __init__(self, alike: _Alike, most: int, most_states: int) -> None:
        self.rows: list[int] = []
        self.tokens = self._states = 0
        self._alike, self._most, self._most_states = alike, most, most_states
        self._places: list[int] = []  # in the order of bytes, ascending

    def __contains__(self, row: object) -> bool:
        return row in self.rows

    def add(self, row: int) -> None:
        """Whatever it costs."""
        length, shared = self._alike.length(row), self._shared(row)
        self._states += length - shared
        self.tokens += length - max(shared, self._alike.cached(row))
        self.rows.append(row)
        insort(self._places, self._alike.place[row])

    def take(self, row: int, together: bool) -> bool:
        """Add this row, and together with it the one that shares most with it; or none of them,
        where they do not fit."""
        if self.tokens + self._alike.least_cost(row) > self._most:
            return False
        rows, tokens, states = len(self.rows), self.tokens, self._states
        self.add(row)
        if together and self._fits:
            mate = self._alike.nearest(row, self)
            if mate is not None:
                self.add(mate)
        if self._fits:
            return True
        for added in self.rows[rows:]:
            self._places.remove(self._alike.place[added])
        del self.rows[rows:]
        self.tokens, self._states = tokens, states
        return False

    @property
    def _fits(self) -> bool:
        return self.tokens <= self._most and self._states <= self._most_states

    def _shared(self, row: int) -> int:
        """Tokens of the row that another in the batch has."""
        place = bisect_left(self._places, self._alike.place[row])
        beside = self._places[max(0, place - 1) : place + 1]
        alike = self._alike
        return max((alike.shared(row, alike.order[other]) for other in beside), default=0)
