"""Rows by the whole blocks of tokens that they begin with. Pure: packed ids in, counts out."""

from dataclasses import dataclass, field

from service.prefix import ITEM, MIN_SUFFIX_TOKENS


@dataclass(slots=True, eq=False)
class Node:
    """Whole blocks below each other that the same rows begin with."""

    children: dict[bytes, "Node"] = field(default_factory=dict)
    "by their block's packed token ids"
    rows: list[int] = field(default_factory=list)
    "that begin with the blocks from the root to here, in the order in which they were added"


class BlockTree:
    """Rows by their whole blocks, all but their last MIN_SUFFIX_TOKENS tokens at least.

    `tokens` and `blocks` are what computing all its rows takes: shared blocks once.

    >>> from service.prefix import pack
    >>> tree = BlockTree(block_tokens=4)
    >>> [tree.add(pack(row)) for row in ([1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 7, 8])]
    [(6, 2), (2, 1)]
    >>> tree.tokens, tree.blocks
    (8, 3)
    """

    def __init__(self, block_tokens: int) -> None:
        self.root = Node()
        self.tokens = self.blocks = 0
        self._block_tokens = block_tokens
        self._rows = 0

    def path(self, row: bytes) -> list[bytes]:
        """The packed row's blocks that may be shared."""
        size = self._block_tokens * ITEM
        count = max(0, len(row) - MIN_SUFFIX_TOKENS * ITEM) // size
        return [row[i * size : (i + 1) * size] for i in range(count)]

    def cost(self, row: bytes) -> tuple[int, int]:
        """Tokens and blocks that this row would add."""
        node, shared = self.root, 0
        for block in self.path(row):
            if block not in node.children:
                break
            node, shared = node.children[block], shared + 1
        tokens = len(row) // ITEM - shared * self._block_tokens
        return tokens, -(-tokens // self._block_tokens)

    def add(self, row: bytes) -> tuple[int, int]:
        """Add a packed row; what it cost."""
        tokens, blocks = self.cost(row)
        node = self.root
        for block in self.path(row):
            node = node.children.setdefault(block, Node())
            node.rows.append(self._rows)
        self._rows += 1
        self.tokens, self.blocks = self.tokens + tokens, self.blocks + blocks
        return tokens, blocks
