"""A response's head and body in one packet. Knows uvicorn's transport; knows nothing of rewards."""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


def join_writes() -> None:
    """Let a response's head leave in one system call with what uvicorn writes next.

    uvicorn writes a response's head and its body apart, and uvloop sends each at once. A replica
    killed in between has begun an answer: HAProxy can then repeat the request on no other replica,
    and the caller gets a head without its body (1 of 672 requests while a replica was killed with
    -9, on a busy machine). Whoever has got nothing is answered by another replica.
    """
    connect = HttpToolsProtocol.connection_made

    def connection_made(protocol: HttpToolsProtocol, transport: asyncio.Transport) -> None:
        connect(protocol, transport)
        protocol.transport = _Joined(transport, protocol.loop)  # type: ignore[assignment]

    HttpToolsProtocol.connection_made = connection_made  # type: ignore[method-assign, assignment]


class _Joined:
    """The transport, but for its writes: one waits for the next, or until the loop comes round."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._waiting: list[bytes] = []

    def write(self, sent: bytes) -> None:
        self._waiting.append(sent)
        if len(self._waiting) == 1:
            self._loop.call_soon(self._flush)
        else:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._waiting:
            self._transport.write(b"".join(self._waiting))
            self._waiting.clear()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)
