"""K-wise records, our own format: one prompt, K responses, the comparisons among them.

{"prompt": "..." or [{"role", "content"}, ...], "responses": ["...", ...],
 "comparisons": [[winner, loser], [winner, loser, target], ...]}
 or "ranking": [best, ..., worst]              (indices into responses)
 optional: "subset": "...", "true_rewards": [...]
"""

from itertools import combinations
from typing import Any

from service.errors import DataError
from training.formats.record import Choice, Record, column
from training.formats.trl import messages


def read(content: dict[str, Any]) -> Record:
    prompt, responses = column(content, "prompt"), column(content, "responses")
    if not isinstance(responses, list) or not all(isinstance(r, str) for r in responses):
        raise DataError("responses: not a list of strings")
    true_rewards = content.get("true_rewards")
    if true_rewards is not None and len(true_rewards) != len(responses):
        raise DataError(f"true_rewards: {len(true_rewards)} for {len(responses)} responses")
    return Record(
        prompt=prompt if isinstance(prompt, str) else messages(prompt, "prompt"),
        responses=tuple(responses),
        comparisons=_choices(content, len(responses)),
        subset=content.get("subset"),
        true_rewards=None if true_rewards is None else tuple(map(float, true_rewards)),
    )


def _choices(content: dict[str, Any], k: int) -> tuple[Choice, ...]:
    if "ranking" in content:
        ranking = content["ranking"]
        if sorted(ranking) != list(range(k)):
            raise DataError(f"ranking: {ranking} does not order {k} responses")
        return tuple((winner, loser, 1.0, 0.0) for winner, loser in combinations(ranking, 2))
    choices = []
    for i, entry in enumerate(column(content, "comparisons")):
        if not isinstance(entry, list) or len(entry) not in (2, 3):
            raise DataError(f"comparisons[{i}]: {entry!r} is not [winner, loser] or [.., target]")
        winner, loser, target = (*entry, 1.0)[:3]
        if winner == loser or not {winner, loser} <= set(range(k)):
            raise DataError(f"comparisons[{i}]: {entry!r} does not name two of {k} responses")
        if not 0 <= target <= 1:
            raise DataError(f"comparisons[{i}]: target {target} is not a probability")
        choices.append((winner, loser, float(target), 0.0))
    return tuple(choices)
