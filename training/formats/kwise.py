"""K-wise records, our own format: one prompt, K responses, the comparisons among them.

{"prompt": "..." or [{"role", "content"}, ...], "responses": ["...", ...],
 "comparisons": [[winner, loser], [winner, loser, target], [winner, loser, target, margin], ...]}
 or "ranking": [best, ..., worst]              (indices into responses)
 optional: "subset": "...", "true_rewards": [...],
           "ordered": false where the responses do not stand as they were shown}
"""

from itertools import combinations
from typing import Annotated, Any

from annotated_types import Len

from service.errors import DataError
from service.text import Message
from training.formats.record import Choice, Columns, Record, columns


class KWise(Columns):
    prompt: str | list[Message]
    responses: list[str]
    comparisons: list[Annotated[list[int | float], Len(2, 4)]] | None = None
    ranking: list[int] | None = None
    true_rewards: list[float] | None = None
    ordered: bool = True


def read(content: dict[str, Any]) -> Record:
    record = columns(KWise, content)
    rewards, k = record.true_rewards, len(record.responses)
    if rewards is not None and len(rewards) != k:
        raise DataError(f"true_rewards: {len(rewards)} for {k} responses")
    if not record.prompt:
        raise DataError("prompt: the conversation is empty")
    return Record(
        prompt=record.prompt if isinstance(record.prompt, str) else tuple(record.prompt),
        responses=tuple(record.responses),
        comparisons=_choices(record, k),
        subset=record.subset,
        true_rewards=None if rewards is None else tuple(rewards),
        ordered=record.ordered,
    )


def _choices(record: KWise, k: int) -> tuple[Choice, ...]:
    if record.ranking is not None and record.comparisons is not None:
        raise DataError("comparisons and ranking: a record has one of them")
    if record.ranking is not None:
        if sorted(record.ranking) != list(range(k)):
            raise DataError(f"ranking: {record.ranking} does not order {k} responses")
        return tuple((*pair, 1.0, 0.0) for pair in combinations(record.ranking, 2))
    if record.comparisons is None:
        raise DataError("column 'comparisons' or 'ranking' is missing")
    return tuple(_choice(f"comparisons[{i}]", c, k) for i, c in enumerate(record.comparisons))


def _choice(name: str, entry: list[int | float], k: int) -> Choice:
    """Missing target and margin are 1 and 0."""
    winner, loser, target, margin = [*entry, *(1.0, 0.0)[len(entry) - 2 :]]
    if not {winner, loser} <= set(range(k)):
        raise DataError(f"{name}: {entry!r} does not name two of {k} responses")
    if not 0 <= target <= 1:
        raise DataError(f"{name}: target {target} is not a probability")
    return int(winner), int(loser), float(target), float(margin)
