"""A service or its replicas stop under load, and nothing that was accepted is lost."""

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

import psutil
import pytest

from k8s.check import BASE
from k8s.overlay import as_written
from service.bundle import Bundle
from service.config import ServiceConfig
from service.pairs import Pair
from service.scorer import Scorer, score_offline
from training.demo.walk import Service, serving

BODY = {"prompt": "What is 2 plus 2?", "responses": ["The sum is 4.", "The sum is 5.", ""]}


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

    @property
    def gone(self) -> float:
        """When the application was: with the first 404 of Ray's or the first connection refused.
        What is asked from then on was not accepted."""
        return min(asked for asked, outcome in self.answers if outcome in ("404", "refused"))

    def outcomes_before(self, moment: float) -> Counter[str]:
        return Counter(outcome for asked, outcome in self.answers if asked < moment)

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
    """Until the application is gone each request is answered right or with 503 and Retry-After."""
    with serving(bundle.path) as service, Load(service.url, expected) as load:
        load.until_answered(100)
        # frozen just before, as a container may be: the signal then comes to any of its threads
        for number in (signal.SIGSTOP, signal.SIGCONT, signal.SIGTERM):
            service.process.send_signal(number)
        service.process.wait(60)
    assert service.process.returncode == 0
    gone = load.gone
    before = load.outcomes_before(gone)
    assert before.keys() <= {"right", "503", "404", "refused"}, before
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


def test_a_replica_that_dies_while_the_service_drains_takes_no_answer_of_the_other(
    bundle: Bundle, expected
) -> None:
    with serving(bundle.path, "--replicas=2") as service, Load(service.url, expected) as load:
        dying = _two_without(service, None)[0]
        load.until_answered(100)
        service.process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        dying.kill()
        service.process.wait(60)
    assert service.process.returncode == 0
    before = load.outcomes_before(load.gone)
    assert before.keys() <= {"right", "503", "404", "refused"}, before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_replicas_that_are_killed_under_load_lose_nothing(
    bundle: Bundle, expected, number: signal.Signals
) -> None:
    """Two replicas, always with load; three times one of them gets the signal.

    On SIGTERM it leaves when it has answered, whatever the size of a request. What was in flight on
    a process killed with -9 HAProxy repeats, up to 256 KiB, headers and body apart or not.
    """
    with serving(bundle.path, "--replicas=2") as service:
        loads = [Load(service.url, expected, 5), Load(service.url, expected, 5, pause_s=0.005)]
        most = 2 * 1024 * 1024 if number == signal.SIGTERM else 250 * 1024
        loads.append(Load(service.url, expected, 2, padding=most))
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


def test_a_pods_pre_stop_loses_nothing(bundle: Bundle, expected) -> None:
    """What the manifest's command does, on a cluster of two workers whose requests come through
    the head: the node's replica answers what it has and goes, and so does the node. In a pod Ray
    finds the node by itself; here it is named, since both are on one machine."""
    worker = next(as_written(BASE).pods("worker")).container
    drain = worker["lifecycle"]["preStop"]["exec"]["command"][-1].partition(";")[0]
    command = [sys.executable, "-m", "tests.e2e.two_workers", str(bundle.path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as cluster:
        ready = (line for line in cluster.stdout if line.startswith("ready at "))
        url, address, node = next(ready).split()[2:]
        with Load(url, expected) as load:
            load.until_answered(100)
            nodes = _nodes(cluster.pid)
            path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # where `ray` is
            there = {"RAY_ADDRESS": address, "RAY_AUTH_MODE": "disabled", "PATH": path}
            drained = f"{drain} --node-id {node}"
            subprocess.run(drained, shell=True, check=True, env=os.environ | there)
            deadline = time.monotonic() + 60
            while _nodes(cluster.pid) == nodes:
                assert time.monotonic() < deadline, "the node is still there"
                time.sleep(0.5)
            load.until_answered(100)
        cluster.communicate()
    assert {outcome for _, outcome in load.answers} == {"right"}


def _nodes(cluster: int) -> int:
    """How many raylets of a cluster live."""
    alive = [p for p in psutil.Process(cluster).children(True) if p.status() != "zombie"]
    return sum(p.name() == "raylet" for p in alive)
