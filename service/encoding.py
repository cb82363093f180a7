"""Pairs -> token ids, beside the event loop. Knows text and threads; knows no engine."""

import asyncio
from collections.abc import Sequence
from contextlib import ExitStack

from service.bundle import Bundle
from service.errors import DeadlineExceeded
from service.pairs import Asked, Pair, Templated, TokenIds, characters, length
from service.room import Room
from service.text import Encoded, Encoder, Message, Truncation
from service.threads import started

SLICE = 32
"pairs that one call of the tokenizer takes, so that a big request lets small ones through"
INLINE_CHARACTERS = 8000
"""up to which a request is encoded where it stands: 1 ms for English, 6 for what has few words. A
thread's Python keeps the event loop waiting for 5 ms at a time: on an engine of no cost, pairs took
0.88 of the time when those of 4,000 to 8,000 characters, one in fifty, went to no thread (in one
process, 16 in flight, 2 cores of an EPYC, 1 Dec 2026)"""


class Encoding:
    """The tokenizers' threads, and the line before them. `within` is for one event loop; `encode`
    for any thread."""

    def __init__(self, bundle: Bundle, max_characters: int) -> None:
        self.encoder = Encoder.of(bundle)
        self._sizes = bundle.manifest
        self._room = Room(max_characters, "characters", "max_encoding_characters")
        "of texts that are not in the scheduler yet"
        self._waiting = 0
        "characters of the same, a prompt once for each of its responses"
        self._tokens_per_character = 0.0  # of the latest request
        self._threads = started(2, "tokenize")

    @property
    def waiting_tokens(self) -> float:
        """Of texts that the scheduler does not know yet, about."""
        return self._waiting * self._tokens_per_character

    async def within(
        self,
        pairs: Sequence[Asked],
        truncation: Truncation,
        deadline_s: float | None,
        patient: bool,
        room: ExitStack,
        name: str = "pairs",
    ) -> list[Encoded]:
        """Token ids of every pair, whose characters count as waiting until `room` is closed.

        Raises InvalidRequest, TooLong, Overloaded, DeadlineExceeded.
        """
        due = None if deadline_s is None else asyncio.get_running_loop().time() + deadline_s
        amount = characters(pairs)
        await self._room.enter(amount, due, patient)
        room.callback(self._room.leave, amount)
        ids = sum(len(pair.ids) for pair in pairs if isinstance(pair, TokenIds))
        text = sum(map(length, pairs)) - ids
        self._waiting += text
        room.callback(self._leave, text)
        if len(pairs) < SLICE and text + ids <= INLINE_CHARACTERS:
            encoded = self.encode(pairs, truncation, name=name)
        else:
            encoded = await self._aside(pairs, truncation, due, name)
        if text:
            tokens = sum(len(row.packed) for row in encoded) - ids
            self._tokens_per_character = tokens / text
        return encoded

    def _leave(self, text: int) -> None:
        self._waiting -= text

    async def _aside(
        self, pairs: Sequence[Asked], truncation: Truncation, due: float | None, name: str
    ) -> list[Encoded]:
        """In the threads, slice by slice. Raises InvalidRequest, TooLong, DeadlineExceeded."""
        loop = asyncio.get_running_loop()
        encoded: list[Encoded] = []
        try:
            async with asyncio.timeout_at(due):
                for start in range(0, len(pairs), SLICE):
                    part = pairs[start : start + SLICE]
                    encoded += await loop.run_in_executor(
                        self._threads, self.encode, part, truncation, start, name
                    )
        except TimeoutError:
            raise DeadlineExceeded(
                f"none of {len(pairs)} pairs was scored within their deadline; "
                "retry, or send less at a time"
            ) from None
        return encoded

    def encode(
        self,
        pairs: Sequence[Asked],
        truncation: Truncation = "prompt",
        first: int = 0,
        name: str = "pairs",
    ) -> list[Encoded]:
        """Token ids of every pair. Pairs that share a prompt are encoded as one group.

        For the names in errors: the index of the first of them in its request, and what the caller
        calls them.
        """
        groups: dict[str | tuple[Message, ...], list[int]] = {}
        templated: dict[str, list[int]] = {}
        encoded: dict[int, Encoded] = {}
        vocab_size, max_tokens = self._sizes.architecture.vocab_size, self._sizes.text.max_tokens
        for i, pair in enumerate(pairs):
            if isinstance(pair, TokenIds):
                field = f"{name}[{first + i}].input_ids"
                encoded[i] = pair.encoded(vocab_size, max_tokens, field)
            elif isinstance(pair, Templated):
                templated.setdefault(pair.prompt, []).append(i)
            else:
                groups.setdefault(pair.prompt, []).append(i)
        for prompt, members in groups.items():
            rows = self.encoder.encode_group(
                prompt,
                [pair.response for i in members if isinstance(pair := pairs[i], Pair)],
                truncation,
                [f"{name}[{first + i}]" for i in members],
            )
            encoded.update(zip(members, rows, strict=True))
        for start, members in templated.items():
            rows = self.encoder.encode_templated(
                start,
                [pair.text for i in members if isinstance(pair := pairs[i], Templated)],
                truncation,
                [f"{name}[{first + i}]" for i in members],
            )
            encoded.update(zip(members, rows, strict=True))
        return [encoded[i] for i in range(len(pairs))]

    def close(self) -> None:
        self._threads.shutdown(wait=True)
