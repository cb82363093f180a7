"""What a client has of an answer when the server dies while it answers."""

import socket
import subprocess
import sys

import pytest
from uvicorn.protocols.http.auto import AutoHTTPProtocol
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

SERVER = """
import asyncio, os, socket, sys
import uvicorn, uvloop
from service.joined import join_writes

async def app(scope, receive, send):
    headers = [(b"content-length", b"4")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    if scope["path"] == "/die":
        os._exit(9)
    await send({"type": "http.response.body", "body": b"body"})
    if scope["path"] == "/die-then":
        os._exit(9)

if "joined" in sys.argv:
    join_writes()
listening = socket.create_server(("127.0.0.1", 0))
print(listening.getsockname()[1], flush=True)
config = uvicorn.Config(app, lifespan="off", log_config=None)
with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
    runner.run(uvicorn.Server(config).serve([listening]))
"""


def _received(path: str, *arguments: str) -> bytes:
    """All that comes back for one GET until the connection ends."""
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER, *arguments], stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
            ending = "close" if path == "/" else "keep-alive"
            request = f"GET {path} HTTP/1.1\r\nhost: a\r\nconnection: {ending}\r\n\r\n"
            client.sendall(request.encode())
            received = b""
            while part := _part(client):
                received += part
            return received
    finally:
        server.kill()
        server.communicate()


def _part(client: socket.socket) -> bytes:
    try:
        return client.recv(65536)
    except ConnectionResetError:
        return b""


def test_uvicorn_speaks_http_by_the_class_whose_writes_are_joined() -> None:
    assert AutoHTTPProtocol is HttpToolsProtocol


def test_a_server_that_dies_before_the_body_has_not_sent_the_head() -> None:
    assert _received("/die", "joined") == b""


def test_a_whole_answer_does_not_wait_for_what_its_server_does_then() -> None:
    assert _received("/die-then", "joined").endswith(b"\r\n\r\nbody")


def test_without_joining_it_has() -> None:
    """Or else `join_writes` is no longer needed."""
    assert _received("/die").startswith(b"HTTP/1.1 200 OK")


@pytest.mark.parametrize("arguments", [(), ("joined",)], ids=["apart", "joined"])
def test_an_answer_arrives_whole_before_the_connection_is_closed(arguments) -> None:
    assert _received("/", *arguments).endswith(
        b"content-length: 4\r\nconnection: close\r\n\r\nbody"
    )
