"""A replica of two dies or hangs under single-pair requests: what reward-client makes of it."""

import signal
import threading
import time
from collections import Counter
from dataclasses import dataclass

import httpx
import psutil
import pytest

from reward_client import Client
from service.bundle import Bundle
from service.pairs import Pair
from service.scorer import Scorer, score_offline
from training.demo.walk import serving

PROMPT = "What is 2 plus 2?"
RESPONSES = [f"The sum is {i}." for i in range(40)]
THREADS = 12
SERVER_TIMEOUT_S = 6
"""HAProxy's; in production above the 110 s that an answer may take"""
UNNOTICED_S = 8
"""within which HAProxy sends a hung replica no more: two checks of 2 s each, one 2 s and one 0.25 s
after the last (RAY_SERVE_HAPROXY_HEALTH_CHECK_INTER), and what a loaded machine adds"""


@dataclass(frozen=True)
class Asked:
    at: float
    seconds: float
    outcome: str
    attempts: int


class Load:
    """Six threads with one reward-client and six without retries, each asking without pause."""

    def __init__(self, url: str, expected: dict[str, float]) -> None:
        self.url = url
        self.expected = expected
        self.retrying: list[Asked] = []
        self.raw: list[Asked] = []
        self._stop = threading.Event()
        self._client = Client(url)
        asks = ((self._retrying, self.retrying), (self._raw, self.raw))
        self._threads = [
            threading.Thread(target=self._run, args=(i, *asks[i % 2])) for i in range(THREADS)
        ]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self._client.close()

    def _run(self, i: int, ask, asked: list[Asked]) -> None:
        while not self._stop.is_set():
            response = RESPONSES[i % len(RESPONSES)]
            at = time.monotonic()
            outcome, attempts = ask(response)
            asked.append(Asked(at, time.monotonic() - at, outcome, attempts))
            i += 1

    def _judge(self, rewards: list[float], response: str) -> str:
        return "right" if rewards == [self.expected[response]] else "wrong"

    def _retrying(self, response: str) -> tuple[str, int]:
        try:
            scores = self._client.score([(PROMPT, response)])
        except Exception as error:
            return repr(error), 0
        return self._judge(scores.rewards, response), scores.attempts

    def _raw(self, response: str) -> tuple[str, int]:
        body = {"prompt": PROMPT, "responses": [response]}
        try:
            answer = httpx.post(f"{self.url}/score", json=body, timeout=60)
        except httpx.TransportError as error:
            return f"lost: {error!r}", 1
        if answer.status_code != 200:
            return f"HTTP {answer.status_code}", 1
        return self._judge(answer.json()["rewards"], response), 1


@pytest.fixture(scope="module")
def expected(scorer: Scorer) -> dict[str, float]:
    pairs = [Pair(PROMPT, response) for response in RESPONSES]
    rewards = [result.reward for result in score_offline(scorer, pairs)]
    return dict(zip(RESPONSES, rewards, strict=True))


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "hanging"])
def test_nothing_is_lost_or_wrong_through_reward_client(
    bundle: Bundle, expected: dict[str, float], monkeypatch, sent: signal.Signals
) -> None:
    monkeypatch.setenv("RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S", str(SERVER_TIMEOUT_S))
    with serving(bundle.path, "--replicas=2") as service:
        victim = next(
            process
            for process in psutil.Process(service.process.pid).children(recursive=True)
            if "ServeReplica:default:reward" in "".join(process.cmdline())
        )
        with Load(service.url, expected) as load:
            time.sleep(2)
            struck = time.monotonic()
            victim.send_signal(sent)
            time.sleep(SERVER_TIMEOUT_S + 14)
        if sent == signal.SIGSTOP:
            victim.kill()
    _report(load, struck)
    outcomes = Counter(asked.outcome for asked in load.retrying)
    assert outcomes == {"right": len(load.retrying)}
    assert len(load.retrying) > 500
    # All of them within the server's timeout, a replay, and what a loaded machine adds.
    assert max(asked.seconds for asked in load.retrying) < SERVER_TIMEOUT_S + 5
    raw = Counter(asked.outcome for asked in load.raw)
    assert raw == {"right": len(load.raw)}
    hung = [asked for asked in load.retrying + load.raw if asked.seconds >= SERVER_TIMEOUT_S]
    assert max((asked.at - struck for asked in hung), default=0.0) < UNNOTICED_S


def _report(load: Load, struck: float) -> None:
    """How many were repeated or had to wait for a hung replica, and when the last of them came."""
    for name, all_asked in (("reward-client", load.retrying), ("no retries", load.raw)):
        late = [a for a in all_asked if a.seconds >= SERVER_TIMEOUT_S or a.attempts > 1]
        quiet = max((a.at + a.seconds - struck for a in late), default=0.0)
        slowest = max(asked.seconds for asked in all_asked)
        lost = sum(asked.outcome != "right" for asked in all_asked)
        print(
            f"{name}: {len(all_asked)} requests, {lost} lost or wrong, {len(late)} repeated or "
            f"late, the last of them {quiet:.2f} s after, slowest {slowest:.2f} s"
        )
