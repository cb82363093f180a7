"""An HTTP client that costs little, since it shares the cores with what it measures.

Keep-alive connections on asyncio, httptools' parser, bodies made beforehand and answers kept as
bytes: reading them is left for after the clock has stopped. Knows bytes; knows nothing of rewards.
"""

import asyncio
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast
from urllib.parse import urlsplit

import httptools


@dataclass(slots=True)
class Answer:
    sent: float
    received: float
    "both by time.perf_counter"
    status: int
    body: bytes

    @property
    def latency_s(self) -> float:
        return self.received - self.sent


class Connection(asyncio.Protocol):
    """One request at a time on a connection that stays open."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[Answer] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    @property
    def is_open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    async def ask(self, request: bytes) -> Answer:
        """Raises ConnectionError when the server closes before it has answered."""
        if self._transport is None or not self.is_open:
            raise ConnectionError("the connection is closed")
        self._answer = asyncio.get_running_loop().create_future()
        self._parser = httptools.HttpResponseParser(self)
        self._body: list[bytes] = []
        self._sent = time.perf_counter()
        self._transport.write(request)
        return await self._answer

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        assert self._answer is not None
        if not self._answer.done():
            self._answer.set_result(
                Answer(
                    self._sent,
                    time.perf_counter(),
                    self._parser.get_status_code(),
                    b"".join(self._body),
                )
            )

    def connection_lost(self, error: Exception | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error or ConnectionError("closed without an answer"))

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


def post(url: str, body: bytes) -> bytes:
    """The bytes of a POST request."""
    parts = urlsplit(url)
    head = (
        f"POST {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def connect(url: str) -> Connection:
    parts = urlsplit(url)
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_connection(Connection, parts.hostname, parts.port)
    return connection


async def closed_loop(url: str, bodies: Sequence[bytes], in_flight: int) -> list[Answer]:
    """Answers in the order of the bodies; each connection sends the next when it has its answer."""
    requests = [post(url, body) for body in bodies]
    answers: list[Answer | None] = [None] * len(requests)
    line = iter(range(len(requests)))
    connections = [await connect(url) for _ in range(min(in_flight, len(requests)))]
    try:
        await asyncio.gather(*(_work(c, line, requests, answers) for c in connections))
    finally:
        for connection in connections:
            connection.close()
    assert all(answers), "a connection that fails raises"
    return cast(list[Answer], answers)


async def _work(
    connection: Connection,
    line: Iterator[int],
    requests: Sequence[bytes],
    answers: list[Answer | None],
) -> None:
    for i in line:
        answers[i] = await connection.ask(requests[i])


async def open_loop(url: str, bodies: Sequence[bytes], times_s: Sequence[float]) -> list[Answer]:
    """Each body at its time from now, whether or not earlier ones were answered.

    An idle connection is used again; latency counts from the moment it should have been sent.
    """
    idle: list[Connection] = []
    begun = time.perf_counter()

    async def send(body: bytes, at: float) -> Answer:
        await asyncio.sleep(max(0.0, begun + at - time.perf_counter()))
        while idle and not idle[-1].is_open:  # servers close what has been idle for long
            idle.pop()
        connection = idle.pop() if idle else await connect(url)
        answer = await connection.ask(post(url, body))
        idle.append(connection)
        answer.sent = begun + at
        return answer

    try:
        return list(await asyncio.gather(*map(send, bodies, times_s)))
    finally:
        for connection in idle:
            connection.close()
