"""The client for threads. One set of connections per process, shared by all threads."""

import os
import time
from collections.abc import Sequence
from typing import Any

import httpx

from reward_client.retry import Ask, drive, steps
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


class Client(Settings):
    """Rewards of (prompt, response) pairs over HTTP.

    One object may be pickled, carried through a fork and shared by threads.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self._pools: dict[int, httpx.Client] = {}  # by process: sockets do not survive a fork

    def score(self, pairs: Sequence[tuple[Prompt, str]]) -> Scores:
        """One reward per (prompt, response); at least one.

        Raises ValueError, Refused, Unavailable or BadAnswer. Above 1,024 pairs or
        256 Ki characters it is several requests, one after the other.
        """
        return self._rows(pair_rows(pairs))

    def score_group(self, prompt: Prompt, responses: Sequence[str]) -> Scores:
        """One reward per response to the same prompt."""
        return self._rows(pair_rows((prompt, response) for response in responses))

    def score_texts(self, texts: Sequence[str]) -> Scores:
        """One reward per text that has its chat template already, special tokens and all."""
        return self._rows(text_rows(texts))

    def bundle(self) -> dict[str, Any]:
        """The manifest of the bundle that serves. No retries."""
        answer = self._pool().get(f"{self.url}/bundle", timeout=self.attempt_s)
        return dict(answer.raise_for_status().json())

    def close(self) -> None:
        """Close this process's connections; the next call opens new ones."""
        pool = self._pools.pop(os.getpid(), None)
        if pool is not None:
            pool.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _pool(self) -> httpx.Client:
        pid = os.getpid()
        pool = self._pools.get(pid)
        if pool is None:  # where two threads make one at once, both get the first
            pool = self._pools.setdefault(pid, httpx.Client(**self.httpx_options()))
        return pool

    def _rows(self, rows: Sequence[Row]) -> Scores:
        return join([self._score(part) for part in parts(rows)])

    def _score(self, rows: list[Row]) -> Scores:
        content = body(rows, self.truncation)
        run = steps(time.monotonic(), self.deadline_s, self.attempt_s, f"{self.url}/score")
        return drive(run, lambda ask: self._attempt(ask, content, len(rows)))

    def _attempt(self, ask: Ask, content: bytes, count: int) -> Scores | Again:
        end = time.monotonic() + ask.timeout_s
        content = with_deadline(content, ask.timeout_s)
        chunks = []
        try:
            with self._pool().stream(
                "POST", f"{self.url}/score", content=content, timeout=ask.timeout_s
            ) as response:
                for chunk in response.iter_bytes():
                    chunks.append(chunk)
                    if time.monotonic() > end:  # httpx limits each wait, not their sum
                        return Again(f"the answer was not complete after {ask.timeout_s:g} s")
        except httpx.TransportError as error:
            return failed(error)
        return read(answer_of(response, b"".join(chunks)), count, self.bundle_id)
