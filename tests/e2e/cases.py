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
    "templated texts": {
        "pairs": [
            {"text": "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYes.<|im_end|>\n"},
            {"text": "no marker at all"},
            {"text": "long " * 2000 + "<|im_end|>\n"},
        ]
    },
    "token ids": {"pairs": [{"input_ids": [5]}, {"input_ids": [1, 2, 3, 0, 299]}]},
    "all three forms": {
        "pairs": [
            {"text": "<|im_start|>user\nHi<|im_end|>"},
            {"prompt": "Hi", "response": "Yes."},
            {"input_ids": [7, 8, 9] * 40},
            {"prompt": MESSAGES, "response": "4"},
        ],
        "deadline_ms": 60_000,
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
ANSWER = {"response": "b"}
REFUSED = [
    _invalid("both forms", "body", {"pairs": [PAIR], "prompt": "a", "responses": ["x"]}),
    _invalid("no pairs", "pairs", {"pairs": []}),
    _invalid("no responses", "responses", {"prompt": "a", "responses": []}),
    _invalid("no prompt", "pairs[1].prompt", {"pairs": [PAIR, {"prompt": None, "response": "b"}]}),
    _invalid("empty prompt", "pairs[1].prompt", {"pairs": [PAIR, {"prompt": "", "response": "b"}]}),
    _invalid("no messages", "prompt", {"prompt": [], "responses": ["x"]}),
    _invalid(
        "an unknown role",
        "prompt[0].role",
        {"prompt": [{"role": "boss", "content": "a"}], "responses": ["x"]},
    ),
    _invalid("text and response", "pairs[1].response", {"pairs": [PAIR, {"text": "a", **ANSWER}]}),
    _invalid("text and prompt", "pairs[0].text", {"pairs": [{**PAIR, "text": "a"}]}),
    _invalid("ids and response", "pairs[0].response", {"pairs": [{"input_ids": [1], **ANSWER}]}),
    _invalid("an empty text", "pairs[1]", {"pairs": [PAIR, {"text": ""}]}),
    _invalid("no ids", "pairs[1].input_ids", {"pairs": [PAIR, {"input_ids": []}]}),
    _invalid("a negative id", "pairs[0].input_ids", {"pairs": [{"input_ids": [1, -1]}]}),
    _invalid("an id beyond", "pairs[0].input_ids", {"pairs": [{"input_ids": [1, 10**9]}]}),
    _invalid("no time at all", "deadline_ms", {"pairs": [PAIR], "deadline_ms": -1}),
    Refused(
        "ids over the limit",
        {"pairs": [PAIR, {"input_ids": [5] * 5000}]},
        422,
        "INVALID_ARGUMENT",
        "too_long",
        "pairs[1].input_ids",
    ),
    Refused(
        "a templated text too long, and an error asked for",
        {"pairs": [{"text": "a " * 2000}], "truncation": "error"},
        422,
        "INVALID_ARGUMENT",
        "too_long",
        "pairs[0]",
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
        "a response of a group too long, and an error asked for",
        {"prompt": "a", "responses": ["x", "b " * 900], "truncation": "error"},
        422,
        "INVALID_ARGUMENT",
        "too_long",
        "responses[1]",
    ),
    Refused(
        "one of many responses too long, and an error asked for",
        {"prompt": "a", "responses": ["x"] * 40 + ["b " * 900], "truncation": "error"},
        422,
        "INVALID_ARGUMENT",
        "too_long",
        "responses[40]",
    ),
    Refused(
        "too many responses",
        {"prompt": "a", "responses": ["x"] * 9000},
        413,
        "INVALID_ARGUMENT",
        "too_large",
        "responses",
    ),
]


def as_message(request: Request) -> pb.ScoreRequest:
    """The same request in protobuf."""
    message = pb.ScoreRequest(pairs=map(_pair, request.get("pairs", [])))
    message.truncation = request.get("truncation", "")
    message.deadline_ms = request.get("deadline_ms", 0)
    if "responses" in request:
        group = pb.Group(prompt=_prompt(request["prompt"]), responses=request["responses"])
        message.group.CopyFrom(group)
    return message


def _pair(pair: Request) -> pb.Pair:
    message = pb.Pair(prompt=_prompt(pair.get("prompt")), response=pair.get("response", ""))
    if "text" in pair:
        message.text = pair["text"]
    if "input_ids" in pair:
        message.input_ids.CopyFrom(pb.TokenIds(ids=pair["input_ids"]))
    return message


def _prompt(prompt: Any) -> pb.Prompt | None:
    if isinstance(prompt, str):
        return pb.Prompt(text=prompt)
    if prompt is None:
        return None
    messages = [pb.Message(**message) for message in prompt]
    return pb.Prompt(conversation=pb.Conversation(messages=messages))
