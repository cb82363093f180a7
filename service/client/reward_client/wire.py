"""`POST /score` as the service speaks it: bodies, answers, refusals. Pure; knows no connection."""

import contextlib
import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from typing import Any

from reward_client.errors import BadAnswer, Refused

Message = Mapping[str, str]
Prompt = str | Sequence[Message]
"""a string (one user turn, where the bundle has a chat template) or a list of messages"""

Row = dict[str, Any]
"""one element of the request's `pairs`"""

RETRIED = {408, 425, 429}
"""besides 5xx: time-outs and requests that came too early or too often"""


@dataclass(frozen=True)
class Scores:
    """One reward per pair, in the order they were asked for."""

    rewards: list[float]
    raw_rewards: list[float]
    tokens: list[int]
    tokens_cut: list[int]
    bundle_id: str
    engine: str
    attempts: int = 1
    """requests that were made, 1 where none had to be repeated"""


@dataclass(frozen=True)
class Answer:
    """An HTTP answer, whatever it is; header names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class Again:
    """Ask again, not before `wait_s`; why is for the message of the last error."""

    why: str
    wait_s: float = 0.0


MAX_PAIRS = 1024
MAX_CHARACTERS = 256 * 1024
"""of one request. When a replica dies HAProxy repeats those up to 256 KiB, and this client all"""


def pair_rows(pairs: Iterable[tuple[Prompt, str]]) -> list[Row]:
    """Raises Refused for what no service can score: a protobuf would make "" of None."""
    return [
        {
            "prompt": _prompt(prompt, f"pairs[{i}].prompt"),
            "response": _text(response, f"pairs[{i}].response"),
        }
        for i, (prompt, response) in enumerate(pairs)
    ]


def text_rows(texts: Iterable[str]) -> list[Row]:
    """Raises Refused for what is no text."""
    return [{"text": _text(text, f"pairs[{i}].text")} for i, text in enumerate(texts)]


def _prompt(prompt: Prompt, field: str) -> str | list[dict[str, str]]:
    if isinstance(prompt, str):
        return _text(prompt, field)
    if not isinstance(prompt, Iterable):
        raise _invalid(field, f"{type(prompt).__name__} is neither a string nor a list of messages")
    return [_message(message, f"{field}[{i}]") for i, message in enumerate(prompt)]


def _message(message: Message, field: str) -> dict[str, str]:
    if not isinstance(message, Mapping):
        raise _invalid(field, f"{type(message).__name__} is no message")
    if unknown := set(message) - {"role", "content"}:
        name = min(map(str, unknown))
        raise _invalid(f"{field}.{name}", "a message has a role and a content; leave this out")
    return {name: _text(message.get(name), f"{field}.{name}") for name in ("role", "content")}


def _text(text: Any, field: str) -> str:
    if not isinstance(text, str):
        raise _invalid(field, f"{type(text).__name__} is not a string")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise _invalid(field, f"has half of a character at {error.start}") from None
    return text


def _invalid(field: str, why: str) -> Refused:
    return Refused(f"{field}: {why}", 0, "invalid_request", field)


def parts(asked: Sequence[Row]) -> Iterator[list[Row]]:
    """The rows of each request. Raises ValueError where there are none."""
    if not asked:
        raise ValueError("nothing to score: no pairs, no texts")
    rows: list[Row] = []
    size = 0
    for row in asked:
        characters = len(json.dumps(row, ensure_ascii=False))
        if rows and (len(rows) == MAX_PAIRS or size + characters > MAX_CHARACTERS):
            yield rows
            rows, size = [], 0
        rows.append(row)
        size += characters
    yield rows


def body(rows: list[Row], truncation: str) -> bytes:
    content = {"pairs": rows, "truncation": truncation}
    return json.dumps(content, ensure_ascii=False).encode()


def with_deadline(body: bytes, timeout_s: float) -> bytes:
    """The body, saying how long its caller waits, so that nothing is computed after that."""
    return body[:-1] + b', "deadline_ms": %d}' % max(1, int(timeout_s * 1000))


def read(answer: Answer, count: int, bundle_id: str | None = None) -> Scores | Again:
    """The rewards of `count` pairs, or `Again` where another attempt may succeed.

    Raises Refused for the service's own 4xx, BadAnswer for what is no reward.
    """
    if answer.status == 200:
        return _scores(answer, count, bundle_id)
    refusal = _refusal(answer)
    text = answer.body[:200].decode("utf-8", "replace").strip()
    why = f"HTTP {answer.status}: {refusal.get('message') or text}"
    if answer.status >= 500 or answer.status in RETRIED:
        return Again(why, retry_after_s(answer.headers.get("retry-after")))
    if answer.status == 404 and not refusal:
        return Again(why)  # Ray's proxy before it knows its routes: text, not our JSON
    raise Refused(why, answer.status, str(refusal.get("code", "")), refusal.get("field"))


def _refusal(answer: Answer) -> dict[str, Any]:
    """`{"code", "message", "field"}` where the service answered; empty where a proxy did.

    Another server's `{"detail": ...}`, as FastAPI writes it, is a refusal, too: the URL is wrong.
    """
    try:
        content = json.loads(answer.body)
    except ValueError:
        return {}
    if not isinstance(content, dict):
        return {}
    if isinstance(content.get("error"), dict):
        return dict(content["error"])
    return {"message": str(content["detail"])} if "detail" in content else {}


def _scores(answer: Answer, count: int, bundle_id: str | None) -> Scores:
    try:
        content = json.loads(answer.body)
        results, rewards = content["results"], content["rewards"]
        if len(results) != len(rewards):
            raise BadAnswer(f"results: {len(results)} came with {len(rewards)} rewards")
        scores = Scores(
            rewards=rewards,
            raw_rewards=[result["raw_reward"] for result in results],
            tokens=[result["tokens"] for result in results],
            tokens_cut=[result["tokens_cut"] for result in results],
            bundle_id=content["bundle"]["id"],
            engine=content["engine"],
        )
    except (ValueError, KeyError, TypeError) as error:
        raise BadAnswer(f"the answer is no score response: {error!r}") from error
    return checked(scores, count, bundle_id)


def checked(scores: Scores, count: int, bundle_id: str | None) -> Scores:
    """The same scores. Raises BadAnswer for what is no reward, or of another bundle."""
    if len(scores.rewards) != count:
        raise BadAnswer(f"rewards: {len(scores.rewards)} came for {count} pairs")
    for i, reward in enumerate(scores.rewards):
        if not isinstance(reward, (int, float)) or isinstance(reward, bool):
            raise BadAnswer(f"rewards[{i}]: {reward!r} is not a number")
        if not math.isfinite(reward):
            raise BadAnswer(f"rewards[{i}]: {reward!r} is not finite")
    if bundle_id is not None and scores.bundle_id != bundle_id:
        raise BadAnswer(f"bundle: {scores.bundle_id} answered, {bundle_id} was asked for")
    return scores


def join(parts: Sequence[Scores]) -> Scores:
    """The parts of one call as one. Raises BadAnswer where two bundles answered."""
    if len({part.bundle_id for part in parts}) > 1:
        raise BadAnswer(f"bundle: changed within one call: {[part.bundle_id for part in parts]}")
    rows: dict[str, Any] = {
        name: [value for part in parts for value in getattr(part, name)]
        for name in ("rewards", "raw_rewards", "tokens", "tokens_cut")
    }
    return replace(parts[0], **rows, attempts=sum(part.attempts for part in parts))


def retry_after_s(value: str | None, now: float | None = None) -> float:
    """Seconds of a Retry-After header, a number or a date (RFC 9110, 10.2.3); else 0."""
    if value is None:
        return 0.0
    now = time.time() if now is None else now
    for seconds in (float, lambda date: parsedate_to_datetime(date).timestamp() - now):
        with contextlib.suppress(ValueError):
            wait_s = seconds(value)
            return max(0.0, wait_s) if math.isfinite(wait_s) else 0.0
    return 0.0
