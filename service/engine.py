"""What an engine is: token ids -> rewards. Knows arrays; knows nothing of text."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np


class Engine(Protocol):
    """Computes the reward of each row. Called from `at_once` + `ahead` threads: so many runs go on
    at the same time, so many more are prepared and wait for their turn."""

    fingerprint: str
    "runtime, version and device: with the bundle id, what decides the bits"
    device: str
    "cpu or cuda"
    at_once: int
    "batches that run at the same time"
    ahead: int
    "batches handed over beyond those, so that the device does not idle while the next is planned"
    kept_tokens: int
    "of a prefix, so that its states are kept; those of a longer one are not"

    def run(self, rows: Sequence[Sequence[int]], prefix_tokens: int = 0) -> np.ndarray:
        """B rows of token ids, each of its own length -> (B,) float32 rewards.

        prefix_tokens: of the first row, that others may go on from, in this run or a later one.
        Raises MemoryError where fewer rows might fit.
        """
        ...

    def cached_tokens(self, row: Sequence[int]) -> int:
        """How many of the row's first tokens the engine has states of. Safe from any thread."""
        ...
