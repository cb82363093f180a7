"""The Ray Serve replica: edge and scorer in one process. Knows Ray; leaves all else to others."""

import asyncio
import atexit
import gc
import sys
import threading
from collections.abc import AsyncIterator
from functools import partial

from grpc_health.v1 import health_pb2
from ray import serve
from ray.serve.context import _get_serve_request_context
from starlette.types import ASGIApp

from service.config import ServiceConfig
from service.exporter import NODES_AT_ONCE, Exporter, cluster_page
from service.grpc_api import Context, GrpcApi
from service.http_api import build_http
from service.joined import join_writes
from service.journal import Journal
from service.keys import Keys
from service.metrics import Recorder
from service.proto.reward.v1 import reward_pb2 as pb
from service.scorer import Scorer
from service.sigterm import on_sigterm
from service.threads import started

GC_OBJECTS = 20_000
"""so many new objects make Python look for cycles among them. Requests leave none (18,000 pairs:
one collection, of 20 objects), and at the 700 of Python 3.11 the search took a twentieth of what a
replica needs for a pair without an engine (perf, 2 cores of an EPYC, 1 Dec 2026)"""


# Requests have a line of ours each, which knows more than Serve's.
@serve.deployment(name="reward", logging_config={"enable_access_log": False})
@serve.ingress()
class RewardReplica:
    """Ready only when the bundle was verified and its golden scores were reproduced.

    A constructor that raises is a replica that never serves; Serve reports the message. SIGTERM
    makes it unhealthy and changes nothing else: Serve takes it out of the ingress, lets it finish
    what it has, and starts another.
    """

    def __init__(self, config: dict[str, object]) -> None:
        self._config = ServiceConfig.model_validate(config)
        recorder = Recorder()
        self._scorer = Scorer.open(self._config, recorder)
        self._journal = Journal(
            recorder, _request_id, _Together().write if self._config.log_requests else None
        )
        self._keys = Keys.read(self._config.api_key_file)
        self._grpc = GrpcApi(self._scorer, self._config, self._journal, self._keys)
        self._exporter = Exporter(recorder)  # Serve constructs on the loop it will serve from
        self._scrapes = started(NODES_AT_ONCE, "metrics")
        self._leaving = threading.Event()
        join_writes()
        on_sigterm(self._leaving.set, within_s=self._config.drain_timeout_s)
        gc.freeze()  # what start-up made is never garbage: keeps full collections short
        gc.set_threshold(GC_OBJECTS)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        page = partial(cluster_page, self._scrapes)
        return build_http(self._scorer, self._config, self._journal, self._keys, page)

    async def Score(self, request: pb.ScoreRequest, grpc_context: Context) -> pb.ScoreResponse:
        return await self._grpc.score(request, grpc_context)

    async def GetBundle(
        self, request: pb.GetBundleRequest, grpc_context: Context
    ) -> pb.GetBundleResponse:
        return self._grpc.get_bundle(grpc_context)

    async def Check(
        self, request: health_pb2.HealthCheckRequest, grpc_context: Context
    ) -> health_pb2.HealthCheckResponse:
        return self._grpc.check(request, grpc_context)

    async def Watch(
        self, request: health_pb2.HealthCheckRequest, grpc_context: Context
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        async for response in self._grpc.watch(request, grpc_context, self._leaving.is_set):
            yield response

    async def drain(self) -> None:
        """Refuse new requests with 503, return when every accepted one is answered.

        It takes a moment at least, in which load balancers see 503 and go elsewhere.
        """
        await asyncio.gather(self._scorer.drain(), asyncio.sleep(self._config.drain_notice_s))

    async def check_health(self) -> None:
        """Called by Serve, which replaces a replica that raises or whose event loop is stuck.

        Three times in a row, that is: within 4 s at `app.HEALTH_PERIOD_S`.
        """
        if self._leaving.is_set():
            raise RuntimeError("the replica's process got SIGTERM; another one takes its place")
        running_s = self._scorer.scheduler.running_s
        if running_s > self._config.stuck_after_s:
            raise RuntimeError(f"one engine run has taken {running_s:.0f} s")

    def __del__(self) -> None:
        if scorer := getattr(self, "_scorer", None):
            scorer.close()


def _request_id() -> str:
    """The caller's x-request-id, or the one Serve made; Serve echoes it."""
    return _get_serve_request_context().request_id


class _Together:
    """Writes lines to standard error, which Ray keeps in its log directory, a few times a second.

    A system call for each line took a quarter of the time that a replica needs for a single pair
    without an engine (py-spy, 21 Nov 2026), and `logging` a twentieth (29 Nov 2026).
    """

    WRITE_S = 0.2

    def __init__(self) -> None:
        self._lines: list[str] = []
        atexit.register(self.flush)

    def write(self, line: str) -> None:
        """Called within the event loop."""
        self._lines.append(line + "\n")
        if len(self._lines) == 1:
            asyncio.get_running_loop().call_later(self.WRITE_S, self.flush)

    def flush(self) -> None:
        """Also at exit."""
        lines, self._lines = self._lines, []
        sys.stderr.write("".join(lines))
        sys.stderr.flush()
