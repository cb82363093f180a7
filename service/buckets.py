"""The few shapes that runs are padded to on a GPU. Pure: numbers in, numbers out.

A kernel, and on some devices a plan or a captured graph, is chosen for every new shape; so there is
a fixed set of shapes, all of them run once before the service is ready. Lengths grow by a ratio, so
that a row is padded by a fifth at most; numbers of rows are powers of two, and the planner counts
in them: it ends a batch at a full one where more rows would be mostly padding.
"""

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

RATIO = 1.25
STEP = 8
"lengths are multiples: of what tensor cores take, and attention kernels where there is a mask"
SHORTEST = 32

Shape = tuple[int, int]
"rows, columns"


@dataclass(frozen=True)
class Buckets:
    """Shapes for rows of up to `max_tokens`, within `budget` padded tokens each.

    A row longer than the budget runs alone. With `fixed` the number of rows follows from the
    columns: a row runs in one shape, whatever its neighbours, so that the same kernels compute it.

    >>> buckets = Buckets(max_tokens=100, budget=256)
    >>> buckets.lengths
    (32, 40, 48, 56, 64, 80, 96, 100)
    >>> list(buckets.runs([70, 30, 66]))
    [([0, 1], (2, 80)), ([2], (1, 80))]
    >>> list(Buckets(max_tokens=100, budget=256, fixed=True).runs([70, 30, 66]))
    [([1], (8, 32)), ([0, 2], (2, 80))]
    """

    max_tokens: int
    budget: int
    fixed: bool = False

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        """Columns, the fewest first. The last are those of the longest row and no more: a model
        may have no positions beyond."""
        found = [min(SHORTEST, self.max_tokens)]
        while found[-1] < self.max_tokens:
            grown = int(found[-1] * RATIO) // STEP * STEP
            found.append(min(self.max_tokens, grown))
        return tuple(found)

    def columns(self, tokens: int) -> int:
        """What a row of so many tokens is padded to. Raises ValueError above `max_tokens`."""
        at = bisect_left(self.lengths, tokens)
        if at == len(self.lengths):
            raise ValueError(f"a row of {tokens} tokens; the buckets end at {self.lengths[-1]}")
        return self.lengths[at]

    def most_rows(self, columns: int) -> int:
        """The largest power of two of rows within the budget, at least 1."""
        return 1 << max(1, self.budget // columns).bit_length() - 1

    def padded_tokens(self, rows: Mapping[int, int]) -> int:
        """What is computed in all their runs, for so many rows of each number of columns."""
        together = rows if self.fixed else {max(rows): sum(rows.values())}
        computed = 0
        for columns, count in together.items():
            full, rest = divmod(count, most := self.most_rows(columns))
            computed += columns * (full * most + (rest and self._rows(rest, columns)))
        return computed

    def runs(self, lengths: Sequence[int]) -> Iterator[tuple[list[int], Shape]]:
        """Which rows run together, in which shape; every row once."""
        members: dict[int, list[int]] = {}
        longest = self.columns(max(lengths))
        for i, tokens in enumerate(lengths):
            members.setdefault(self.columns(tokens) if self.fixed else longest, []).append(i)
        for columns in sorted(members):
            most = self.most_rows(columns)
            for start in range(0, len(members[columns]), most):
                rows = members[columns][start : start + most]
                yield rows, (self._rows(len(rows), columns), columns)

    def shapes(self) -> list[Shape]:
        """All there are, the largest first: what it allocates then holds the others."""
        found = {
            (rows, columns)
            for columns in self.lengths
            for rows in self._all_rows(self.most_rows(columns))
        }
        return sorted(found, key=lambda shape: (-shape[0] * shape[1], shape))

    def _rows(self, rows: int, columns: int) -> int:
        return self.most_rows(columns) if self.fixed else 1 << (rows - 1).bit_length()

    def _all_rows(self, most: int) -> list[int]:
        return [most] if self.fixed else [1 << bit for bit in range(most.bit_length())]
