"""`reward-serve run` under real Ray Serve, in both ingress modes."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import grpc
import httpx
import psutil
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from service.bundle import Bundle
from service.config import ServiceConfig
from service.pairs import Pair
from service.proto.reward.v1 import reward_pb2 as pb
from service.proto.reward.v1.reward_pb2_grpc import RewardServiceStub
from service.request import parse
from service.scorer import Result, Scorer, score_offline
from tests.contract.test_bundle import with_golden
from tests.e2e.cases import REFUSED, SCORED, Refused, as_message
from training.demo.walk import Service, serving

SERVING = HealthCheckResponse.ServingStatus.SERVING
BODY = {"prompt": "What is 2 plus 2?", "responses": ["The sum is 4.", "The sum is 5.", ""]}


@pytest.fixture(scope="module", params=["haproxy", "python"])
def service(request, bundle: Bundle):
    with serving(bundle.path, "--ingress", request.param) as service:
        yield service
    assert service.process.returncode == 0


@pytest.fixture(scope="module")
def channel(service):
    with grpc.insecure_channel(service.grpc) as channel:
        yield channel


@pytest.mark.parametrize("name", SCORED)
def test_http_and_grpc_give_the_bits_of_the_scorer(
    service, channel, scorer: Scorer, name: str
) -> None:
    request = SCORED[name]
    expected = list(score_offline(scorer, parse(request).as_pairs(8192)))
    body = httpx.post(f"{service.url}/score", json=request).json()
    assert [Result(**result) for result in body["results"]] == expected
    assert body["rewards"] == [result.reward for result in expected]

    reply = RewardServiceStub(channel).Score(as_message(request))
    assert [_result(r) for r in reply.results] == expected
    assert {field.name: value for field, value in reply.bundle.ListFields()} == body["bundle"]
    assert reply.engine == body["engine"]


def _result(message: pb.Result) -> Result:
    return Result(
        message.reward, message.raw_reward, message.tokens, message.truncated, message.tokens_cut
    )


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.name)
def test_http_and_grpc_refuse_with_the_same_code_and_field(service, channel, case: Refused) -> None:
    answer = httpx.post(f"{service.url}/score", json=case.request)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["field"]) == (case.http, case.code, case.field)

    with pytest.raises(grpc.RpcError) as caught:
        RewardServiceStub(channel).Score(as_message(case.request))
    trailing = dict(caught.value.trailing_metadata())
    assert caught.value.code().name == case.grpc
    assert caught.value.details() == error["message"]
    assert trailing["reward-error-code"] == case.code
    assert trailing["reward-error-field"] == case.field


@pytest.mark.parametrize("headers", [{}, {"x-request-timeout-seconds": "0"}])
def test_a_deadline_of_the_callers_is_kept(service, channel, headers: dict[str, str]) -> None:
    """Ray's header, with which a caller may lift Ray's own limit, does not lift ours."""
    hasty = {**SCORED["many"], "deadline_ms": 1}
    answer = httpx.post(f"{service.url}/score", json=hasty, headers=headers)
    assert answer.status_code == 503 and int(answer.headers["retry-after"]) >= 1
    assert answer.json()["error"]["code"] == "deadline_exceeded"
    with pytest.raises(grpc.RpcError) as caught:
        RewardServiceStub(channel).Score(as_message(hasty))
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED


def test_grpc_bundle_health_and_no_reflection(channel, bundle: Bundle) -> None:
    reply = RewardServiceStub(channel).GetBundle(pb.GetBundleRequest())
    assert json.loads(reply.manifest_json) == bundle.manifest.model_dump(mode="json")

    health = HealthStub(channel)
    for service in ("", "reward.v1.RewardService"):
        assert health.Check(HealthCheckRequest(service=service)).status == SERVING
    assert next(iter(health.Watch(HealthCheckRequest()))).status == SERVING
    with pytest.raises(grpc.RpcError) as caught:
        health.Check(HealthCheckRequest(service="nothing"))
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND

    reflect = channel.unary_unary("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")
    with pytest.raises(grpc.RpcError) as caught:
        reflect(b"")
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_a_grpc_message_over_64_mb_is_refused(channel) -> None:
    huge = as_message({"prompt": "a", "responses": ["x" * (65 * 1024 * 1024)]})
    with pytest.raises(grpc.RpcError) as caught:
        RewardServiceStub(channel).Score(huge)
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


def test_health_readiness_bundle_and_docs(service, bundle: Bundle) -> None:
    assert httpx.get(f"{service.url}/healthz").json() == {"status": "alive"}
    ready = httpx.get(f"{service.url}/readyz")
    assert ready.status_code == 200 and ready.json()["bundle"] == bundle.manifest.id
    assert httpx.get(f"{service.url}/bundle").json() == bundle.manifest.model_dump(mode="json")
    assert "/score" in httpx.get(f"{service.url}/openapi.json").json()["paths"]
    assert httpx.get(f"{service.url}/docs").status_code == 200


@pytest.mark.parametrize(
    ("body", "status"), [(b"nope", 400), (b'{"pairs": []}', 400), (b" " * 40_000_000, 413)]
)
def test_errors_pass_the_ingress_unchanged(service, body: bytes, status: int) -> None:
    answer = httpx.post(f"{service.url}/score", content=body)
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"code", "message", "field"}


class Load:
    """Clients that ask without pause until told to stop; what became of every request.

    pause_s lies between a request's headers and its body; padding is white space after the body.
    """

    def __init__(
        self,
        url: str,
        expected: list[float],
        clients: int = 12,
        pause_s: float = 0,
        padding: int = 0,
    ) -> None:
        self.answers: list[tuple[float, str]] = []  # (when it was asked, what became of it)
        self._stop = threading.Event()
        self._url = f"{url}/score"
        self._body = json.dumps(BODY).encode() + b" " * padding
        self._pause_s = pause_s
        self._expected = expected
        self._clients = [threading.Thread(target=self._run) for _ in range(clients)]

    def __enter__(self) -> "Load":
        for client in self._clients:
            client.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for client in self._clients:
            client.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            asked = time.monotonic()
            outcome = self._ask()
            self.answers.append((asked, outcome))
            if outcome != "right":
                time.sleep(0.01)

    def until_answered(self, more: int) -> None:
        """Return when so many more were answered right."""
        enough, given_up = self._right() + more, time.monotonic() + 60
        while self._right() <= enough:
            assert time.monotonic() < given_up, self.answers[-3:]
            time.sleep(0.05)

    def _right(self) -> int:
        return sum(outcome == "right" for _, outcome in self.answers)

    def _paused(self) -> Iterator[bytes]:
        time.sleep(self._pause_s)
        yield self._body

    def _ask(self) -> str:
        length = {"Content-Length": str(len(self._body))}
        request = urllib.request.Request(self._url, self._paused(), length)
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return "right" if json.load(response)["rewards"] == self._expected else "wrong"
        except urllib.error.HTTPError as error:
            waits = error.code == 404 or error.headers.get("retry-after")
            return str(error.code) if waits else f"{error.code} without Retry-After"
        except urllib.error.URLError as error:
            refused = isinstance(error.reason, ConnectionRefusedError)
            return "refused" if refused else f"lost: {error.reason}"
        except OSError as error:
            return f"lost: {error!r}"


@pytest.fixture(scope="module")
def expected(scorer: Scorer) -> list[float]:
    pairs = [Pair(BODY["prompt"], response) for response in BODY["responses"]]
    return [result.reward for result in score_offline(scorer, pairs)]


def test_sigterm_under_load_answers_everything_accepted(bundle: Bundle, expected) -> None:
    """Until the application is gone each request is answered right or with 503 and Retry-After.

    It is gone with the first 404 of Ray's or the first connection refused: what is asked from then
    on was not accepted.
    """
    with serving(bundle.path) as service, Load(service.url, expected) as load:
        load.until_answered(100)
        service.process.send_signal(signal.SIGTERM)
        service.process.wait(60)
    assert service.process.returncode == 0
    gone = min(asked for asked, outcome in load.answers if outcome in ("404", "refused"))
    before = Counter(outcome for asked, outcome in load.answers if asked < gone)
    assert set(before) <= {"right", "503", "404", "refused"}, before
    refused = [asked for asked, outcome in load.answers if outcome == "503"]
    assert before["right"] > 100 and before["503"] > 100
    # long enough for load balancers to see it: half of what it is, less than which says something
    assert max(refused) - min(refused) > ServiceConfig.model_fields["drain_notice_s"].default / 2
    assert not any(outcome in ("right", "wrong") for asked, outcome in load.answers if asked > gone)


def _replicas(service: Service) -> list[psutil.Process]:
    """Those that HAProxy sends requests to: a replica listens on one of these ports for it."""

    def takes_requests(process: psutil.Process) -> bool:
        with contextlib.suppress(psutil.Error):
            return "ServeReplica:default:reward" in "".join(process.cmdline()) and any(
                each.status == psutil.CONN_ESTABLISHED and each.laddr.port in range(30000, 31001)
                for each in process.net_connections("tcp4")
            )
        return False

    return [p for p in psutil.Process(service.process.pid).children(True) if takes_requests(p)]


def _two_without(service: Service, gone: psutil.Process | None) -> list[psutil.Process]:
    """The two replicas as soon as there are two and the one that had to go has gone."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        replicas = _replicas(service)
        if len(replicas) == 2 and gone not in replicas:
            return replicas
        time.sleep(0.2)
    raise AssertionError(f"not two replicas after 120 s: {replicas}, {gone} had to go")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_replicas_that_are_killed_under_load_lose_nothing(
    bundle: Bundle, expected, number: signal.Signals
) -> None:
    """Two replicas, always with load; three times one of them gets the signal.

    On SIGTERM it leaves when it has answered, whatever the size of a request. What was in flight on
    a process killed with -9 HAProxy repeats, headers and body apart or not, up to a body of 1 MiB.
    """
    with serving(bundle.path, "--replicas=2") as service:
        loads = [Load(service.url, expected, 5), Load(service.url, expected, 5, pause_s=0.005)]
        if number == signal.SIGTERM:
            loads.append(Load(service.url, expected, 2, padding=2 * 1024 * 1024))
        with contextlib.ExitStack() as stack:
            for load in loads:
                stack.enter_context(load)
            gone = None
            for _ in range(3):
                gone = _two_without(service, gone)[0]
                for load in loads:
                    load.until_answered(35)
                gone.send_signal(number)
            _two_without(service, gone)
    for load in loads:
        outcomes = Counter(outcome for _, outcome in load.answers)
        assert set(outcomes) == {"right"} and outcomes["right"] > 100, outcomes


def test_two_services_on_one_machine_share_no_port(bundle: Bundle) -> None:
    """Ray's replicas would share gRPC port 40000, and each service answer for the other."""

    def listening(service) -> set[int]:
        processes = psutil.Process(service.process.pid).children(recursive=True)
        return {
            connection.laddr.port
            for process in processes
            for connection in process.net_connections()
            if connection.status == psutil.CONN_LISTEN
        }

    with serving(bundle.path) as one, serving(bundle.path) as other:
        first, second = listening(one), listening(other)
    assert len(first) > 10 and len(second) > 10 and not first & second


def _serve(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "service", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, env=os.environ | environment
    )


def test_a_broken_bundle_is_refused_with_one_line_before_ray_starts(copy: Path) -> None:
    (copy / "model.onnx.data").write_bytes(b"")
    done = _serve("run", str(copy))
    assert done.returncode == 1
    assert done.stderr.startswith("reward-serve: model.onnx.data: its SHA-256 or size")
    assert done.stderr.count("\n") == 1


def test_cuda_where_there_is_none_is_a_clear_error(bundle: Bundle) -> None:
    done = _serve("run", str(bundle.path), "--device", "cuda")
    assert done.returncode == 1
    assert "device cuda was asked for, but this onnxruntime has no CUDA provider" in done.stderr


def test_a_replica_that_cannot_start_says_why(bundle: Bundle, copy: Path) -> None:
    def change(rows: list) -> None:
        rows[0]["reward"] += 1

    with_golden(bundle, copy, change)
    done = _serve("run", str(copy), "--port=0", "--grpc-port=0")
    assert done.returncode == 1
    assert "golden.json: row 0: the engine gives" in done.stderr


def test_verify_prints_what_it_proved(bundle: Bundle) -> None:
    done = _serve("verify", str(bundle.path), "--json")
    report = json.loads(done.stdout)
    assert report["id"] == bundle.manifest.id and report["max_distance"] <= 1e-4


def test_onnxruntime_twice_is_refused_with_the_way_out(bundle: Bundle, tmp_path: Path) -> None:
    for name in ("onnxruntime", "onnxruntime-gpu"):
        metadata = tmp_path / f"{name.replace('-', '_')}-1.31.1.dist-info" / "METADATA"
        metadata.parent.mkdir()
        metadata.write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.31.1\n")
    done = _serve("verify", str(bundle.path), PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    assert "both installed and overwrite each other; pip uninstall both" in done.stderr
