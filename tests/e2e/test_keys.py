"""API keys and request ids under real Ray Serve, and where a key must never be found."""

import re
from pathlib import Path

import grpc
import httpx
import psutil
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest
from grpc_health.v1.health_pb2_grpc import HealthStub

from service.bundle import Bundle
from service.proto.reward.v1 import reward_pb2 as pb
from service.proto.reward.v1.reward_pb2_grpc import RewardServiceStub
from tests.e2e.cases import SCORED, as_message
from tests.service.test_trainer_api import ONE
from training.demo.walk import Service, serving

KEY, OLD = "k3y-of-today.0123456789abcdef", "k3y-of-yesterday.0123456789abc"
BODY = SCORED["one pair"]
BEARER = {"authorization": f"Bearer {KEY}"}


@pytest.fixture(scope="module", params=["haproxy", "python"])
def service(request, bundle: Bundle, tmp_path_factory):
    file = tmp_path_factory.mktemp("keys") / "keys.txt"
    file.write_text(f"{KEY}\n{OLD}\n")
    options = ("--ingress", request.param, "--set", f"api_key_file={file}")
    with serving(bundle.path, *options) as service:
        yield service


@pytest.fixture(scope="module")
def stub(service):
    with grpc.insecure_channel(service.grpc) as channel:
        yield RewardServiceStub(channel)


def test_health_needs_no_key_and_everything_else_does(service) -> None:
    assert httpx.get(f"{service.url}/healthz").status_code == 200
    assert httpx.get(f"{service.url}/readyz").status_code == 200
    for path in ("/bundle", "/metrics", "/docs", "/openapi.json"):
        assert httpx.get(f"{service.url}{path}").status_code == 401
    for path in ("/score", *ONE):
        answer = httpx.post(f"{service.url}{path}", json={})
        assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
        assert answer.json()["error"]["code"] == "unauthorized"
    with grpc.insecure_channel(service.grpc) as channel:
        assert HealthStub(channel).Check(HealthCheckRequest()).status == 1


@pytest.mark.parametrize(
    "authorization", [f"Bearer {KEY}x", f"Bearer {KEY[:-1]}", "Bearer", f"Basic {KEY}", KEY, "é"]
)
def test_a_wrong_key_is_refused(service, authorization: str) -> None:
    headers = {"authorization": authorization.encode()}
    assert httpx.post(f"{service.url}/score", json=BODY, headers=headers).status_code == 401


@pytest.mark.parametrize("key", [KEY, OLD])
def test_each_key_of_the_file_is_good(service, stub, key: str) -> None:
    headers = {"authorization": f"Bearer {key}"}
    answer = httpx.post(f"{service.url}/score", json=BODY, headers=headers)
    reply = stub.Score(as_message(BODY), metadata=list(headers.items()))
    assert answer.json()["rewards"] == [result.reward for result in reply.results]
    assert stub.GetBundle(pb.GetBundleRequest(), metadata=list(headers.items())).manifest_json


def test_grpc_refuses_without_a_key(stub) -> None:
    for call, message in ((stub.Score, as_message(BODY)), (stub.GetBundle, pb.GetBundleRequest())):
        with pytest.raises(grpc.RpcError) as caught:
            call(message)
        assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
        assert dict(caught.value.trailing_metadata())["reward-error-code"] == "unauthorized"


@pytest.mark.parametrize("path", ONE)
def test_trainers_have_the_key_in_their_url(service, path: str) -> None:
    body, read = ONE[path]
    plain = read(httpx.post(f"{service.url}{path}", json=body, headers=BEARER).json())
    for url in (f"/key={KEY}{path}", f"{path}?key={KEY}", f"/template=raw/key={OLD}{path}"):
        answer = httpx.post(f"{service.url}{url}", json=body)
        assert answer.status_code == 200 and read(answer.json()) == plain
    for url in (f"/key={KEY}x{path}", f"{path}?key=", f"/key={KEY[1:]}{path}"):
        assert httpx.post(f"{service.url}{url}", json=body).status_code == 401


def test_score_takes_no_key_from_its_url(service) -> None:
    for url in (f"/score?key={KEY}", f"/key={KEY}/score"):
        assert httpx.post(f"{service.url}{url}", json=BODY).status_code == 401


def test_a_request_id_is_echoed(service, stub) -> None:
    def score(**headers: str) -> httpx.Response:
        return httpx.post(f"{service.url}/score", json=BODY, headers=BEARER | headers)

    given = score(**{"x-request-id": "run-7/step:12"})
    assert given.json()["request_id"] == "run-7/step:12"
    assert given.headers.get_list("x-request-id") == ["run-7/step:12"]
    made = score()
    assert made.headers.get_list("x-request-id") == [made.json()["request_id"]]
    for wrong in ("a b", "x" * 129, "<script>"):
        refused = score(**{"x-request-id": wrong})
        assert refused.status_code == 400
        assert refused.json()["error"]["field"] == "x-request-id"

    metadata = [*BEARER.items(), ("x-request-id", "run-7/step:13")]
    reply, call = stub.Score.with_call(as_message(BODY), metadata=metadata)
    assert reply.request_id == "run-7/step:13"
    assert dict(call.trailing_metadata())["x-request-id"] == "run-7/step:13"
    reply, call = stub.Score.with_call(as_message(BODY), metadata=list(BEARER.items()))
    assert reply.request_id == dict(call.trailing_metadata())["x-request-id"] != ""
    with pytest.raises(grpc.RpcError) as caught:
        stub.Score(as_message(BODY), metadata=[*BEARER.items(), ("x-request-id", "a b")])
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_no_log_and_no_metric_has_a_key(service) -> None:
    """Ray's session directory, HAProxy's target of logs, and the metrics page; runs last."""
    page = httpx.get(f"{service.url}/metrics", headers=BEARER).text
    assert "reward_requests" in page and "k3y-of" not in page
    logs = _session(service) / "logs"
    files = [path for path in logs.rglob("*") if path.is_file()]
    text = {path: path.read_bytes() for path in files}
    assert any(b'"route":"/get_reward"' in content for content in text.values())
    assert [path.name for path, content in text.items() if b"k3y-of" in content] == []


def test_haproxy_sends_its_log_to_nobody(service) -> None:
    configs = [
        Path(argument).read_text()
        for process in psutil.Process(service.process.pid).children(recursive=True)
        for argument in process.cmdline()
        if process.name().startswith("haproxy") and argument.endswith(".cfg")
    ]
    targets = {
        target for config in configs for target in re.findall(r"^ *log (\d\S+)", config, re.M)
    }
    assert targets <= {"127.0.0.1:9"}


def _session(service: Service) -> Path:
    for process in psutil.Process(service.process.pid).children(recursive=True):
        if found := re.search(r"/\S*/session_[\d_-]+", " ".join(process.cmdline())):
            return Path(found[0])
    raise AssertionError("no process of Ray's names its session")
