"""One line of preference data, whatever format it came in."""

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from service.errors import DataError
from service.text import Message

Choice = tuple[int, int, float, float]
"(winner, loser, target, target_margin), indices into the record's responses"
Shape = TypeVar("Shape", bound="Columns")


class Columns(BaseModel):
    """The columns that a format reads. Others may be there; wrong types may not."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, allow_inf_nan=False)

    subset: str | None = None
    tools: Any = None


@dataclass(frozen=True, slots=True)
class Record:
    """One line of data. `prompt` is None when its two sides do not share one."""

    prompt: str | tuple[Message, ...] | None
    responses: tuple[str, ...]
    comparisons: tuple[Choice, ...]
    subset: str | None = None
    true_rewards: tuple[float, ...] | None = None
    line: int = 0
    ordered: bool = False
    "the responses stand in an order that does not come from the choice, as they were shown"

    def at(self, line: int) -> "Record":
        return replace(self, line=line)

    def preferred(self) -> int:
        """The response with the most wins; the earliest of equals."""
        wins = Counter(dict.fromkeys(range(len(self.responses)), 0.0))
        for winner, loser, target, _ in self.comparisons:
            wins[winner] += target
            wins[loser] += 1 - target
        return max(wins, key=lambda i: (wins[i], -i))


def columns(shape: type[Shape], content: dict[str, Any]) -> Shape:
    """`content` as the columns of a format. Raises DataError naming the first that is wrong."""
    try:
        record = shape.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = str(first["loc"][0])
        if first["type"] == "missing" and len(first["loc"]) == 1:
            there = ", ".join(sorted(map(str, content)))
            raise DataError(f"column {where!r} is missing; there are: {there}") from error
        raise DataError(f"{where}: {first['msg']}") from error
    if record.tools:
        raise DataError("tools: no template is given tools here; write them into the prompt")
    return record
