"""Rows -> the packed arrays of a paged graph. Pure: knows token ids, block sizes and nothing else.

Rows are cut into blocks. Whole blocks with which several rows begin are computed once: they are
segments of their own, and the rows' block tables begin with theirs. What follows, from the last
shared block's end, is each row's own segment, so up to one block of a shared beginning is computed
with every row. Sharing has as many levels as the rows have: a system prompt, prompts behind it.

One run computes all segments: PagedAttention writes every token's keys and values before any is
attended to. So its CUDA source launches them (paged_attention_impl.cu), and so it was with ONNX
Runtime 1.31.1 on an H200 (README, GPU: parity); no document promises it. Where it does not hold, a
run per level does: an earlier run then wrote what a segment reads.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from service.block_tree import BlockTree, Node
from service.prefix import ITEM

MIN_BUCKET, STEPS = 64, 4
"token counts are padded to multiples of this, then of a quarter of the power of two below them"
MIN_ROWS = 8
Arrays = dict[str, np.ndarray]
"by the name of the graph's input"


@dataclass(frozen=True, slots=True)
class Pool:
    """Blocks of all layers' keys and values on the device."""

    blocks: int
    block_tokens: int


def block_tokens(head_dim: int) -> int:
    """Tokens of a block: the fewest that Flash Attention reads in place for heads of this width.

    Its tile of keys must lie within a block (flash_min_block_size in ONNX Runtime's
    paged_attention.cc).
    """
    return 256 if head_dim <= 64 else 128 if head_dim <= 128 else 64


def bucket(tokens: int) -> int:
    """The token count to which a run is padded; few of them, so few shapes.

    >>> [bucket(n) for n in (1, 64, 65, 300, 1000, 1025)]
    [64, 64, 128, 320, 1024, 1280]
    """
    step = max(MIN_BUCKET, (1 << (tokens - 1).bit_length()) // (2 * STEPS))
    return -(-tokens // step) * step


def row_bucket(rows: int) -> int:
    """To which the number of segments, and of rows, is padded: a power of two.

    >>> [row_bucket(n) for n in (1, 8, 9)]
    [8, 8, 16]
    """
    return max(MIN_ROWS, 1 << (rows - 1).bit_length())


@dataclass(frozen=True, slots=True)
class Segment:
    """Tokens that are computed together behind those of their past."""

    row: int
    "a row that they are of"
    start: int
    stop: int
    "their places in that row; `start` is a multiple of the block size"
    table: tuple[int, ...]
    "blocks of the row's first `stop` tokens, those of the past first"
    level: int
    last: bool
    "whether the row ends here, so that its reward is read at the last token"


def segments(rows: Sequence[bytes], block_tokens: int) -> list[Segment]:
    """What must be computed for these packed rows, a segment after those it reads.

    Their tables name blocks 0, 1, ... of a pool, each written by one segment.
    """
    tree = BlockTree(block_tokens)
    for row in rows:
        tree.add(row)
    lengths = [len(row) // ITEM for row in rows]
    return list(_Walk(lengths, block_tokens).below(tree.root, range(len(rows)), 0, (), 0))


class _Walk:
    def __init__(self, lengths: Sequence[int], block_tokens: int) -> None:
        self._lengths = lengths
        self._block_tokens = block_tokens
        self._blocks = 0  # given away

    def below(
        self, node: Node, rows: Sequence[int], depth: int, table: tuple[int, ...], level: int
    ) -> Iterator[Segment]:
        """Segments of `rows`, which share the `depth` blocks of `table`."""
        shared = {
            row for child in node.children.values() if len(child.rows) > 1 for row in child.rows
        }
        for row in rows:
            if row not in shared:
                yield self._segment(row, depth, self._lengths[row], table, level, last=True)
        for child in node.children.values():
            if len(child.rows) > 1:
                end, stop = self._chain(child, depth + 1)
                head = self._segment(
                    child.rows[0], depth, stop * self._block_tokens, table, level, last=False
                )
                yield head
                yield from self.below(end, child.rows, stop, head.table, level + 1)

    @staticmethod
    def _chain(node: Node, depth: int) -> tuple[Node, int]:
        """The last node from here that has the same rows, and its depth."""
        while len(node.children) == 1:
            (child,) = node.children.values()
            if len(child.rows) != len(node.rows):
                break
            node, depth = child, depth + 1
        return node, depth

    def _segment(
        self, row: int, depth: int, stop: int, table: tuple[int, ...], level: int, last: bool
    ) -> Segment:
        start = depth * self._block_tokens
        count = -(-(stop - start) // self._block_tokens)
        own = range(self._blocks, self._blocks + count)
        self._blocks += count
        return Segment(row, start, stop, (*table, *own), level, last)


@dataclass(frozen=True, slots=True)
class Run:
    """Feeds of one run, and the rows whose rewards its first outputs are."""

    feeds: Arrays
    rows: list[int]


def runs(
    rows: Sequence[bytes], block_tokens: int, table_blocks: int, one_run: bool = True
) -> list[Run]:
    """The runs that compute these packed rows' rewards: one, or one per level of sharing.

    table_blocks: width of the block table, enough for the longest row.
    """
    parts = segments(rows, block_tokens)
    if one_run:
        return [_packed(parts, rows, block_tokens, table_blocks)]
    levels = range(max(part.level for part in parts) + 1)
    return [
        _packed([part for part in parts if part.level == level], rows, block_tokens, table_blocks)
        for level in levels
    ]


def _packed(
    parts: Sequence[Segment], rows: Sequence[bytes], block_tokens: int, table_blocks: int
) -> Run:
    """Padding repeats the beginning of the longest segment, reads its blocks and writes nothing:
    it sees finite numbers, and no real token sees it."""
    real = sum(part.stop - part.start for part in parts)
    padding = list(_padding(max(parts, key=_length), bucket(real) - real))
    everything = [*parts, *padding]
    count = row_bucket(len(everything))
    lengths = np.array([_length(part) for part in everything])
    places = [np.arange(part.start, part.stop) for part in everything]
    tables = np.zeros((count, table_blocks), np.int32)
    for i, part in enumerate(everything):
        tables[i, : len(part.table)] = part.table
    slots = np.concatenate(
        [
            np.array(part.table)[where // block_tokens] * block_tokens + where % block_tokens
            for part, where in zip(parts, places, strict=False)
        ]
    )
    cumulative = np.concatenate([[0], np.cumsum(lengths)])
    ends = [int(cumulative[i + 1]) - 1 for i, part in enumerate(parts) if part.last]
    ids = [np.frombuffer(rows[part.row], np.int32)[part.start : part.stop] for part in everything]
    longest_past = max(part.stop for part in parts)
    bounds = [bucket(int(lengths.max())), min(table_blocks * block_tokens, bucket(longest_past))]
    feeds = {
        "input_ids": np.concatenate(ids).astype(np.int64),
        "position_ids": np.concatenate(places).astype(np.int64),
        "last_index": _filled(ends, count, 0, np.int64),
        "cumulative_sequence_length": _filled(cumulative, count + 1, cumulative[-1], np.int32),
        "past_seqlens": _filled([part.start for part in everything], count, 0, np.int32),
        "block_table": tables,
        "slot_mapping": _filled(slots, int(cumulative[-1]), -1, np.int32),
        "attention_metadata": np.array(bounds, np.int32),
    }
    return Run(feeds, [part.row for part in parts if part.last])


def _length(part: Segment) -> int:
    return part.stop - part.start


def _padding(longest: Segment, tokens: int) -> Iterator[Segment]:
    while tokens:
        stop = longest.start + min(tokens, _length(longest))
        yield Segment(longest.row, longest.start, stop, longest.table, longest.level, last=False)
        tokens -= stop - longest.start


def _filled(values: Sequence[int] | np.ndarray, count: int, fill: int, dtype: type) -> np.ndarray:
    array: np.ndarray = np.full(count, fill, dtype)
    array[: len(values)] = values
    return array
