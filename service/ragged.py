"""Rows -> the arrays of a ragged graph. Pure: knows token ids and places, runs nothing.

What rows begin with in common is computed once, however long it is and on as many levels as there
are: a system prompt, prompts behind it. Whatever of it has states already is not computed at all.

A place is where a token's keys and values are: those of the past come first, then the run's own.
Of every part that is computed, the graph is told (training/ragged_graph.py)
    query_start, query_stop   its tokens among the run's
    seen_start, seen_stop     where in `seen` the places are of all tokens up to its last one
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from service.prefix import HEAD_TOKENS, ITEM, MIN_SUFFIX_TOKENS, shareable_tokens
from service.states import States

CHUNK_TOKENS = 128
"""Parts of twice as many or more are cut into pieces of so many. The attention kernel computes the
whole square of its queries and keys and half of it is in vain: 2,048 tokens took 240 ms in one
piece and 176 in four (2 cores, 21 Nov 2026). README, Decisions, has what 128 gives."""
Arrays = dict[str, np.ndarray]
"by the name of the graph's input"
Known = Callable[[bytes], tuple[int, States]]
"a packed row -> how many of its first tokens have states, and those"


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Tokens of a row, behind those of its parents."""

    row: int
    "a row that they are of"
    start: int
    stop: int
    "their places in that row"
    parent: "Part | None"
    states: States | None = None
    "of the row's first tokens, `stop` or more, where they are known: nothing is computed then"
    last: bool = False
    "whether the row ends here"
    kept: bool = False
    "whether states of the row up to here are worth keeping: others may go on from them"

    @property
    def tokens(self) -> int:
        return self.stop - self.start


def parts(rows: Sequence[bytes], known: Known, prefix_tokens: int = 0) -> list[Part]:
    """What these packed rows are made of, every part after its parent.

    Beginnings that rows share are parts of their own, and so are the first `prefix_tokens` tokens
    of the first row. A part that is computed has MIN_SUFFIX_TOKENS at least.
    """
    return list(_Walk(rows, known, prefix_tokens).between(0, len(rows), 0, None))


class _Walk:
    def __init__(self, rows: Sequence[bytes], known: Known, prefix_tokens: int) -> None:
        self._rows, self._known = rows, known
        self._order = sorted(range(len(rows)), key=rows.__getitem__)
        "rows that begin alike stand together"
        self._shared = [shareable_tokens(rows[i], rows[j]) for i, j in pairwise(self._order)]
        "tokens that each of them has in common with the next"
        self._prefix = rows[0][: prefix_tokens * ITEM]

    def between(self, first: int, end: int, depth: int, parent: Part | None) -> Iterator[Part]:
        """Of the rows from `first` to before `end` in that order, which share the `depth` tokens
        of `parent` and its parents."""
        row = self._order[first]
        if end - first == 1:
            yield from self._chain(row, depth, len(self._rows[row]) // ITEM, parent, last=True)
            return
        common = min(self._shared[first : end - 1])
        if common - depth >= HEAD_TOKENS:
            shared = list(self._chain(row, depth, common, parent, last=False))
            yield from shared
            parent, depth = shared[-1], common
        for place in range(first, end):
            if place == end - 1 or self._shared[place] - depth < HEAD_TOKENS:
                yield from self.between(first, place + 1, depth, parent)
                first = place + 1

    def _chain(
        self, row: int, start: int, stop: int, parent: Part | None, last: bool
    ) -> Iterator[Part]:
        """From `start` to `stop`: what is known, then what is computed, piece by piece."""
        packed = self._rows[row][: stop * ITEM]
        tokens, states = self._known(packed)
        if last or tokens < stop:  # something is computed
            tokens = min(tokens, stop - MIN_SUFFIX_TOKENS)
        if tokens > start:
            parent = Part(row, start, tokens, parent, states)
            yield parent
            start = tokens
        cut = len(self._prefix) // ITEM
        least = MIN_SUFFIX_TOKENS
        if start + least <= cut <= stop - least and packed.startswith(self._prefix):
            for parent in self._pieces(row, start, cut, parent, last=False):  # noqa: B020
                yield parent
            start = cut
        yield from self._pieces(row, start, stop, parent, last)

    @staticmethod
    def _pieces(row: int, start: int, stop: int, parent: Part | None, last: bool) -> Iterator[Part]:
        while start < stop:
            end = stop if stop - start < 2 * CHUNK_TOKENS else start + CHUNK_TOKENS
            done = end == stop
            parent = Part(row, start, end, parent, last=last and done, kept=done and not last)
            yield parent
            start = end


@dataclass(frozen=True, slots=True)
class Run:
    """One run of the graph."""

    feeds: Arrays
    "all inputs but the past"
    past: list[Part]
    "whose states are the past, in this order"
    rows: list[int]
    "whose rewards come, in this order"
    kept: dict[bytes, np.ndarray]
    "packed beginnings whose states are worth keeping, and the places of their tokens"
    places: int


def run(rows: Sequence[bytes], whole: Sequence[Part]) -> Run:
    """The run that computes these parts of the packed rows."""
    past = [part for part in whole if part.states is not None]
    computed = [part for part in whole if part.states is None]
    finished = [part for part in computed if part.last]
    known = sum(map(_width, past))
    places, count = {}, 0
    for part in (*past, *computed):
        places[part] = np.arange(count, count + _width(part))
        count += _width(part)
    before: dict[Part | None, np.ndarray] = {None: np.arange(0)}
    "places of a part's tokens and of all that come before them"
    for part in whole:
        before[part] = np.concatenate([before[part.parent], places[part]])
    seen, seen_rows = [before[part] for part in computed], [before[part] for part in finished]
    last = [places[part][-2:] for part in finished]
    for i, part in enumerate(finished):
        if part.tokens < MIN_SUFFIX_TOKENS:  # its only token twice: nothing reads what pads it
            seen_rows[i] = last[i] = places[part][[0, 0]]
    ends = np.cumsum([0, *map(len, (*seen, *seen_rows))])
    spans = np.stack([ends[:-1], ends[1:]], axis=1)
    firsts = np.cumsum([0, *map(_width, computed)])
    feeds = {
        "input_ids": np.concatenate([_ids(rows[part.row], part) for part in computed]),
        "position_ids": np.concatenate(
            [np.arange(part.start, part.start + _width(part)) for part in computed]
        ),
        "last_index": np.stack(last) - known,
        "segments": np.column_stack([firsts[:-1], firsts[1:], spans[: len(computed)]]),
        "row_segments": np.column_stack(
            [2 * np.arange(len(last)), 2 * np.arange(len(last)) + 2, spans[len(computed) :]]
        ),
        "seen": np.concatenate([*seen, *seen_rows]),
    }
    kept = {rows[part.row][: part.stop * ITEM]: before[part] for part in computed if part.kept}
    return Run(feeds, past, [part.row for part in finished], kept, count)


def _width(part: Part) -> int:
    """Places that it has: a single token that is computed is padded."""
    return part.tokens if part.states is not None else max(MIN_SUFFIX_TOKENS, part.tokens)


def _ids(row: bytes, part: Part) -> np.ndarray:
    ids = np.zeros(_width(part), np.int64)
    ids[: part.tokens] = np.frombuffer(row, np.int32)[part.start : part.stop]
    return ids
