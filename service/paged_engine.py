"""Token ids -> rewards on a packed graph, keys and values in blocks. Knows arrays; no text."""

import threading
from collections.abc import Sequence
from typing import Any, Protocol, Self

import numpy as np

from service.block_tree import BlockTree
from service.blocks import Arrays, Pool, block_tokens, runs
from service.bundle import Bundle
from service.errors import BundleError
from service.manifest import Architecture
from service.prefix import pack
from service.session import onnxruntime, open_session, out_of_memory

BFLOAT16, FLOAT16 = 16, 10
VARIANTS = {"bf16-paged": BFLOAT16, "fp16-paged": FLOAT16}
"what this engine runs, and the number of its keys' type in ONNX's TensorProto"
ITEM_BYTES = 2
"of a key or value"


class Runner(Protocol):
    """Computes one packed run and keeps the blocks of keys and values for the next one."""

    def __call__(self, feeds: Arrays) -> np.ndarray:
        """The graph's inputs but the caches -> (R,) rewards."""
        ...


def pool(sizes: Architecture, max_tokens: int, max_state_bytes: int) -> Pool:
    """As many blocks as fit. Raises BundleError where the longest row that the bundle admits has
    no room."""
    tokens = block_tokens(sizes.head_dim)
    block_bytes = tokens * sizes.state_bytes_per_token(ITEM_BYTES)
    blocks, needed = max_state_bytes // block_bytes, -(-max_tokens // tokens)
    if blocks < needed:
        raise BundleError(
            f"max_state_bytes: {max_state_bytes} is {blocks} blocks of {tokens} tokens, and a row "
            f"of {max_tokens} tokens takes {needed}; set it to {needed * block_bytes} or more"
        )
    return Pool(blocks, tokens)


class PagedEngine:
    """A packed causal graph: distinct tokens are computed once, nothing is padded but the end.

    The pool's blocks are scratch: a run needs none that an earlier batch left, and no states are
    kept between batches. one_run: all levels of sharing in one run of the graph, or each in its
    own. Rewards may depend in their last bits on what shares the run (README, GPU: invariance).
    """

    at_once, kept_tokens = 1, 0

    def __init__(
        self,
        runner: Runner,
        pool: Pool,
        max_tokens: int,
        device: str,
        fingerprint: str,
        one_run: bool = True,
    ) -> None:
        self.device, self.fingerprint, self.pool = device, fingerprint, pool
        self.ahead = 1 if device == "cuda" else 0
        self._max_tokens = max_tokens
        self._table_blocks = -(-max_tokens // pool.block_tokens)
        self._runner = runner
        self._one_run = one_run
        self._turn = threading.Lock()

    @classmethod
    def open(
        cls,
        bundle: Bundle,
        variant: str,
        device: str,
        max_state_bytes: int,
        threads: int = 0,
        gpu_memory_bytes: int = 0,
    ) -> Self:
        """Raises BundleError or DeviceUnavailable with the reason where it cannot be served.

        variant: one of VARIANTS.
        """
        sizes, max_tokens = bundle.manifest.architecture, bundle.manifest.text.max_tokens
        blocks = pool(sizes, max_tokens, max_state_bytes)
        opened = open_session(bundle, variant, device, threads, gpu_memory_bytes=gpu_memory_bytes)
        heads = sizes.kv_heads, sizes.head_dim
        runner = SessionRunner(
            opened.ort, sizes.layers, blocks, opened.device, heads, VARIANTS[variant]
        )
        return cls(runner, blocks, max_tokens, opened.device, opened.fingerprint)

    def run(self, rows: Sequence[Sequence[int]], prefix_tokens: int = 0) -> np.ndarray:
        """B rows -> (B,) float32 rewards; what they share is found here, whatever
        `prefix_tokens` says."""
        packed = [pack(row) for row in rows]
        self._refuse_too_many(packed)
        rewards = np.empty(len(rows), np.float32)
        try:
            prepared = runs(packed, self.pool.block_tokens, self._table_blocks, self._one_run)
            with self._turn:
                for run in prepared:
                    rewards[run.rows] = self._runner(run.feeds)[: len(run.rows)]
        except Exception as error:
            if not out_of_memory(error):
                raise
            raise MemoryError(str(error)) from error
        return rewards

    def warm(self, tokens: int) -> None:
        """Run rows of the greatest length, up to `tokens` in all or as many as the pool holds:
        what the largest run allocates holds the others."""
        most = min(tokens // self._max_tokens, self.pool.blocks // self._table_blocks)
        # they begin differently, or they would share all but their ends
        self.run([[i] + [0] * (self._max_tokens - 1) for i in range(max(1, most))])

    def cached_tokens(self, row: Sequence[int]) -> int:
        return 0

    def _refuse_too_many(self, rows: Sequence[bytes]) -> None:
        tree = BlockTree(self.pool.block_tokens)
        for row in rows:
            tree.add(row)
        if tree.blocks > self.pool.blocks:
            raise MemoryError(
                f"{len(rows)} rows need {tree.blocks} blocks of {self.pool.block_tokens} tokens, "
                f"max_state_bytes leaves room for {self.pool.blocks}"
            )


class SessionRunner:
    """An ONNX Runtime session whose caches stay on the device, each input and output of one
    buffer: the operator writes in place. heads: of keys, and their width; item_type: of keys, as
    in VARIANTS."""

    def __init__(
        self,
        session: Any,
        layers: int,
        pool: Pool,
        device: str,
        heads: tuple[int, int],
        item_type: int,
    ) -> None:
        make = onnxruntime().OrtValue.ortvalue_from_shape_and_type
        shape = [pool.blocks, pool.block_tokens, *heads]
        self._session = session
        self._binding = session.io_binding()
        self._binding.bind_output("reward", "cpu")  # first of the outputs
        for name in (f"{kind}_cache" for kind in ("key", "value")):
            for i in range(layers):
                cache = make(shape, item_type, device)
                self._binding.bind_ortvalue_input(f"{name}_{i}", cache)
                self._binding.bind_ortvalue_output(f"{name}_out_{i}", cache)

    def __call__(self, feeds: Arrays) -> np.ndarray:
        """The runtime copies each feed to where the graph reads it; the bounds stay on the CPU."""
        for name, array in feeds.items():
            self._binding.bind_cpu_input(name, array)
        self._binding.bind_output("reward", "cpu")  # anew: the last run had other rows
        self._session.run_with_iobinding(self._binding)
        return np.asarray(self._binding.get_outputs()[0].numpy(), np.float32)
