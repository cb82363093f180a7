"""`POST /score` and friends <-> scorer types. Only translates; knows nothing of Ray."""

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any

from fastapi import FastAPI, Request, Response
from pydantic import BaseModel, Field
from pydantic_core import to_json
from starlette.types import ASGIApp, Receive, Scope, Send

from service.config import ServiceConfig
from service.errors import InvalidRequest, Overloaded, RewardError, TooLarge
from service.journal import Entry, Journal
from service.request import ScoreRequest, parse_json
from service.scorer import Scorer, Scores

log = logging.getLogger("reward.http")

COMPONENTS = "#/components/schemas/"
METRICS_TYPE = "text/plain; version=1.0.0; charset=utf-8"


class ResultBody(BaseModel):
    reward: float
    raw_reward: float
    tokens: int
    truncated: bool
    tokens_cut: int


class BundleBody(BaseModel):
    id: str
    name: str
    variant: str
    normalized: bool


class TimingBody(BaseModel):
    tokenize_ms: float
    queue_ms: float
    engine_ms: float


class ScoreResponse(BaseModel):
    rewards: list[float]
    "in the order of the request; float32 values, written so that reading them back is exact"
    results: list[ResultBody]
    bundle: BundleBody
    engine: str
    timing: TimingBody


class ErrorBody(BaseModel):
    code: str
    message: str
    field: Annotated[str | None, Field(examples=["pairs[3].response"])]


class ErrorResponse(BaseModel):
    error: ErrorBody


async def _no_metrics() -> bytes:
    return b""


def build_http(
    scorer: Scorer,
    config: ServiceConfig,
    journal: Journal,
    metrics_page: Callable[[], Awaitable[bytes]] = _no_metrics,
) -> ASGIApp:
    """The ASGI application of one replica, behind its limits on headers and bodies."""
    api = FastAPI(
        title="reward-service",
        description="Normalised scalar rewards for (prompt, response) pairs.",
        version=scorer.bundle.manifest.provenance.service_version,
    )
    manifest = Response(scorer.bundle.manifest.model_dump_json(), media_type="application/json")
    errors: dict[int | str, dict[str, Any]] = {
        status: {"model": ErrorResponse, "description": text}
        for status, text in {
            400: "The request is not valid; nothing was queued.",
            413: "More bytes or pairs than the limit.",
            422: "Longer than the bundle's token limits.",
            503: "The queue is full or the replica is leaving; see Retry-After.",
        }.items()
    }
    body = {
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"$ref": f"{COMPONENTS}ScoreRequest"}}},
        }
    }

    @api.post(
        "/score", response_model=ScoreResponse, responses=errors, openapi_extra=body, tags=["score"]
    )
    async def score(request: Request) -> Response:
        """Score pairs. Each gets one reward; identical requests get identical bits."""
        asked = parse_json(await request.body())
        scores = await scorer.score(asked.as_pairs(config.max_pairs), asked.truncation)
        request.state.entry.scores = scores
        return Response(_render(scorer, scores), media_type="application/json")

    @api.get("/healthz", tags=["health"])
    async def healthz() -> dict[str, str]:
        """The process lives."""
        return {"status": "alive"}

    @api.get("/readyz", tags=["health"])
    async def readyz(response: Response) -> dict[str, str]:
        """The golden scores were reproduced, and new requests are taken."""
        if scorer.draining:
            response.status_code = 503
            return {"status": "draining"}
        return {
            "status": "ready",
            "bundle": scorer.bundle.manifest.id,
            "engine": scorer.engine.fingerprint,
        }

    @api.get("/bundle", tags=["bundle"])
    async def bundle() -> Response:
        """The manifest of the bundle that serves."""
        return manifest

    @api.get("/metrics", tags=["metrics"])
    async def metrics() -> Response:
        """The whole cluster's series in Prometheus' text format."""
        return Response(await metrics_page(), media_type=METRICS_TYPE)

    @api.exception_handler(RewardError)
    async def refuse(request: Request, error: RewardError) -> Response:
        request.state.entry.error = error.code
        return error_response(error)

    @api.exception_handler(Exception)
    async def fail(request: Request, error: Exception) -> Response:
        log.exception("unhandled error on %s", request.url.path)
        request.state.entry.error = RewardError.code
        return error_response(RewardError("internal error; see the service's log"))

    schema = ScoreRequest.model_json_schema(ref_template=COMPONENTS + "{model}")
    api.openapi()["components"]["schemas"] |= {**schema.pop("$defs"), "ScoreRequest": schema}
    limited = Limits(api, config.max_body_bytes, config.max_header_bytes)
    return Journaled(limited, journal, set(api.openapi()["paths"]))


def error_response(error: RewardError) -> Response:
    headers = {"retry-after": str(error.retry_after_s)} if isinstance(error, Overloaded) else None
    return Response(
        to_json({"error": error.as_dict()}),
        status_code=error.http_status,
        media_type="application/json",
        headers=headers,
    )


def _render(scorer: Scorer, scores: Scores) -> bytes:
    manifest = scorer.bundle.manifest
    return to_json(
        {
            "rewards": [result.reward for result in scores.results],
            "results": scores.results,
            "bundle": {
                "id": manifest.id,
                "name": manifest.name,
                "variant": scorer.variant.name,
                "normalized": manifest.normalization is not None,
            },
            "engine": scorer.engine.fingerprint,
            "timing": scores.timing,
        }
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
        entry = Entry(path if path in self.paths else "unknown", code="caller_left")
        scope.setdefault("state", {})["entry"] = entry

        async def note(message: Any) -> None:
            if message["type"] == "http.response.start":
                entry.code = str(message["status"])
            await send(message)

        try:
            await self.app(scope, receive, note)
        finally:
            self.journal.close(entry)


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
        if headers.get(b"content-encoding", b"identity") != b"identity":
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
