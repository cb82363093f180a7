"""What both clients are told, and what follows from it. Knows no connection of its own."""

import os
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import httpx

from reward_client.wire import Again, Answer

URL_VARIABLE = "REWARD_SERVICE_URL"
KEY_VARIABLE = "REWARD_SERVICE_API_KEY"


@dataclass
class Settings:
    """Fixed after construction; two clients with equal settings are equal."""

    url: str
    "of the service, such as http://127.0.0.1:8000; /score is added to it"
    api_key: str | None = field(default=None, repr=False)
    "sent as `Authorization: Bearer`; by default the variable REWARD_SERVICE_API_KEY, if it is set"
    deadline_s: float = 300.0
    "of one request with all its attempts; a call of more than 1,024 pairs is several requests"
    attempt_s: float = 120.0
    "of one attempt; longer than the 110 s for which the service holds a request"
    truncation: Literal["prompt", "error"] = "prompt"
    'a text over the bundle\'s limits is cut from its left, or refused with "error"'
    bundle_id: str | None = None
    "where given, an answer of any other bundle raises BadAnswer"
    trust_env: bool = True
    "whether HTTP_PROXY, NO_PROXY, SSL_CERT_FILE and ~/.netrc count"
    max_connections: int = 128

    def __post_init__(self) -> None:
        self.url = self.url.rstrip("/")
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(f"url: {self.url!r} begins with neither http:// nor https://")
        for name in ("deadline_s", "attempt_s", "max_connections"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: {getattr(self, name)!r} is not above 0")
        if self.api_key is None:
            self.api_key = os.environ.get(KEY_VARIABLE)

    def __getstate__(self) -> dict[str, Any]:
        """Only the settings travel: every process opens connections of its own."""
        return {item.name: getattr(self, item.name) for item in fields(self)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        type(self).__init__(self, **state)

    def httpx_options(self) -> dict[str, Any]:
        headers = {"content-type": "application/json"}
        if self.api_key is not None:
            headers["authorization"] = f"Bearer {self.api_key}"
        limits = httpx.Limits(
            max_connections=self.max_connections, max_keepalive_connections=self.max_connections
        )
        return {"headers": headers, "limits": limits, "trust_env": self.trust_env}


def service_url(url: str | None = None) -> str:
    """`url`, or the environment's where a trainer leaves no other way. Raises ValueError."""
    found = url or os.environ.get(URL_VARIABLE)
    if not found:
        raise ValueError(f"no URL of the reward service: set {URL_VARIABLE}")
    return found


def answer_of(response: httpx.Response, body: bytes) -> Answer:
    headers = {name.lower(): value for name, value in response.headers.items()}
    return Answer(response.status_code, headers, body)


def failed(error: Exception) -> Again:
    """A failure of the connection. What the caller did wrong is raised: it would fail again."""
    if isinstance(error, (httpx.UnsupportedProtocol, httpx.LocalProtocolError)):
        raise error
    return Again(f"{type(error).__name__}: {error}")
