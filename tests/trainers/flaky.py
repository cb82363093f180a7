"""A proxy in front of the service that fails the first times that it is asked."""

import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Flaky:
    """`failures` requests get 503, those after them the service's answer."""

    url: str
    failures: int
    requests: list[str] = field(default_factory=list)
    "what became of each, in order"


@contextmanager
def flaky(service_url: str, failures: int) -> Iterator[Flaky]:
    proxy = Flaky("", failures)
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            with lock:
                fails = len(proxy.requests) < proxy.failures
                proxy.requests.append("503" if fails else "passed on")
            if fails:
                self._answer(503, "text/plain", b"not now")
                return
            asked = urllib.request.Request(service_url + self.path, body)
            try:
                with urllib.request.urlopen(asked, timeout=120) as reply:
                    self._answer(reply.status, reply.headers["content-type"], reply.read())
            except urllib.error.HTTPError as error:
                self._answer(error.code, error.headers["content-type"], error.read())

        def _answer(self, status: int, kind: str, content: bytes) -> None:
            self.send_response(status)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            """Nothing to standard error."""

    class Server(ThreadingHTTPServer):
        request_queue_size = 256  # 64 connections at once; the default is 5

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    proxy.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
