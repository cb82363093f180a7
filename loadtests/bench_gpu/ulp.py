"""Does a reward keep its bits in other company? Counted in units in the last place (ULP)."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from service.engine import Engine

SIGN = np.int64(0x80000000)


def ulp_distance(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """How many float32 numbers lie between, elementwise: 0 for the same number, 1 for neighbours.

    float32 bits, read as integers, are in the order of the numbers they mean, once the negative
    ones are turned around.

    >>> ulp_distance(np.float32([1.0, 0.0]), np.nextafter(np.float32([1.0, -0.0]), np.float32(2)))
    array([1, 1])
    """
    return np.abs(_ordered(first) - _ordered(second))


def _ordered(values: np.ndarray) -> np.ndarray:
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32).astype(np.int64)
    return np.where(bits >= SIGN, SIGN - bits, bits)


def histogram(distances: np.ndarray) -> dict[str, int]:
    """Counts of 0, 1, 2 to 3, 4 to 7 and so on.

    >>> histogram(np.array([0, 0, 1, 3, 9]))
    {'0': 2, '1': 1, '2-3': 1, '8-15': 1}
    """
    counts = Counter(int(distance).bit_length() for distance in distances)
    return {_label(bits): counts[bits] for bits in sorted(counts)}


def _label(bits: int) -> str:
    return str(bits) if bits <= 1 else f"{1 << bits - 1}-{(1 << bits) - 1}"


def in_company(
    engine: Engine, rows: Sequence[Sequence[int]], runs: int, prefix_tokens: int = 0
) -> dict[str, object]:
    """Rows alone against the same rows in `runs` random batches of 1 to 32 of them."""
    random = np.random.default_rng(0)
    alone = np.concatenate([engine.run([row]) for row in rows])
    distances, moved = [], 0.0
    for _ in range(runs):
        chosen = random.permutation(len(rows))[: random.integers(1, min(33, len(rows) + 1))]
        together = engine.run([rows[i] for i in chosen], prefix_tokens)
        distances.append(ulp_distance(together, alone[chosen]))
        moved = max(moved, float(np.abs(together - alone[chosen]).max()))
    every = np.concatenate(distances)
    return {
        "rows": len(every),
        "runs": runs,
        "same_bits": float((every == 0).mean()),
        "largest_ulp": int(every.max()),
        "largest_distance": moved,  # units of the last place say little near 0
        "ulp": histogram(every),
        "reward_std": float(alone.std()),
    }
