"""`POST /score` and friends <-> scorer types. Only translates; knows nothing of Ray."""

import logging
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from fastapi import FastAPI, Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, Field
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from service.address import Addressed
from service.config import ServiceConfig
from service.errors import MethodNotAllowed, NotFound, RewardError
from service.journal import Journal
from service.keys import Keys
from service.middleware import Journaled, Keyed, Limits, error_response
from service.request import ScoreRequest, parse_json
from service.scorer import Scorer, Scores
from service.trainer_api import SHAPES, add_trainer_routes

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
    bit_invariant: bool
    "the same pair gets the same bits whatever shares its batch"


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
    request_id: str
    "the caller's header x-request-id, or one that was made; the answer has it as header, too"


class ErrorBody(BaseModel):
    code: str
    message: str
    field: Annotated[str | None, Field(examples=["pairs[3].response"])]


class ErrorResponse(BaseModel):
    error: ErrorBody


async def _no_metrics() -> bytes:
    return b""


ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse, "description": text}
    for status, text in {
        400: "The request is not valid; nothing was queued.",
        401: "No API key of the service's.",
        413: "More bytes or pairs than the limit.",
        422: "Longer than the bundle's token limits.",
        503: "The queue is full or the replica is leaving; see Retry-After.",
    }.items()
}
SCORE_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": f"{COMPONENTS}ScoreRequest"}}},
    }
}


def build_http(
    scorer: Scorer,
    config: ServiceConfig,
    journal: Journal,
    keys: Keys | None = None,
    metrics_page: Callable[[], Awaitable[bytes]] = _no_metrics,
) -> ASGIApp:
    """The ASGI application of one replica, behind its limits on headers and bodies."""
    api = FastAPI(
        title="reward-service",
        description="Normalised scalar rewards for (prompt, response) pairs.",
        version=scorer.bundle.manifest.provenance.service_version,
        redirect_slashes=False,  # what is no path of the service is answered so
    )
    _add_score(api, scorer, config)
    add_trainer_routes(api, scorer, config, ERRORS)
    _add_state(api, scorer, metrics_page)
    _add_schemas(api)
    limited = Limits(Direct(api), config.max_body_bytes, config.max_header_bytes)
    journaled = Journaled(Keyed(limited, keys or Keys()), journal, set(api.openapi()["paths"]))
    return Addressed(journaled, set(SHAPES))


def _add_score(api: FastAPI, scorer: Scorer, config: ServiceConfig) -> None:
    @api.post(
        "/score",
        response_model=ScoreResponse,
        responses=ERRORS,
        openapi_extra=SCORE_BODY,
        tags=["score"],
    )
    async def score(request: Request) -> Response:
        """Score pairs. Each gets one reward; identical requests get identical bits."""
        asked = parse_json(await request.body())
        pairs = asked.as_pairs(config.max_pairs)
        deadline_s = asked.deadline_s(config.deadline_s)
        if asked.deadline_ms is not None:
            scorer.refuse_hopeless(deadline_s)
        scores = await scorer.score(pairs, asked.truncation, deadline_s, name=asked.name)
        request.state.entry.scores = scores
        content = _render(scorer, scores, request.state.entry.request_id)
        return Response(content, media_type="application/json")


def _add_state(api: FastAPI, scorer: Scorer, metrics_page: Callable[[], Awaitable[bytes]]) -> None:
    manifest = Response(scorer.bundle.manifest.model_dump_json(), media_type="application/json")

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


class Direct:
    """Gives scoring requests to their endpoints, all others to FastAPI.

    Its layers do nothing for endpoints that read their body and make their answer themselves, and
    are a tenth of what a single pair costs without an engine (py-spy, 28 Nov 2026).
    """

    def __init__(self, api: FastAPI) -> None:
        self.api = api
        api.exception_handler(Exception)(_fail)
        api.exception_handler(HTTPException)(_lost)
        self.endpoints: dict[str, Callable[[Request], Awaitable[Response]]] = {
            route.path: route.endpoint
            for route in api.routes
            if isinstance(route, APIRoute) and route.methods == {"POST"}
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scores = scope["type"] == "http" and scope["method"] == "POST"
        endpoint = self.endpoints.get(scope["path"]) if scores else None
        if endpoint is None:
            await self.api(scope, receive, send)
            return
        request = Request(scope, receive)
        try:
            response = await endpoint(request)
        except RewardError as error:
            response = _refuse(request, error)
        except Exception as error:
            response = await _fail(request, error)
        await response(scope, receive, send)


def _refuse(request: Request, error: RewardError) -> Response:
    request.state.entry.error = error.code
    return error_response(error)


async def _lost(request: Request, error: HTTPException) -> Response:
    """The router raises only these two. A path may have a key in it, so none is echoed."""
    if error.status_code == 405:
        allowed = (error.headers or {})["Allow"]
        message = f"method: {request.method} is not taken here; this path takes {allowed}"
        return _refuse(request, MethodNotAllowed(message, allowed=allowed))
    message = "path: it is none of the service's; /docs has them all"
    return _refuse(request, NotFound(message, field="path"))


async def _fail(request: Request, error: Exception) -> Response:
    log.error("unhandled error on %s", request.url.path, exc_info=error)
    request.state.entry.error = RewardError.code
    return error_response(RewardError("internal error; see the service's log"))


def _add_schemas(api: FastAPI) -> None:
    """Of the bodies that are parsed by hand, which FastAPI therefore does not see."""
    schemas = api.openapi()["components"]["schemas"]
    models: set[type[BaseModel]] = {ScoreRequest, *(shape for shape, _ in SHAPES.values())}
    for model in models:
        schema = model.model_json_schema(ref_template=COMPONENTS + "{model}")
        schemas |= {**schema.pop("$defs", {}), model.__name__: schema}


def _render(scorer: Scorer, scores: Scores, request_id: str) -> bytes:
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
                "bit_invariant": scorer.bit_invariant,
            },
            "engine": scorer.engine.fingerprint,
            "timing": scores.timing,
            "request_id": request_id,
        }
    )
