"""reward.v1 <-> scorer types. Only translates; knows nothing of Ray."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Protocol

import grpc
from grpc_health.v1 import health_pb2

from service.config import ServiceConfig
from service.errors import RewardError
from service.journal import Entry, Journal, checked_id
from service.keys import Keys
from service.proto.reward.v1 import reward_pb2 as pb
from service.request import ScoreRequest, parse
from service.scorer import Scorer, Scores

log = logging.getLogger("reward.grpc")

SERVICE = "reward.v1.RewardService"
SERVICERS = [
    "service.proto.reward.v1.reward_pb2_grpc.add_RewardServiceServicer_to_server",
    "grpc_health.v1.health_pb2_grpc.add_HealthServicer_to_server",
]
"import paths of what registers our methods with a gRPC server"


class Context(Protocol):
    """What a method may say about its call; grpc's and Ray's contexts both have it."""

    def set_code(self, code: grpc.StatusCode) -> None: ...
    def set_details(self, details: str) -> None: ...
    def set_trailing_metadata(self, metadata: list[tuple[str, str]]) -> None: ...
    def invocation_metadata(self) -> Sequence[tuple[str, str]]: ...


class GrpcApi:
    """The methods of RewardService and of grpc.health.v1.Health. No exception leaves them."""

    def __init__(
        self, scorer: Scorer, config: ServiceConfig, journal: Journal, keys: Keys | None = None
    ) -> None:
        self._scorer = scorer
        self._max_pairs = config.max_pairs
        self._deadline_s = config.deadline_s
        self._journal = journal
        self._keys = keys or Keys()

    async def score(self, request: pb.ScoreRequest, context: Context) -> pb.ScoreResponse:
        entry = self._journal.open("Score")
        try:
            self._greet(context, entry)
            asked = _parse(request)
            pairs = asked.as_pairs(self._max_pairs)
            deadline_s = asked.deadline_s(self._deadline_s)
            if asked.deadline_ms is not None:
                self._scorer.refuse_hopeless(deadline_s)
            entry.scores = await self._scorer.score(
                pairs, asked.truncation, deadline_s, name=asked.name
            )
            entry.code = "OK"
            context.set_trailing_metadata([("x-request-id", entry.request_id)])
            return self._response(entry.scores, entry.request_id)
        except RewardError as error:
            _refuse(context, error, entry)
        except Exception:  # its text could name paths or content: log it here, send none of it
            log.exception("unhandled error in Score")
            _refuse(context, RewardError("internal error; see the service's log"), entry)
        finally:
            self._journal.close(entry)
        return pb.ScoreResponse()

    def get_bundle(self, context: Context) -> pb.GetBundleResponse:
        entry = self._journal.open("GetBundle")
        try:
            self._greet(context, entry)
            entry.code = "OK"
            manifest = self._scorer.bundle.manifest
            return pb.GetBundleResponse(manifest_json=manifest.model_dump_json())
        except RewardError as error:
            _refuse(context, error, entry)
            return pb.GetBundleResponse()
        finally:
            self._journal.close(entry)

    def _greet(self, context: Context, entry: Entry) -> None:
        """The caller's request id and its key."""
        metadata = dict(context.invocation_metadata())
        if given := metadata.get("x-request-id"):
            entry.request_id = checked_id(given)
        self._keys.check(metadata.get("authorization"))

    def check(
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> health_pb2.HealthCheckResponse:
        """SERVING once the golden scores were reproduced, until the replica drains."""
        return _health(request, context, serving=not self._scorer.draining)

    async def watch(
        self,
        request: health_pb2.HealthCheckRequest,
        context: Context,
        leaving: Callable[[], bool] = lambda: False,
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """The status now, and NOT_SERVING when the replica drains or is leaving; then the stream
        ends, or the replica would wait for it."""
        yield self.check(request, context)
        while not (self._scorer.draining or leaving()):
            await asyncio.sleep(0.5)
        yield _health(request, context, serving=False)

    def _response(self, scores: Scores, request_id: str) -> pb.ScoreResponse:
        manifest = self._scorer.bundle.manifest
        return pb.ScoreResponse(
            results=[
                pb.Result(
                    reward=result.reward,
                    raw_reward=result.raw_reward,
                    tokens=result.tokens,
                    truncated=result.truncated,
                    tokens_cut=result.tokens_cut,
                )
                for result in scores.results
            ],
            bundle=pb.BundleRef(
                id=manifest.id,
                name=manifest.name,
                variant=self._scorer.variant.name,
                normalized=manifest.normalization is not None,
                bit_invariant=self._scorer.bit_invariant,
            ),
            engine=self._scorer.engine.fingerprint,
            timing=pb.Timing(
                tokenize_ms=scores.timing.tokenize_ms,
                queue_ms=scores.timing.queue_ms,
                engine_ms=scores.timing.engine_ms,
            ),
            request_id=request_id,
        )


def _health(
    request: health_pb2.HealthCheckRequest, context: Context, serving: bool
) -> health_pb2.HealthCheckResponse:
    status = health_pb2.HealthCheckResponse
    if request.service not in ("", SERVICE):
        context.set_code(grpc.StatusCode.NOT_FOUND)
        context.set_details(f"service {request.service!r} is unknown; there is {SERVICE}")
        return status(status=status.SERVICE_UNKNOWN)
    return status(status=status.SERVING if serving else status.NOT_SERVING)


def _parse(request: pb.ScoreRequest) -> ScoreRequest:
    """Validated by the very model that validates JSON, so both give the same errors."""
    content: dict[str, Any] = {
        "truncation": request.truncation or "prompt",
        "deadline_ms": request.deadline_ms or None,
    }
    if request.pairs or not request.HasField("group"):
        content["pairs"] = [_pair(pair) for pair in request.pairs]
    if request.HasField("group"):
        content["prompt"] = _prompt(request.group.prompt)
        content["responses"] = list(request.group.responses)
    return parse(content)


def _pair(pair: pb.Pair) -> dict[str, Any]:
    content: dict[str, Any] = {}
    form = pair.WhichOneof("whole")
    if form is None or pair.HasField("prompt"):
        content["prompt"] = _prompt(pair.prompt)
    if form is None or pair.response:
        content["response"] = pair.response
    if form == "text":
        content["text"] = pair.text
    if form == "input_ids":
        content["input_ids"] = list(pair.input_ids.ids)
    return content


def _prompt(prompt: pb.Prompt) -> str | list[dict[str, str]] | None:
    form = prompt.WhichOneof("form")
    if form == "conversation":
        messages = prompt.conversation.messages
        return [{"role": message.role, "content": message.content} for message in messages]
    return prompt.text if form else None


def _refuse(context: Context, error: RewardError, entry: Entry) -> None:
    entry.code, entry.error = error.grpc_status, error.code
    context.set_code(grpc.StatusCode[error.grpc_status])
    context.set_details(error.message)
    context.set_trailing_metadata(
        [
            ("reward-error-code", error.code),
            ("reward-error-field", error.field or ""),
            ("x-request-id", entry.request_id),
        ]
    )
