"""Token ids -> rewards on a CPU's ragged graph, states of prefixes kept. Knows arrays; no text."""

from collections.abc import Sequence

import numpy as np

from service import ragged
from service.bundle import Bundle
from service.errors import BundleError
from service.prefix import MIN_SUFFIX_TOKENS, pack
from service.session import open_session, out_of_memory
from service.states import StateCache, StateRoom, States


class RaggedEngine:
    """A causal graph on ONNX Runtime, rows of any length on one axis.

    Nothing is padded, and distinct tokens are computed once: what rows of a batch begin with in
    common, and the prefixes of recent ones, whose states are kept within `prefix_cache_bytes` and,
    together with those of the running batches, within `max_state_bytes`. The batches come first.

    Products are over at least MIN_SUFFIX_TOKENS tokens and every row's attention is its own, so a
    row's bits depend neither on its neighbours nor on what is shared, and are those of the padded
    graph (CPU, fp32).

    `at_once` threads may run batches on the one session: while the threads of one run wait for each
    other, at every operator, those of another use the core.
    """

    ahead = 0

    def __init__(
        self,
        bundle: Bundle,
        variant: str,
        threads: int = 0,
        prefix_cache_bytes: int = 128 * 1024 * 1024,
        max_state_bytes: int = 2 * 1024 * 1024 * 1024,
        at_once: int = 1,
    ) -> None:
        """Raises BundleError where the variant has no ragged graph, or it cannot be opened."""
        graph, sizes = bundle.manifest.variant(variant).ragged, bundle.manifest.architecture
        if graph is None:
            raise BundleError(
                f"variant {variant} has no graph that CPUs run; export the model again"
            )
        opened = open_session(bundle, variant, "cpu", threads, graph=graph, spinning=at_once == 1)
        self.at_once = at_once
        self.device, self.fingerprint = opened.device, opened.fingerprint
        self._session = opened.ort
        self._inputs = [entry.name for entry in self._session.get_inputs()]
        empty = np.zeros((1, sizes.kv_heads, 0, sizes.head_dim), np.float32)
        self._empty = {name: empty for name in self._inputs if name.startswith("past_")}
        self._states = StateCache(prefix_cache_bytes)
        self._room = StateRoom(max_state_bytes)
        self._token_bytes = sizes.state_bytes_per_token()
        self.kept_tokens = prefix_cache_bytes // self._token_bytes

    def run(self, rows: Sequence[Sequence[int]], prefix_tokens: int = 0) -> np.ndarray:
        """B rows -> (B,) float32 rewards. What they share is found here; the first `prefix_tokens`
        tokens of the first row are kept beside it."""
        packed = [pack(row) for row in rows]
        run = ragged.run(packed, ragged.parts(packed, self._known, prefix_tokens))
        try:
            # the runtime holds states twice, past and present
            with self._room.taken(2 * run.places * self._token_bytes):
                self._states.shrink(self._room.left)
                feeds = {name: run.feeds[name] for name in self._inputs if name in run.feeds}
                presents = [name.replace("past_", "present_") for name in self._empty]
                rewards, *states = self._session.run(
                    ["reward", *(presents if run.kept else [])], feeds | self._past(run.past)
                )
                self._keep(run, dict(zip(self._empty, states, strict=False)))
                self._states.shrink(self._room.left)
        except Exception as error:
            if not out_of_memory(error):
                raise
            self._states.shrink(0)
            raise MemoryError(str(error)) from error
        ordered = np.empty(len(rows), np.float32)
        ordered[run.rows] = rewards
        return ordered

    def cached_tokens(self, row: Sequence[int]) -> int:
        return max(0, min(self._states.common(pack(row)), len(row) - MIN_SUFFIX_TOKENS))

    def _known(self, row: bytes) -> tuple[int, States]:
        """How many of a packed row's first tokens have states, and those."""
        tokens = self._states.common(row)
        states = self._states.get(row, tokens) if tokens else None
        return (tokens, states) if states else (0, {})

    def _past(self, past: Sequence[ragged.Part]) -> States:
        """(1, KV, P, D) each."""
        if not past:
            return self._empty
        return {
            name: np.concatenate(
                [part.states[name][:, :, part.start : part.stop] for part in past if part.states],
                axis=2,
            )
            for name in self._empty
        }

    def _keep(self, run: ragged.Run, present: States) -> None:
        for prefix, places in run.kept.items():
            if len(places) <= self.kept_tokens:
                own = {name: states.take(places, axis=2) for name, states in present.items()}
                self._states.put(prefix, own)
