"""The client for coroutines. One set of connections per event loop, closed when the loop ends."""

import asyncio
import time
import weakref
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import httpx

from reward_client.retry import Ask, Sleep, steps
from reward_client.settings import Settings, answer_of, failed
from reward_client.wire import (
    Again,
    Prompt,
    Row,
    Scores,
    body,
    join,
    pair_rows,
    parts,
    read,
    text_rows,
    with_deadline,
)

Pool = AsyncGenerator[httpx.AsyncClient, None]


class AsyncClient(Settings):
    """`Client` with `await`. One object serves any number of event loops, also one after another.

    Trainers may call `asyncio.run` once per step, so connections belong to the loop that opened
    them.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self._pools: weakref.WeakKeyDictionary[
            asyncio.AbstractEventLoop, tuple[Pool, httpx.AsyncClient]
        ] = weakref.WeakKeyDictionary()

    async def score(self, pairs: Sequence[tuple[Prompt, str]]) -> Scores:
        """One reward per (prompt, response); at least one.

        Raises ValueError, Refused, Unavailable or BadAnswer. Above 1,024 pairs or
        256 Ki characters it is several requests, one after the other.
        """
        return await self._rows(pair_rows(pairs))

    async def score_group(self, prompt: Prompt, responses: Sequence[str]) -> Scores:
        """One reward per response to the same prompt."""
        return await self._rows(pair_rows((prompt, response) for response in responses))

    async def score_texts(self, texts: Sequence[str]) -> Scores:
        """One reward per text that has its chat template already, special tokens and all."""
        return await self._rows(text_rows(texts))

    async def bundle(self) -> dict[str, Any]:
        """The manifest of the bundle that serves. No retries."""
        answer = await (await self._pool()).get(f"{self.url}/bundle", timeout=self.attempt_s)
        return dict(answer.raise_for_status().json())

    async def aclose(self) -> None:
        """Close the running loop's connections; the next call opens new ones."""
        held = self._pools.pop(asyncio.get_running_loop(), None)
        if held is not None:
            await held[0].aclose()

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def _pool(self) -> httpx.AsyncClient:
        loop = asyncio.get_running_loop()
        held = self._pools.get(loop)
        if held is None:
            for known in self._pools.keyrefs():  # a copy: other threads have loops of their own
                ended = known()
                if ended is not None and ended.is_closed():
                    self._pools.pop(ended, None)
            pool = self._open()
            held = self._pools.setdefault(loop, (pool, await anext(pool)))
        return held[1]

    async def _open(self) -> Pool:
        # asyncio.run closes the generators of its loop at the end, and so these connections.
        async with httpx.AsyncClient(**self.httpx_options()) as client:
            yield client

    async def _rows(self, rows: Sequence[Row]) -> Scores:
        return join([await self._score(part) for part in parts(rows)])

    async def _score(self, rows: list[Row]) -> Scores:
        content = body(rows, self.truncation)
        run = steps(time.monotonic(), self.deadline_s, self.attempt_s, f"{self.url}/score")
        step = next(run)
        outcome: Scores | Again | None
        while True:
            if isinstance(step, Sleep):
                await asyncio.sleep(step.seconds)
                outcome = None
            else:
                outcome = await self._attempt(step, content, len(rows))
            try:
                step = run.send((time.monotonic(), outcome))
            except StopIteration as done:
                scores: Scores = done.value
                return scores

    async def _attempt(self, ask: Ask, content: bytes, count: int) -> Scores | Again:
        pool = await self._pool()
        content = with_deadline(content, ask.timeout_s)
        request = pool.post(f"{self.url}/score", content=content, timeout=ask.timeout_s)
        try:
            response = await asyncio.wait_for(request, ask.timeout_s)
        except asyncio.TimeoutError:  # another class than TimeoutError before Python 3.11
            return Again(f"no answer after {ask.timeout_s:g} s")
        except httpx.TransportError as error:
            return failed(error)
        return read(answer_of(response, response.content), count, self.bundle_id)
