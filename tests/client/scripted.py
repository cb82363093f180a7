"""An HTTP server that answers what a test tells it: what a proxy does while it restarts."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = tuple[int, dict[str, str], bytes | float]
"""status, headers, body; a number for a body: close without an answer after so many seconds"""

RAY_404 = (404, {"content-type": "text/plain"}, b"Path '/score' not found.")
RAY_500 = (500, {"content-type": "text/plain"}, b"Internal Server Error")
HAPROXY_500 = (500, {"content-type": "text/html"}, b"<html><h1>500</h1></html>")


def scored(rewards: list[Any], bundle: str = "sha256:a") -> Reply:
    row = {"raw_reward": 0.5, "tokens": 3, "truncated": False, "tokens_cut": 0}
    return answered(rewards, [{"reward": reward, **row} for reward in rewards], bundle)


def answered(rewards: Any, results: list[Any], bundle: str = "sha256:a") -> Reply:
    content = {"rewards": rewards, "results": results, "bundle": {"id": bundle}, "engine": "e"}
    return 200, {"content-type": "application/json"}, json.dumps(content).encode()


def refused(status: int, code: str, **headers: str) -> Reply:
    content = {"error": {"code": code, "message": "no", "field": "pairs"}}
    return status, {"content-type": "application/json", **headers}, json.dumps(content).encode()


class Scripted:
    """Answers the replies in turn, the last one for ever; keeps what it was asked."""

    def __init__(self, replies: list[Reply]) -> None:
        self.replies = replies
        self.asked: list[tuple[float, dict[str, str], Any]] = []
        self.connections = 0
        self.url = ""

    def next(self, headers: dict[str, str], body: bytes) -> Reply:
        self.asked.append((time.monotonic(), headers, json.loads(body)))
        return self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]


@contextmanager
def scripted(*replies: Reply) -> Iterator[Scripted]:
    script = Scripted(list(replies))
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(script))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    script.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield script
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(script: Scripted) -> Callable[..., BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            script.connections += 1
            super().setup()

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            status, sent, content = script.next(headers, body)
            if isinstance(content, float):
                time.sleep(content)
                self.close_connection = True
                return
            self.send_response(status)
            for name, value in {**sent, "content-length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            """Nothing to standard error."""

    return Handler
