"""The client over gRPC, for threads. Needs `reward-client[grpc]`; knows nothing of HTTP.

The messages are made from a descriptor at run time and not from generated code, which is bound to
the protobuf that it was generated with, and trainers pin theirs.
"""

import time
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory

from reward_client.errors import Refused
from reward_client.retry import Ask, drive, steps
from reward_client.wire import (
    Again,
    Prompt,
    Row,
    Scores,
    checked,
    join,
    pair_rows,
    parts,
    text_rows,
)

PERMANENT = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED,
}
"""refusals that stay; whatever else fails is asked again, as what a restarting proxy answers"""

OPTIONS = [
    ("grpc.lb_policy_name", "round_robin"),
    ("grpc.max_receive_message_length", 64 * 1024 * 1024),
]


def _messages() -> tuple[Any, Any]:
    """The classes of reward.v1.ScoreRequest and ScoreResponse."""
    described = descriptor_pb2.FileDescriptorSet.FromString(
        files("reward_client").joinpath("reward.binpb").read_bytes()
    )
    pool = descriptor_pool.DescriptorPool()  # its own: generated code may describe the same names
    for file in described.file:
        pool.AddSerializedFile(file.SerializeToString())
    names = ("reward.v1.ScoreRequest", "reward.v1.ScoreResponse")
    request, response = map(pool.FindMessageTypeByName, names)
    return message_factory.GetMessageClass(request), message_factory.GetMessageClass(response)


class GrpcClient:
    """`Client` over gRPC. `target` is host:port, or dns:///name:port for all behind a name.

    The rest means what it means in `Settings`. Threads may share it; processes may not.
    """

    def __init__(
        self,
        target: str,
        *,
        api_key: str | None = None,
        deadline_s: float = 300.0,
        attempt_s: float = 120.0,
        truncation: str = "prompt",
        bundle_id: str | None = None,
    ) -> None:
        self.target = target
        self.deadline_s = deadline_s
        self.attempt_s = attempt_s
        self.truncation = truncation
        self.bundle_id = bundle_id
        self._metadata = (("authorization", f"Bearer {api_key}"),) if api_key else ()
        self._request, response = _messages()
        self._channel = grpc.insecure_channel(target, options=OPTIONS)
        self._call = self._channel.unary_unary(
            "/reward.v1.RewardService/Score",
            request_serializer=self._request.SerializeToString,
            response_deserializer=response.FromString,
        )

    def score(self, pairs: Sequence[tuple[Prompt, str]]) -> Scores:
        """As `Client.score`."""
        return self._rows(pair_rows(pairs))

    def score_group(self, prompt: Prompt, responses: Sequence[str]) -> Scores:
        """As `Client.score_group`."""
        return self._rows(pair_rows((prompt, response) for response in responses))

    def score_texts(self, texts: Sequence[str]) -> Scores:
        """As `Client.score_texts`."""
        return self._rows(text_rows(texts))

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> "GrpcClient":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _rows(self, rows: Sequence[Row]) -> Scores:
        return join([self._score(part) for part in parts(rows)])

    def _score(self, rows: list[Row]) -> Scores:
        content = {"pairs": [_pair(row) for row in rows], "truncation": self.truncation}
        request = json_format.ParseDict(content, self._request())
        run = steps(time.monotonic(), self.deadline_s, self.attempt_s, self.target)
        return drive(run, lambda ask: self._attempt(ask, request, len(rows)))

    def _attempt(self, ask: Ask, request: Any, count: int) -> Scores | Again:
        try:
            reply = self._call(request, timeout=ask.timeout_s, metadata=self._metadata)
        except grpc.RpcError as error:
            return _failed(error)
        scores = Scores(
            rewards=[result.reward for result in reply.results],
            raw_rewards=[result.raw_reward for result in reply.results],
            tokens=[result.tokens for result in reply.results],
            tokens_cut=[result.tokens_cut for result in reply.results],
            bundle_id=reply.bundle.id,
            engine=reply.engine,
        )
        return checked(scores, count, self.bundle_id)


def _pair(row: Row) -> Row:
    """The row in protobuf's JSON, where a prompt says which form it has."""
    if "prompt" not in row:
        return row
    prompt = row["prompt"]
    form = {"text": prompt} if isinstance(prompt, str) else {"conversation": {"messages": prompt}}
    return {"prompt": form, "response": row["response"]}


def _failed(error: Any) -> Again:
    """Raises Refused for a refusal that stays: the service's own, which names its code."""
    trailing = dict(error.trailing_metadata() or ())
    code = trailing.get("reward-error-code", "")
    why = f"{error.code().name}: {error.details()}"
    if code and error.code() in PERMANENT:
        raise Refused(why, 0, str(code), str(trailing.get("reward-error-field")) or None)
    return Again(why)
