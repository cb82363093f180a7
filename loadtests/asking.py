"""One request of the load and what became of it. Knows HTTP and the offline rewards."""

import itertools
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import aiohttp

from loadtests.workload import Group

PATIENCE = aiohttp.ClientTimeout(total=150)


@dataclass(frozen=True, slots=True)
class Ask:
    """Some groups' responses as the pairs of one request."""

    groups: tuple[Group, ...]
    body: bytes = field(init=False)
    "JSON without its closing brace, made once: the load shares the machine with the service"

    def __post_init__(self) -> None:
        pairs = [{"prompt": g.prompt, "response": r} for g in self.groups for r in g.responses]
        object.__setattr__(self, "body", json.dumps({"pairs": pairs}).encode()[:-1])

    @property
    def rewards(self) -> list[float]:
        return [reward for group in self.groups for reward in group.rewards]


def asks(groups: Sequence[Group], groups_each: int, count: int, seed: int) -> list[Ask]:
    """Requests of which no two have a group in common, as long as there are groups for that.

    The same row is computed once while it waits: requests that repeat each other are no load.
    """
    order = itertools.cycle(random.Random(seed).sample(groups, len(groups)))
    return [Ask(tuple(itertools.islice(order, groups_each))) for _ in range(count)]


async def outcome(
    session: aiohttp.ClientSession, url: str, ask: Ask, deadline_ms: int | None = None
) -> str:
    """ "right", "wrong", "503" (with Retry-After), or what else came instead."""
    deadline = b"" if deadline_ms is None else b', "deadline_ms": %d' % deadline_ms
    body = ask.body + deadline + b"}"
    try:
        async with session.post(f"{url}/score", data=body, timeout=PATIENCE) as answer:
            if answer.status == 200:
                right = (await answer.json())["rewards"] == ask.rewards
                return "right" if right else "wrong"
            waits = "" if answer.headers.get("retry-after") else " without Retry-After"
            return f"{answer.status}{waits}"
    except (aiohttp.ClientError, TimeoutError) as error:
        return f"lost: {error!r}"
