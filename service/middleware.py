"""What surrounds every HTTP request: journal entry, API key, our limits. Knows no scoring."""

from collections.abc import Sequence
from typing import Any

from pydantic_core import to_json
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import (
    InvalidRequest,
    MethodNotAllowed,
    Overloaded,
    RewardError,
    TooLarge,
    Unauthorized,
)
from service.journal import Journal, checked_id
from service.keys import Keys

OPEN = frozenset(("/healthz", "/readyz"))
"paths that need no key"


def error_response(error: RewardError) -> Response:
    headers = {}
    if isinstance(error, Overloaded):
        headers["retry-after"] = str(error.retry_after_s)
    if isinstance(error, Unauthorized):
        headers["www-authenticate"] = "Bearer"
    if isinstance(error, MethodNotAllowed):
        headers["allow"] = error.allowed
    return Response(
        to_json({"error": error.as_dict()}),
        status_code=error.http_status,
        media_type="application/json",
        headers=headers,
    )


class Journaled:
    """Closes the journal's entry of every request; handlers find it at `request.state.entry`."""

    def __init__(self, app: ASGIApp, journal: Journal, paths: set[str]) -> None:
        self.app = app
        self.journal = journal
        self.paths = paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"]
        entry = self.journal.open(path if path in self.paths else "unknown")
        scope.setdefault("state", {})["entry"] = entry

        async def note(message: Any) -> None:
            if message["type"] == "http.response.start":
                entry.code = str(message["status"])
            await send(message)

        try:
            if given := dict(scope["headers"]).get(b"x-request-id"):
                entry.request_id = checked_id(given.decode("latin-1"))
            await self.app(scope, receive, note)
        except InvalidRequest as error:
            entry.error = error.code
            await error_response(error)(scope, receive, note)
        finally:
            self.journal.close(entry)


class Keyed:
    """Refuses who brings no API key, in the header or, where the URL has options, in the URL."""

    def __init__(self, app: ASGIApp, keys: Keys) -> None:
        self.app = app
        self.keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in OPEN:
            authorization = dict(scope["headers"]).get(b"authorization", b"").decode("latin-1")
            url_key = dict(scope["state"].get("options", ())).get("key")
            try:
                self.keys.check(authorization, url_key)
            except Unauthorized as error:
                scope["state"]["entry"].error = error.code
                await error_response(error)(scope, receive, send)
                return
        await self.app(scope, receive, send)


class Limits:
    """Refuses what is too large before it is read: Ray Serve and its proxies set no limit."""

    def __init__(self, app: ASGIApp, max_body_bytes: int, max_header_bytes: int) -> None:
        self.app = app
        self.max_body_bytes = max_body_bytes
        self.max_header_bytes = max_header_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        try:
            self._check_headers(scope["headers"], headers)
            messages = await self._read(receive)
        except RewardError as error:
            scope["state"]["entry"].error = error.code
            await error_response(error)(scope, receive, send)
            return
        if messages[-1]["type"] == "http.disconnect":
            return  # the caller left before its request was whole

        async def replay() -> Any:
            return messages.pop(0) if messages else await receive()

        await self.app(scope, replay, send)

    def _check_headers(
        self, pairs: Sequence[tuple[bytes, bytes]], headers: dict[bytes, bytes]
    ) -> None:
        size = sum(len(name) + len(value) for name, value in pairs)
        if size > self.max_header_bytes:
            raise TooLarge(
                f"headers: {size} bytes, the limit is {self.max_header_bytes}", field="headers"
            )
        if headers.get(b"content-encoding", b"identity").lower() != b"identity":
            raise InvalidRequest(
                "content-encoding: compressed bodies are not accepted", field="content-encoding"
            )
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self.max_body_bytes:
            raise self._too_large(int(length))

    async def _read(self, receive: Receive) -> list[Any]:
        """The body's messages; a chunked body is counted as it comes."""
        messages, size = [], 0
        while True:
            message = await receive()
            messages.append(message)
            size += len(message.get("body", b""))
            if size > self.max_body_bytes:
                raise self._too_large(size)
            if not message.get("more_body"):
                return messages

    def _too_large(self, size: int) -> TooLarge:
        return TooLarge(
            f"body: {size} bytes, the limit is {self.max_body_bytes}; split the request",
            field="body",
        )
