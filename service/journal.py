"""What is kept about a request: id, counts, durations, codes; never a prompt, a response, a key."""

import re
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field

from pydantic_core import to_json

from service import metrics
from service.errors import InvalidRequest
from service.metrics import Recorder
from service.scorer import Scores

REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")


def checked_id(given: str) -> str:
    """The caller's own id of its request. Raises InvalidRequest."""
    if not REQUEST_ID.fullmatch(given):
        raise InvalidRequest(
            f"x-request-id: has {len(given)} characters; an id is 1 to 128 letters, digits or any "
            "of . _ : / + = -",
            field="x-request-id",
        )
    return given


@dataclass(slots=True)
class Entry:
    """One request, filled in as it goes."""

    route: str
    request_id: str
    code: str = "caller_left"
    "HTTP status or name of the gRPC status"
    error: str | None = None
    scores: Scores | None = None
    started: float = field(default_factory=time.perf_counter)


class Journal:
    """Counts every request; `write` gets one line of JSON about it."""

    def __init__(
        self,
        recorder: Recorder,
        request_id: Callable[[], str] = str,
        write: Callable[[str], None] | None = None,
    ) -> None:
        self._recorder = recorder
        self._request_id = request_id
        self._write = write

    def open(self, route: str) -> Entry:
        """An entry with an id of its own."""
        return Entry(route, self._request_id() or uuid.uuid4().hex)

    def close(self, entry: Entry) -> None:
        self._recorder.add(metrics.REQUESTS, 1, entry.route, entry.code)
        if entry.error:
            self._recorder.add(metrics.ERRORS, 1, entry.error)
        if self._write is not None:
            self._write(self._line(entry))

    def _line(self, entry: Entry) -> str:
        line = {
            "time": round(time.time(), 3),
            "request_id": entry.request_id,
            "route": entry.route,
            "code": entry.code,
            "total_ms": round((time.perf_counter() - entry.started) * 1e3, 3),
        }
        if entry.error:
            line["error"] = entry.error
        if scores := entry.scores:
            line["pairs"] = len(scores.results)
            line["tokens"] = sum(result.tokens for result in scores.results)
            line["tokenize_ms"] = round(scores.timing.tokenize_ms, 3)
            line["queue_ms"] = round(scores.timing.queue_ms, 3)
            line["engine_ms"] = round(scores.timing.engine_ms, 3)
        return to_json(line).decode()
