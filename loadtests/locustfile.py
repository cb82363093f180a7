"""Locust users: what rollout workers do. WORKLOAD is a file of workload.py, GRPC is host:port.

Steady sends one pair per request without pause. Wave is GRPO: all responses of a group at once,
one pair per request, then the time of a training step. Grpc sends a group in one call. A wrong
reward is a failure of its request.
"""

import os
import random
from pathlib import Path

import gevent.pool
import grpc
import grpc.experimental.gevent
from locust import FastHttpUser, User, constant, task

from loadtests.workload import Group, read
from service.proto.reward.v1 import reward_pb2 as pb
from service.proto.reward.v1.reward_pb2_grpc import RewardServiceStub

grpc.experimental.gevent.init_gevent()

GROUPS = read(Path(os.environ["WORKLOAD"]))
STEP_S = 1.0


def _score_one(user: FastHttpUser, group: Group, i: int, name: str) -> None:
    body = {"prompt": group.prompt, "responses": [group.responses[i]]}
    with user.client.post("/score", json=body, name=name, catch_response=True) as response:
        if response.status_code != 200:
            response.failure(f"{response.status_code}: {response.text}")
            return
        try:
            group.check(response.json()["rewards"], i)
        except ValueError as error:
            response.failure(str(error))


class Steady(FastHttpUser):
    weight = 6
    wait_time = constant(0)

    @task
    def single(self) -> None:
        group = random.choice(GROUPS)
        _score_one(self, group, random.randrange(len(group.responses)), "POST /score, one pair")


class Wave(FastHttpUser):
    weight = 2
    wait_time = constant(STEP_S)

    @task
    def rollout(self) -> None:
        group = random.choice(GROUPS)
        pool = gevent.pool.Pool()
        for i in range(len(group.responses)):
            pool.spawn(_score_one, self, group, i, "POST /score, GRPO wave")
        pool.join()


class Grpc(User):
    weight = 2
    wait_time = constant(0)

    def on_start(self) -> None:
        self.channel = grpc.insecure_channel(os.environ["GRPC"])
        self.service = RewardServiceStub(self.channel)

    def on_stop(self) -> None:
        self.channel.close()

    @task
    def group(self) -> None:
        group = random.choice(GROUPS)
        request = pb.ScoreRequest(
            group=pb.Group(prompt=pb.Prompt(text=group.prompt), responses=group.responses)
        )
        with self.environment.events.request.measure("gRPC", "Score, a group") as call:
            reply = self.service.Score(request)
            group.check([result.reward for result in reply.results])
            call["response_length"] = reply.ByteSize()
