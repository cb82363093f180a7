"""Options in a URL, for clients that can set nothing else. Knows ASGI scopes; knows no scoring.

http://host:8000/reward=raw/key=KEY/get_reward      in the path, before the endpoint
http://host:8000/get_reward?reward=raw&key=KEY      or in the query
"""

from typing import Literal
from urllib.parse import parse_qsl

from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import InvalidRequest
from service.request import invalid


class Options(BaseModel):
    """What a URL may set."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    reward: Literal["normalized", "raw"] = "normalized"
    "the reward, or the one before normalisation"
    template: Literal["raw", "chat"] = "raw"
    "texts are scored as they come, or taken apart and put through the bundle's own chat template"
    key: str | None = None
    "one of the service's API keys"

    @classmethod
    def parse(cls, given: list[tuple[str, str]]) -> "Options":
        """Raises InvalidRequest, naming the option."""
        values: dict[str, str] = {}
        for name, value in given:
            if name in values:
                raise InvalidRequest(f"{name}: the URL has it twice; give it once", field=name)
            values[name] = value
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise invalid(error) from None


class Addressed:
    """Takes the options out of the URLs of `paths`; they are at `scope["state"]["options"]`.

    What is inside sees the endpoint's own path and no query, so that no log can show a key.
    """

    def __init__(self, app: ASGIApp, paths: set[str]) -> None:
        self.app = app
        self.paths = paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            options, path = _split(scope["path"])
            path = path.removesuffix("/")  # no redirection: it would come after the keys' check
            if path in self.paths:
                options += parse_qsl(scope["query_string"].decode("latin-1"), True)
                state = {**scope.get("state", {}), "options": options}
                raw = path.encode()
                scope = {
                    **scope,
                    "path": path,
                    "raw_path": raw,
                    "query_string": b"",
                    "state": state,
                }
        await self.app(scope, receive, send)


def _split(path: str) -> tuple[list[tuple[str, str]], str]:
    """Leading segments of the form name=value, and the path after them.

    >>> _split("/reward=raw/v1/classify")
    ([('reward', 'raw')], '/v1/classify')
    """
    options: list[tuple[str, str]] = []
    segments = path.split("/")[1:]
    while segments and "=" in segments[0]:
        name, _, value = segments.pop(0).partition("=")
        options.append((name, value))
    return options, "/" + "/".join(segments)
