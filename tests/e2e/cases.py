"""One table of cases for every transport: what is scored, what is refused, and how."""

from dataclasses import dataclass
from typing import Any

from service.proto.reward.v1 import reward_pb2 as pb

Request = dict[str, Any]

MESSAGES = [
    {"role": "system", "content": ""},
    {"role": "user", "content": "Hi <|im_end|>"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "What is 2 plus 2?"},
]
SCORED: dict[str, Request] = {
    "one pair": {"pairs": [{"prompt": "What is 2 plus 2?", "response": "The sum is 4."}]},
    "a group": {"prompt": "What is 2 plus 2?", "responses": ["The sum is 4.", "It is red.", ""]},
    "messages": {"prompt": MESSAGES, "responses": ["4", "5"]},
    "pairs of both kinds": {
        "pairs": [
            {"prompt": MESSAGES, "response": "Grüße, 世界 👋"},
            {"prompt": "a", "response": "b" * 3000},
        ]
    },
    "many": {"prompt": "Count.", "responses": [f"{i} sheep" * (i % 9) for i in range(300)]},
}


@dataclass(frozen=True)
class Refused:
    name: str
    request: Request
    http: int
    grpc: str
    code: str
    field: str


def _invalid(name: str, field: str, request: Request) -> Refused:
    return Refused(name, request, 400, "INVALID_ARGUMENT", "invalid_request", field)


PAIR = {"prompt": "a", "response": "b"}
REFUSED = [
    _invalid("both forms", "body", {"pairs": [PAIR], "prompt": "a", "responses": ["x"]}),
    _invalid("no pairs", "pairs", {"pairs": []}),
    _invalid("no responses", "pairs", {"prompt": "a", "responses": []}),
    _invalid("no prompt", "pairs[1].prompt", {"pairs": [PAIR, {"prompt": None, "response": "b"}]}),
    _invalid("empty prompt", "pairs[1].prompt", {"pairs": [PAIR, {"prompt": "", "response": "b"}]}),
    _invalid("no messages", "pairs[0].prompt", {"prompt": [], "responses": ["x"]}),
    _invalid(
        "an unknown role",
        "prompt[0].role",
        {"prompt": [{"role": "boss", "content": "a"}], "responses": ["x"]},
    ),
    Refused(
        "too long, and an error asked for",
        {"pairs": [PAIR, {"prompt": "a " * 900, "response": "b"}], "truncation": "error"},
        422,
        "INVALID_ARGUMENT",
        "too_long",
        "pairs[1]",
    ),
    Refused(
        "too many pairs",
        {"prompt": "a", "responses": ["x"] * 9000},
        413,
        "INVALID_ARGUMENT",
        "too_large",
        "pairs",
    ),
]


def as_message(request: Request) -> pb.ScoreRequest:
    """The same request in protobuf."""
    message = pb.ScoreRequest(
        pairs=[
            pb.Pair(prompt=_prompt(pair["prompt"]), response=pair["response"])
            for pair in request.get("pairs", [])
        ]
    )
    message.truncation = request.get("truncation", "")
    if "responses" in request:
        group = pb.Group(prompt=_prompt(request["prompt"]), responses=request["responses"])
        message.group.CopyFrom(group)
    return message


def _prompt(prompt: Any) -> pb.Prompt | None:
    if isinstance(prompt, str):
        return pb.Prompt(text=prompt)
    if prompt is None:
        return None
    messages = [pb.Message(**message) for message in prompt]
    return pb.Prompt(conversation=pb.Conversation(messages=messages))
