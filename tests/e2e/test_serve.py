"""`reward-serve run` under real Ray Serve, in both ingress modes."""

import json
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import grpc
import httpx
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from service.bundle import Bundle
from service.proto.reward.v1 import reward_pb2 as pb
from service.proto.reward.v1.reward_pb2_grpc import RewardServiceStub
from service.request import parse
from service.scorer import Pair, Result, Scorer, score_offline
from tests.contract.test_bundle import with_golden
from tests.e2e.cases import REFUSED, SCORED, Refused, as_message
from training.demo.walk import serving

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


def test_sigterm_under_load_answers_everything_accepted(bundle: Bundle, scorer: Scorer) -> None:
    """Twelve clients without pause: each request is answered right, or refused; none is lost.

    Refused means 503 with Retry-After, Ray's 404 once the application is gone, or no connection.
    """
    pairs = [Pair(BODY["prompt"], response) for response in BODY["responses"]]
    expected = [result.reward for result in score_offline(scorer, pairs)]
    outcomes: list[str] = []
    stop = threading.Event()

    def ask(url: str) -> None:
        request = urllib.request.Request(f"{url}/score", json.dumps(BODY).encode())
        while not stop.is_set():
            try:
                with urllib.request.urlopen(request, timeout=60) as response:
                    right = json.load(response)["rewards"] == expected
                    outcomes.append("right" if right else "wrong")
            except urllib.error.HTTPError as error:
                waits = error.code == 404 or error.headers.get("retry-after")
                outcomes.append(str(error.code) if waits else f"{error.code} without Retry-After")
                time.sleep(0.01)
            except urllib.error.URLError as error:
                refused = isinstance(error.reason, ConnectionRefusedError)
                outcomes.append("refused" if refused else f"lost: {error.reason}")
                time.sleep(0.01)
            except OSError as error:
                outcomes.append(f"lost: {error!r}")

    with serving(bundle.path) as service:
        clients = [threading.Thread(target=ask, args=(service.url,)) for _ in range(12)]
        for client in clients:
            client.start()
        time.sleep(2)
        service.process.send_signal(signal.SIGTERM)
        service.process.wait(60)
        stop.set()
        for client in clients:
            client.join()
    assert service.process.returncode == 0
    assert outcomes.count("right") > 100
    refusals = [outcome for outcome in outcomes if outcome in ("503", "404", "refused")]
    assert refusals[0] == "503"  # notice comes first, Ray's 404 only when the application is gone
    assert outcomes.count("503") > 100
    assert set(outcomes) <= {"right", "503", "404", "refused"}, {
        outcome: outcomes.count(outcome) for outcome in set(outcomes)
    }


def _serve(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "service", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


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
    done = _serve("run", str(copy), "--port", "18991")
    assert done.returncode == 1
    assert "golden.json: row 0: the engine gives" in done.stderr


def test_verify_prints_what_it_proved(bundle: Bundle) -> None:
    done = _serve("verify", str(bundle.path), "--json")
    report = json.loads(done.stdout)
    assert report["id"] == bundle.manifest.id and report["max_distance"] <= 1e-4
