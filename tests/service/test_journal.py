"""What is kept about a request, and what never is."""

import asyncio
import json
import threading
from typing import Any

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2

from service import metrics
from service.bundle import Bundle
from service.config import ServiceConfig
from service.grpc_api import GrpcApi
from service.http_api import build_http
from service.journal import Journal
from service.metrics import Recorder
from service.middleware import Limits
from service.ragged_budget import RaggedBudget
from service.ragged_engine import RaggedEngine
from service.scorer import Scorer
from tests.e2e.cases import SCORED, as_message

SECRET = "the quick brown fox"


class Call:
    """The part of a gRPC context that GrpcApi uses, as grpc and Ray have it."""

    def __init__(self) -> None:
        self.code, self.details, self.trailing = grpc.StatusCode.OK, "", {}

    def set_code(self, code: grpc.StatusCode) -> None:
        self.code = code

    def set_details(self, details: str) -> None:
        self.details = details

    def set_trailing_metadata(self, metadata: list[tuple[str, str]]) -> None:
        self.trailing = dict(metadata)

    def invocation_metadata(self) -> list[tuple[str, str]]:
        return []


class Exploding(Scorer):
    async def score(self, *arguments):
        raise RuntimeError(f"a bug near {SECRET}")


def _post(scorer: Scorer, config: ServiceConfig, journal: Journal, body: object) -> httpx.Response:
    async def go() -> httpx.Response:
        app = build_http(scorer, config, journal)
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as http:
            return await http.post("/score", json=body)

    return asyncio.run(go())


def test_a_line_has_id_counts_and_durations_and_no_text(scorer, config) -> None:
    recorder, lines = Recorder(), list[str]()
    journal = Journal(recorder, lambda: "id-7", lines.append)
    _post(scorer, config, journal, {"prompt": SECRET, "responses": [SECRET, ""]})
    _post(scorer, config, journal, {"prompt": SECRET, "responses": [], "text": SECRET})
    answered, refused = map(json.loads, lines)
    assert SECRET not in "".join(lines)
    assert answered.keys() == {
        *("time", "request_id", "route", "code", "total_ms", "pairs", "tokens"),
        *("tokenize_ms", "queue_ms", "engine_ms"),
    }
    assert (answered["request_id"], answered["code"], answered["pairs"]) == ("id-7", "200", 2)
    assert (refused["code"], refused["error"]) == ("400", "invalid_request")
    assert recorder.added[metrics.REQUESTS, ("/score", "200")] == 1
    assert recorder.added[metrics.ERRORS, ("invalid_request",)] == 1


@pytest.fixture
def exploding(bundle: Bundle, config: ServiceConfig):
    scorer = Exploding(bundle, RaggedEngine(bundle, "fp32"), RaggedBudget(1024), config)
    yield scorer
    scorer.close()


def test_an_unhandled_error_leaves_the_process_without_its_text(exploding, config) -> None:
    answer = _post(exploding, config, Journal(Recorder()), SCORED["one pair"])
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "internal" and SECRET not in answer.text

    call = Call()
    api = GrpcApi(exploding, config, Journal(Recorder()))
    reply = asyncio.run(api.score(as_message(SCORED["one pair"]), call))
    assert not reply.results and call.code == grpc.StatusCode.INTERNAL
    assert SECRET not in call.details and call.trailing["reward-error-code"] == "internal"


def test_a_caller_that_leaves_before_its_request_is_whole_is_no_failure() -> None:
    """Its body ends in a disconnect: the application is not asked, and nothing is answered."""
    asked: list[Any] = []

    async def api(*arguments: Any) -> None:
        asked.append(arguments)

    coming = [
        {"type": "http.request", "body": b'{"prompt', "more_body": True},
        {"type": "http.disconnect"},
    ]
    scope = {"type": "http", "headers": [], "state": {}}

    async def receive() -> Any:
        return coming.pop(0)

    asyncio.run(Limits(api, 1000, 1000)(scope, receive, api))
    assert asked == [] and coming == []


STATUS = health_pb2.HealthCheckResponse


@pytest.mark.parametrize(
    ("service", "seen"),
    [
        ("", [STATUS.SERVING, STATUS.NOT_SERVING]),
        ("reward.v9.Other", [STATUS.SERVICE_UNKNOWN, STATUS.SERVICE_UNKNOWN]),
    ],
)
def test_a_health_watch_ends_when_the_replica_leaves(
    scorer: Scorer, config: ServiceConfig, service: str, seen: list[int]
) -> None:
    api, leaving = GrpcApi(scorer, config, Journal(Recorder())), threading.Event()

    async def go() -> list[int]:
        seen = []
        request = health_pb2.HealthCheckRequest(service=service)
        async for response in api.watch(request, Call(), leaving.is_set):
            seen.append(response.status)
            leaving.set()
        return seen

    assert asyncio.run(asyncio.wait_for(go(), 5)) == seen
