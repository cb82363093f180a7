"""Which waiting rows a paged engine computes next. Pure: packed token ids in, indices out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from service.block_tree import BlockTree
from service.blocks import bucket
from service.planner import Plan
from service.prefix import ITEM


@dataclass(frozen=True, slots=True)
class PackedBudget:
    """What one run of a paged engine may hold: nothing is padded, so lengths need not be alike."""

    tokens: int
    "that are computed: shared blocks once"
    blocks: int
    "of keys and values"
    block_tokens: int

    @property
    def full_tokens(self) -> int:
        return self.tokens

    def divided(self, by: int) -> "PackedBudget":
        return replace(self, tokens=max(1, self.tokens // by), blocks=max(1, self.blocks // by))

    def plan(
        self, rows: Sequence[bytes], seed: int, cached_tokens: Callable[[int], int] = lambda _: 0
    ) -> Plan:
        """The next batch: `seed`, the rows that share most with it, then the others, the oldest
        first and each followed by those that share with it, as far as the budget goes.

        rows: packed token ids of every waiting row, oldest first. A row that does not fit is
        passed over; the seed is always in it. More rows cost nothing but their own tokens, so the
        budget is filled whatever a run costs.

        >>> from service.prefix import pack
        >>> a, b = [1] * 8, [2] * 8
        >>> rows = [pack(row) for row in ([*a, 5, 5], [*b, 6, 6], [*a, 7, 7], [*b, 8, 8])]
        >>> PackedBudget(tokens=24, blocks=99, block_tokens=4).plan(rows, seed=0).rows
        [0, 2, 1, 3]
        """
        tree, chosen = BlockTree(self.block_tokens), []
        for row in _families_first(rows, seed, self.block_tokens):
            tokens, blocks = tree.cost(rows[row])
            fits = tree.tokens + tokens <= self.tokens and tree.blocks + blocks <= self.blocks
            if fits or row == seed:
                tree.add(rows[row])
                chosen.append(row)
        answered = sum(len(rows[row]) // ITEM for row in chosen)
        computed = bucket(tree.tokens)
        return Plan(chosen, computed_tokens=computed, shared_tokens=answered - tree.tokens)


def _families_first(rows: Sequence[bytes], seed: int, block_tokens: int) -> list[int]:
    """The seed, then by age of the oldest row with the same first block, then by that of the
    oldest with the same two, and so on: rows that share stand together, the most shared closest."""
    tree = BlockTree(block_tokens)
    ages = [seed, *(row for row in range(len(rows)) if row != seed)]
    for row in ages:
        tree.add(rows[row])

    def place(age: int) -> list[int]:
        """Ages of the oldest row along the path, then its own."""
        node, oldest = tree.root, []
        for block in tree.path(rows[ages[age]]):
            node = node.children[block]
            oldest.append(node.rows[0])
        return [*oldest, age]

    return [ages[age] for age in sorted(range(len(rows)), key=place)]
