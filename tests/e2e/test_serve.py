"""`reward-serve run` under real Ray Serve, in both ingress modes."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import grpc
import httpx
import psutil
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from loadtests.bench import servers
from service.bundle import Bundle
from service.proto.reward.v1 import reward_pb2 as pb
from service.proto.reward.v1.reward_pb2_grpc import RewardServiceStub
from service.request import parse
from service.scorer import Result, Scorer, score_offline
from tests.contract.test_bundle import with_golden
from tests.e2e.cases import REFUSED, SCORED, Refused, as_message
from training.demo.walk import serving

SERVING = HealthCheckResponse.ServingStatus.SERVING


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


def test_no_process_watches_logs_or_machines_for_nobody(service) -> None:
    commands = [" ".join(p.cmdline()) for p in psutil.Process(service.process.pid).children(True)]
    assert any("gcs_server" in command for command in commands)
    assert not [command for command in commands if "monitor.py" in command]


def test_two_services_that_start_at_the_same_time_share_no_port(bundle: Bundle) -> None:
    """Ray's replicas would share gRPC port 40000, and each service answer for the other."""

    def listening(service: servers.Server) -> set[int]:
        processes = psutil.Process(service.pid).children(recursive=True)
        return {
            connection.laddr.port
            for process in processes
            for connection in process.net_connections()
            if connection.status == psutil.CONN_LISTEN
        }

    with servers.together(servers.service(bundle.path), servers.service(bundle.path)) as both:
        first, second = map(listening, both)
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


def test_a_port_in_use_is_refused_with_one_line_before_ray_starts(bundle: Bundle) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        done = _serve("run", str(bundle.path), f"--port={port}", "--grpc-port=0")
    assert done.returncode == 1
    assert done.stderr.startswith(f"reward-serve: port: 127.0.0.1:{port}: ")
    assert done.stderr.count("\n") == 1


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
