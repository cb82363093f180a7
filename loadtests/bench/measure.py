"""One workload on one system: the clock, the client's share, and every reward checked."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import uvloop

from loadtests.bench.clients import Answer, closed_loop
from loadtests.bench.processes import busy_seconds, cpu_seconds
from loadtests.bench.servers import Server
from loadtests.bench.workloads import Request, Workload

TOLERANCE = 1e-4
"a baseline's reward against ours: the tolerance of the golden scores; its bits are not promised"


class WrongReward(Exception):
    """A reward that is not the offline one, or an answer that is none."""


@dataclass(frozen=True, slots=True)
class Measured:
    """Times of one workload on one system."""

    seconds: float
    "from the first request sent to the last answer"
    pairs: int
    latencies_ms: list[float] = field(default_factory=list)
    rewards: tuple[np.ndarray, ...] = ()
    client_cpu: float = 0.0
    "the client's CPU time as a share of one core"
    cpu_s: dict[str, float] = field(default_factory=dict)
    "the server's CPU time by the name of its processes"
    other_cpu: float = 0.0
    "what neither the server nor the client spent, in cores: whatever else runs on the machine"
    counted: dict[str, Any] = field(default_factory=dict)
    "by the service itself"

    @property
    def pairs_per_s(self) -> float:
        return self.pairs / self.seconds

    def latency_ms(self, percentile: float) -> float:
        return float(np.percentile(self.latencies_ms, percentile))


def body(request: Request) -> bytes:
    pairs = [{"prompt": pair.prompt, "response": pair.response} for pair in request]
    return json.dumps({"pairs": pairs}).encode()


def over_http(server: Server, workload: Workload) -> Measured:
    """Raises WrongReward when an answer is an error."""
    bodies = [body(request) for request in workload.requests]
    before, own, busy = cpu_seconds(server.pid), time.process_time(), busy_seconds()
    answers = uvloop.run(closed_loop(server.score, bodies, workload.in_flight))
    busy, own = busy_seconds() - busy, time.process_time() - own
    after = cpu_seconds(server.pid)
    spent = {name: seconds - before.get(name, 0.0) for name, seconds in after.items()}
    seconds = max(a.received for a in answers) - min(a.sent for a in answers)
    return Measured(
        seconds,
        len(workload.pairs),
        [answer.latency_s * 1e3 for answer in answers],
        tuple(rewards(answer) for answer in answers),
        own / seconds,
        spent,
        (busy - own - sum(spent.values())) / seconds,
    )


def content(answer: Answer) -> dict[str, Any]:
    if answer.status != 200:
        raise WrongReward(f"status {answer.status}: {answer.body[:300]!r}")
    parsed: dict[str, Any] = json.loads(answer.body)
    return parsed


def rewards(answer: Answer) -> np.ndarray:
    return np.array(content(answer)["rewards"], np.float32)


def check(got: Sequence[np.ndarray], expected: Sequence[np.ndarray], exact: bool) -> None:
    """Raises WrongReward naming the first request that differs; exact: in a single bit."""
    for i, (rewards, offline) in enumerate(zip(got, expected, strict=False)):
        same = (
            rewards.tobytes() == offline.tobytes()
            if exact
            else rewards.shape == offline.shape and np.allclose(rewards, offline, atol=TOLERANCE)
        )
        if not same:
            raise WrongReward(f"request {i}: {rewards.tolist()}, offline {offline.tolist()}")
