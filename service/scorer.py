"""Pairs in, normalised rewards out: text + scheduler + engine + normalisation. No Ray in here."""

import asyncio
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from service import bundle as bundles
from service import metrics
from service.bundle import Bundle
from service.config import ServiceConfig
from service.engine import Engine
from service.engines import limits, open_engine
from service.errors import BundleError, DeadlineExceeded, Draining, Overloaded, RewardError
from service.manifest import GoldenRow
from service.metrics import Recorder
from service.pairs import Asked, Pair, Templated, TokenIds, characters, length
from service.prefix import TYPICAL, Costs
from service.room import Room
from service.scheduler import Scheduler
from service.score_cache import ScoreCache
from service.text import Encoded, Encoder, Message, Prompt, Truncation
from service.threads import started

HOPELESS = 0.8
"share of a deadline that a backlog may take at most: the estimate is of recent batches, and rough"
ENCODE_SLICE = 32
"pairs that one call of the tokenizer takes, so that a big request lets small ones through"
INLINE_CHARACTERS = 4000
"""up to which a request is encoded where it stands, a millisecond at most: handing it to a thread
and back took a third of the replica's time for single pairs (py-spy, an engine of no cost)"""


@dataclass(frozen=True, slots=True)
class Result:
    reward: float
    raw_reward: float
    tokens: int
    truncated: bool
    tokens_cut: int


@dataclass(frozen=True, slots=True)
class Timing:
    tokenize_ms: float
    queue_ms: float
    engine_ms: float


@dataclass(frozen=True, slots=True)
class Scores:
    results: list[Result]
    timing: Timing


class Scorer:
    """One bundle on one engine. Used from one event loop; `score` is safe to call concurrently."""

    def __init__(
        self,
        bundle: Bundle,
        engine: Engine,
        config: ServiceConfig,
        recorder: Recorder | None = None,
        costs: Costs = TYPICAL,
    ) -> None:
        self.recorder = recorder or Recorder(listening=False)
        self.bundle = bundle
        self.variant = bundle.manifest.variant(config.variant)
        self.engine = engine
        self.encoder = Encoder.of(bundle)
        self.scheduler = Scheduler(
            engine,
            limits(engine, bundle, config),
            config.max_queued_tokens,
            self.recorder,
            costs,
            ScoreCache(bundle.manifest.id + config.variant, config.score_cache_rows),
        )
        self.draining = False
        self._encoding = Room(
            config.max_encoding_characters, "characters", "max_encoding_characters"
        )
        "waiting for or in the tokenizers"
        self._tokens_per_character = 0.0  # of the latest request
        self._in_flight = 0
        self._tokenizers = started(2, "tokenize")

    @classmethod
    def open(cls, config: ServiceConfig, recorder: Recorder | None = None) -> Self:
        """Verify the bundle, start the engine, replay the golden scores. Raises BundleError."""
        bundle = bundles.load(config.bundle)
        engine, costs = open_engine(bundle, config)
        scorer = cls(bundle, engine, config, recorder, costs)
        scorer.verify()
        return scorer

    def verify(self) -> float:
        """Replay golden.json: ids exactly, rewards within the variant's tolerance.

        Returns the largest distance found. Runs in the calling thread, before serving.
        """
        rows = self.bundle.golden()
        if not rows:
            raise BundleError(f"{bundles.GOLDEN}: holds no rows, so nothing can be proved")
        distances = [self._replay(i, row) for i, row in enumerate(rows)]
        return max(distances)

    def reproduces_bits(self) -> bool:
        """Whether the golden rows get the same bits alone, together, and behind a shared prefix.

        Splits at 2, 16, half and all but two tokens of every row. Some kernels do not promise it:
        ONNX Runtime's CPU attention with heads wider than 128, for one.
        """
        rows = [row.ids for row in self.bundle.golden()]
        alone = [self.engine.run([row])[0].tobytes() for row in rows]
        together = [reward.tobytes() for reward in self.engine.run(rows)]
        split = all(
            self.engine.run([row, row[:-1]], tokens)[0].tobytes() == bits
            for row, bits in zip(rows, alone, strict=True)
            for tokens in {2, 16, len(row) // 2, len(row) - 3}
            if 2 <= tokens <= len(row) - 3
        )
        return alone == together and split

    @property
    def bit_invariant(self) -> bool:
        """What the variant promises, on the device where it does."""
        return self.variant.bit_invariant and self.engine.device == "cpu"

    def _replay(self, i: int, row: GoldenRow) -> float:
        where = f"{bundles.GOLDEN}: row {i}"
        prompt = row.prompt
        turns: Prompt = (
            prompt if isinstance(prompt, str) else [Message.model_validate(m) for m in prompt]
        )
        ids = self.encoder.encode(turns, row.response).ids
        if ids != row.ids:
            raise BundleError(f"{where}: encodes to other token ids than when it was exported")
        reward = float(self.engine.run([ids])[0])
        distance = abs(reward - row.reward)
        if not distance <= self.variant.tolerance:
            raise BundleError(
                f"{where}: the engine gives {reward!r}, training gave {row.reward!r}; "
                f"the tolerance of variant {self.variant.name} is {self.variant.tolerance}"
            )
        return distance

    async def score(
        self,
        pairs: Sequence[Asked],
        truncation: Truncation = "prompt",
        deadline_s: float | None = None,
        patient: bool = False,
    ) -> Scores:
        """Rewards in the order of the pairs. Nothing is queued unless every pair is valid.

        deadline_s counts from now; None: no deadline. A patient caller waits until its deadline
        where others are refused because too much is waiting. Raises InvalidRequest, TooLong,
        Overloaded, DeadlineExceeded, Draining, EngineFailure; `field` names the pair.
        """
        if self.draining:
            raise Draining("this replica is shutting down; send the request again")
        self._in_flight += 1
        try:
            return await self._score(pairs, truncation, deadline_s, patient)
        finally:
            self._in_flight -= 1

    async def _score(
        self,
        pairs: Sequence[Asked],
        truncation: Truncation,
        deadline_s: float | None,
        patient: bool,
    ) -> Scores:
        started = time.perf_counter()
        try:
            encoded = await self._encode_within(pairs, truncation, deadline_s, patient)
        except (DeadlineExceeded, asyncio.CancelledError) as error:
            reason = "deadline" if isinstance(error, DeadlineExceeded) else "caller_left"
            self.recorder.add(metrics.DROPPED, len(pairs), reason)
            raise
        tokenize_s = time.perf_counter() - started
        self.recorder.observe(metrics.TOKENIZE, tokenize_s)
        if counted := characters(pairs):
            self._tokens_per_character = sum(len(row.ids) for row in encoded) / counted
        left_s = None if deadline_s is None else max(0.0, deadline_s - tokenize_s)
        try:
            scored = await self.scheduler.score([row.ids for row in encoded], left_s, patient)
        except RewardError as error:
            error.field = error.field and error.field.replace("rows[", "pairs[")
            raise
        self.recorder.add(metrics.ROWS, len(pairs), self.bundle.manifest.id)
        self.recorder.rewards(self.bundle.manifest.id, scored.rewards)
        timing = Timing(tokenize_s * 1e3, scored.queue_ms, scored.engine_ms)
        return Scores(self._results(encoded, scored.rewards), timing)

    def refuse_hopeless(self, deadline_s: float) -> None:
        """Raise Overloaded where more is waiting than can be done in that time.

        For callers with a deadline of their own, before any work goes into their request; who has
        none waits. Five times the capacity without this: answers 39 s late, and 0.11 of the
        capacity left for right ones; with it 2 s and 0.17 (loadtests/overload.py, where load and
        service share two cores, 21 Nov 2026).
        """
        wait_s = self.scheduler.backlog_s(self._encoding.used * self._tokens_per_character)
        if wait_s > HOPELESS * deadline_s:
            raise Overloaded(
                f"about {wait_s:.1f} s of work are waiting and the deadline is {deadline_s:g} s; "
                "retry later",
                retry_after_s=max(1, round(wait_s)),
            )

    async def _encode_within(
        self,
        pairs: Sequence[Asked],
        truncation: Truncation,
        deadline_s: float | None,
        patient: bool,
    ) -> list[Encoded]:
        due = None if deadline_s is None else asyncio.get_running_loop().time() + deadline_s
        amount = characters(pairs)
        await self._encoding.enter(amount, due, patient)
        try:
            async with asyncio.timeout_at(due):
                return await self._encode_aside(pairs, truncation)
        except TimeoutError:
            raise DeadlineExceeded(
                f"none of {len(pairs)} pairs was scored within their deadline; "
                "retry, or send less at a time"
            ) from None
        finally:
            self._encoding.leave(amount)

    async def _encode_aside(self, pairs: Sequence[Asked], truncation: Truncation) -> list[Encoded]:
        """In the tokenizers' threads, slice by slice; what is short at once."""
        if len(pairs) < ENCODE_SLICE and sum(map(length, pairs)) <= INLINE_CHARACTERS:
            return self.encode(pairs, truncation)
        loop = asyncio.get_running_loop()
        encoded: list[Encoded] = []
        for start in range(0, len(pairs), ENCODE_SLICE):
            part = pairs[start : start + ENCODE_SLICE]
            encoded += await loop.run_in_executor(
                self._tokenizers, self.encode, part, truncation, start
            )
        return encoded

    def encode(
        self, pairs: Sequence[Asked], truncation: Truncation = "prompt", first: int = 0
    ) -> list[Encoded]:
        """Token ids of every pair. Pairs that share a prompt are encoded as one group.

        first: index of the first of them in its request, for the names in errors.
        """
        groups: dict[str | tuple[Message, ...], list[int]] = {}
        templated: dict[str, list[int]] = {}
        encoded: dict[int, Encoded] = {}
        manifest, max_tokens = self.bundle.manifest, self.bundle.manifest.text.max_tokens
        for i, pair in enumerate(pairs):
            if isinstance(pair, TokenIds):
                field = f"pairs[{first + i}].input_ids"
                encoded[i] = pair.encoded(manifest.architecture.vocab_size, max_tokens, field)
            elif isinstance(pair, Templated):
                templated.setdefault(pair.prompt, []).append(i)
            else:
                groups.setdefault(pair.prompt, []).append(i)
        for prompt, members in groups.items():
            rows = self.encoder.encode_group(
                prompt,
                [pair.response for i in members if isinstance(pair := pairs[i], Pair)],
                truncation,
                [f"pairs[{first + i}]" for i in members],
            )
            encoded.update(zip(members, rows, strict=True))
        for start, members in templated.items():
            rows = self.encoder.encode_templated(
                start,
                [pair.text for i in members if isinstance(pair := pairs[i], Templated)],
                truncation,
                [f"pairs[{first + i}]" for i in members],
            )
            encoded.update(zip(members, rows, strict=True))
        return [encoded[i] for i in range(len(pairs))]

    def _results(self, encoded: Sequence[Encoded], rewards: Sequence[float]) -> list[Result]:
        normalization = self.bundle.manifest.normalization
        values = np.array(rewards, np.float32)
        raw = values if normalization is None else normalization.raw(values)
        return [
            Result(reward, raw_reward, len(row.ids), row.truncated, row.tokens_cut)
            for row, reward, raw_reward in zip(encoded, rewards, raw.tolist(), strict=True)
        ]

    async def drain(self) -> None:
        """Refuse what is new, return when everything accepted is answered."""
        self.draining = True
        while self._in_flight:
            await asyncio.sleep(0.01)

    def close(self) -> None:
        self.scheduler.close()
        self._tokenizers.shutdown(wait=True)


def score_offline(scorer: Scorer, pairs: Sequence[Asked], chunk: int = 512) -> Iterator[Result]:
    """Score without a server, chunk by chunk, through the very path that serves."""

    async def score(part: Sequence[Asked]) -> Scores:
        return await scorer.score(part)

    for start in range(0, len(pairs), chunk):
        yield from asyncio.run(score(pairs[start : start + chunk])).results
