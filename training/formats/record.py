"""One line of preference data, whatever format it came in."""

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

from service.errors import DataError
from service.text import Message

Choice = tuple[int, int, float, float]
"(winner, loser, target, target_margin), indices into the record's responses"


@dataclass(frozen=True, slots=True)
class Record:
    """One line of data. `prompt` is None when its two sides do not share one."""

    prompt: str | tuple[Message, ...] | None
    responses: tuple[str, ...]
    comparisons: tuple[Choice, ...]
    subset: str | None = None
    true_rewards: tuple[float, ...] | None = None
    line: int = 0

    def at(self, line: int) -> "Record":
        return replace(self, line=line)

    def preferred(self) -> int:
        """The response with the most wins; the earliest of equals."""
        wins = Counter(dict.fromkeys(range(len(self.responses)), 0.0))
        for winner, loser, target, _ in self.comparisons:
            wins[winner] += target
            wins[loser] += 1 - target
        return max(wins, key=lambda i: (wins[i], -i))


def column(content: dict[str, Any], name: str) -> Any:
    if name not in content:
        raise DataError(f"column {name!r} is missing; there are: {', '.join(sorted(content))}")
    return content[name]
