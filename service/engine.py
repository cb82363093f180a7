"""Token ids -> rewards. Knows arrays; knows nothing of text."""

import threading
from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np

from service.blocks import Pool
from service.buckets import Buckets
from service.bundle import Bundle
from service.errors import BundleError
from service.planner import MIN_TOKENS
from service.prefix import MIN_SUFFIX_TOKENS, common_tokens, pack
from service.session import open_session, out_of_memory
from service.states import StateCache, StateRoom, States

CHUNK_TOKENS = 512
"""A longer run goes through in chunks, the states of one being the past of the next. The attention
kernel computes the whole square of queries and keys and half of it is in vain: 2,048 tokens took
240 ms in one piece and 176 in four (2 cores, 21 Nov 2026); below 1,024 it made no difference."""


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
    shares_prefixes: bool
    "False where every row is computed in full"

    @property
    def buckets(self) -> Buckets | None:
        """The only shapes it runs in; None: any shape."""
        ...

    @property
    def pool(self) -> Pool | None:
        """What it keeps keys and values in, its rows packed; None: rows are padded."""
        ...

    def run(self, rows: Sequence[Sequence[int]], prefix_tokens: int = 0) -> np.ndarray:
        """B rows of token ids, each of its own length -> (B,) float32 rewards.

        The first `prefix_tokens` tokens may be computed once for all rows in which they are the
        same; every row goes on for MIN_SUFFIX_TOKENS at least.
        Raises MemoryError where fewer rows might fit.
        """
        ...

    def cached_tokens(self, row: Sequence[int]) -> int:
        """How many of the row's first tokens the engine has states of. Safe from any thread."""
        ...


class OnnxEngine:
    """A causal graph on ONNX Runtime.

    Rows are padded on the right and there is no padding mask: attention is causal, so a real token
    never sees one that pads. Every run has at least MIN_TOKENS columns, so all of them take the
    same matrix kernels and a row's bits do not depend on its neighbours (CPU, fp32).

    The prefixes of a batch run once each, together; the rest of each row runs with their states
    as past, to the same bits. States of recent prefixes are kept within `prefix_cache_bytes`, and
    together with those of the running batches within `max_state_bytes`: the batches come first, and
    one that does not fit beside the others waits. They are in the CPU's memory: on CUDA a
    PaddedEngine runs the graph instead.

    `at_once` threads may run batches on the one session: while the threads of one run wait for each
    other, at every operator, those of another use the core. What a run needs it has before it
    begins, its prefixes included, in the order in which runs ask.
    """

    ahead = 0
    shares_prefixes = True
    buckets: Buckets | None = None
    pool: Pool | None = None

    def __init__(
        self,
        bundle: Bundle,
        variant: str,
        device: str,
        threads: int = 0,
        prefix_cache_bytes: int = 256 * 1024 * 1024,
        max_state_bytes: int = 2 * 1024 * 1024 * 1024,
        at_once: int = 1,
    ) -> None:
        sizes = bundle.manifest.architecture
        if sizes.kind != "causal":
            raise BundleError(f"this engine runs causal models, the bundle is {sizes.kind}")
        opened = open_session(bundle, variant, device, threads, spinning=at_once == 1)
        self.at_once = at_once
        self._session = opened.ort
        self.device, self.fingerprint = opened.device, opened.fingerprint
        names = {entry.name for entry in self._session.get_inputs()}
        self._takes_positions = "position_ids" in names
        empty = np.zeros((1, sizes.kv_heads, 0, sizes.head_dim), np.float32)
        self._empty = {name: empty for name in names if name.startswith("past_")}
        self._states = StateCache(prefix_cache_bytes)
        self._room = StateRoom(max_state_bytes)
        self._token_bytes = sizes.state_bytes_per_token()
        self._prefix_turn = threading.Lock()

    def run(self, rows: Sequence[Sequence[int]], prefix_tokens: int = 0) -> np.ndarray:
        assert prefix_tokens == 0 or prefix_tokens >= MIN_TOKENS, "padding would become past"
        state_tokens = len(rows) * max(map(len, rows))
        try:
            # the runtime holds states twice, past and present
            with self._room.taken(2 * state_tokens * self._token_bytes):
                past = self._past(rows, prefix_tokens) if prefix_tokens else self._empty
                self._states.shrink(self._room.left)
                past, done = self._advance(rows, past, prefix_tokens)
                (rewards,) = self._session.run(["reward"], self._feeds(rows, past, done))
        except Exception as error:
            if not out_of_memory(error):
                raise
            self._states.shrink(0)
            raise MemoryError(str(error)) from error
        return np.asarray(rewards, np.float32)  # (B,)

    def cached_tokens(self, row: Sequence[int]) -> int:
        return max(0, min(self._states.common(pack(row)), len(row) - MIN_SUFFIX_TOKENS))

    def _past(self, rows: Sequence[Sequence[int]], tokens: int) -> States:
        """States of each row's first `tokens` tokens, (B or 1, KV, P, D), every kind once.

        One thread at a time computes what is missing: who waited may find its own among it.
        """
        prefixes = {pack(row[:tokens]): row[:tokens] for row in rows}
        found = self._kept(prefixes, tokens)
        if len(found) < len(prefixes):
            with self._prefix_turn:
                found |= self._kept(prefixes.keys() - found.keys(), tokens)
                if missing := [ids for packed, ids in prefixes.items() if packed not in found]:
                    found |= self._compute(missing)
        if len(prefixes) == 1:
            return found[next(iter(prefixes))]
        kinds = [found[pack(row[:tokens])] for row in rows]
        return {name: np.concatenate([kind[name] for kind in kinds]) for name in self._empty}

    def _kept(self, prefixes: Iterable[bytes], tokens: int) -> dict[bytes, States]:
        """Of those packed prefixes, the states that are kept."""
        kept = {packed: self._states.get(packed, tokens) for packed in prefixes}
        return {packed: states for packed, states in kept.items() if states is not None}

    def _compute(self, prefixes: Sequence[Sequence[int]]) -> dict[bytes, States]:
        """States of prefixes of one length, together, from kept ones as far as all share them; now
        kept as well."""
        packed = [pack(ids) for ids in prefixes]
        shared = min(common_tokens(packed[0], each) for each in packed)
        known = min(shared, self._states.common(packed[0]), len(prefixes[0]) - MIN_TOKENS)
        past = self._states.get(packed[0], known) if known >= MIN_TOKENS else None
        if past is None:  # no single token's run
            past, known = self._empty, 0
        past, done = self._advance(prefixes, past, known)
        states = self._run_states(prefixes, past, done)
        computed = {packed[0]: states}
        if len(prefixes) > 1:
            computed = {
                each: {name: state[i : i + 1].copy() for name, state in states.items()}
                for i, each in enumerate(packed)
            }
        for each, own in computed.items():
            self._states.put(each, own)
        return computed

    def _advance(
        self, rows: Sequence[Sequence[int]], past: States, done: int
    ) -> tuple[States, int]:
        """Run chunks that all rows have, after the `done` tokens of `past`, but for the last."""
        shortest = min(map(len, rows))
        while shortest - done >= 2 * CHUNK_TOKENS:
            past = self._run_states([row[: done + CHUNK_TOKENS] for row in rows], past, done)
            done += CHUNK_TOKENS
        return past, done

    def _run_states(self, rows: Sequence[Sequence[int]], past: States, done: int) -> States:
        """States of rows of one length, by the name of the input that takes them."""
        outputs = [name.replace("past_", "present_") for name in self._empty]
        computed = self._session.run(outputs, self._feeds(rows, past, done))
        return dict(zip(self._empty, computed, strict=True))

    def _feeds(self, rows: Sequence[Sequence[int]], past: States, done: int) -> States:
        """The graph's inputs for what follows the first `done` tokens, whose states are `past`."""
        lengths = np.array([len(row) - done for row in rows])  # (B,)
        longest = max(MIN_TOKENS, int(lengths.max()))
        ids = np.zeros((len(rows), longest), np.int64)  # (B, T)
        for i, row in enumerate(rows):
            ids[i, : lengths[i]] = row[done:]
        feeds = {"input_ids": ids, "last_index": lengths - 1}
        if self._takes_positions:
            feeds["position_ids"] = np.tile(np.arange(done, done + longest), (len(rows), 1))
        for name, state in past.items():
            feeds[name] = np.broadcast_to(state, (len(rows), *state.shape[1:]))
        return feeds
