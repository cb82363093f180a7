"""What is odd about preference data, before anybody trains on it. Knows records and groups.

Nothing is changed here: the report says what was found, and on which lines.
"""

from collections import Counter
from collections.abc import Sequence
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from typing import Any

import numpy as np

from service.text import Encoded
from training.data import Group, Prompt
from training.formats.record import Record
from training.issues import Issues
from training.overlap import covered_share, near_duplicates
from training.uncertainty import estimate

NEAR = 0.8
"Jaccard similarity from which prompts are near duplicates"
NGRAM, LEAK = 8, 0.5
"an evaluation prompt leaks when more than half its words lie in 8-grams of the training prompts"
EXAMPLES = 10


def check(
    records: Sequence[Record],
    groups: Sequence[Group],
    issues: Issues,
    held_out: Sequence[Group] = (),
) -> dict[str, Any]:
    """Everything that can be said of the data without a tokenizer; JSON.

    records and groups are of the same source; `issues` is what grouping them found. With held-out
    groups also what of them the training prompts give away.
    """
    return {
        **counts(records, groups),
        "duplicates": duplicates(groups),
        "contradictory": len(issues.lines.get("contradictory", ())),
        "identical": len(issues.lines.get("identical", ())),
        "different_prompts": len(issues.lines.get("different_prompts", ())),
        "cyclic_prompts": sum(map(_has_cycle, groups)),
        "longer_wins": longer_wins(groups),
        "first_wins": first_wins(records),
        "leakage": leakage(groups, held_out) if held_out else None,
    }


def counts(records: Sequence[Record], groups: Sequence[Group]) -> dict[str, Any]:
    """How much there is. Lengths are quantiles in characters."""
    sizes = Counter(len(group.responses) for group in groups)
    subsets = Counter(name for g in groups for name in {c.subset for c in g.comparisons} if name)
    return {
        "records": len(records),
        "prompts": len(groups),
        "comparisons": sum(len(group.comparisons) for group in groups),
        "completions": sum(len(group.responses) for group in groups),
        "ties": sum(c.target == 0.5 for group in groups for c in group.comparisons),
        "responses_per_prompt": {str(k): sizes[k] for k in sorted(sizes)},
        "subsets": dict(sorted(subsets.items())),
        "prompt_characters": _quantiles([len(prompt_text(g.prompt)) for g in groups]),
        "response_characters": _quantiles([len(r) for g in groups for r in g.responses]),
    }


def duplicates(groups: Sequence[Group]) -> dict[str, Any]:
    """Repeated comparisons, near-duplicate prompts, prompts that begin others, responses that serve
    several prompts."""
    clusters = near_duplicates([prompt_text(group.prompt) for group in groups], NEAR)
    used = Counter(response for group in groups for response in group.responses)
    completions = sum(used.values())
    again = sum(n for n in used.values() if n > 1)
    return {
        "comparisons": sum(map(_repeated, groups)),
        "similarity": NEAR,
        "near_prompts": sum(map(len, clusters)),
        "near_clusters": len(clusters),
        "largest_cluster": max(map(len, clusters), default=0),
        "near_examples": [[groups[i].lines[0] for i in c[:4]] for c in clusters[:EXAMPLES]],
        "begun_prompts": _begun([g.prompt for g in groups if isinstance(g.prompt, str)]),
        "reused_responses_share": again / completions if completions else 0.0,
    }


def longer_wins(groups: Sequence[Group]) -> dict[str, Any]:
    """How often the longer response, in characters, is the preferred one; equal lengths count 1/2.

    The accuracy of a "reward model" that only counts characters, with its interval by prompt.
    """
    return _baseline(groups, [np.array([len(r) for r in g.responses]) for g in groups])


def first_wins(records: Sequence[Record]) -> dict[str, Any] | None:
    """The same for the response that stands first; None where the format puts the chosen first."""
    by_prompt: dict[Prompt, list[float]] = {}
    for record in records:
        if record.ordered and record.prompt is not None:
            sums = by_prompt.setdefault(record.prompt, [0.0, 0.0])
            for winner, loser, target, _ in record.comparisons:
                if winner != loser and target != 0.5:
                    sums[0] += float((winner < loser) == (target > 0.5))
                    sums[1] += 1
    return estimate(np.array(list(by_prompt.values()))) if by_prompt else None


def truncation(groups: Sequence[Group], encoded: Sequence[Sequence[Encoded]]) -> dict[str, Any]:
    """What token limits cut, and the comparisons whose two sides they make the same.

    encoded: per group, (K,), its responses with their prompt, as the limits leave them.
    """
    made_same = [
        c.line
        for group, rows in zip(groups, encoded, strict=True)
        for c in group.comparisons
        if c.winner != c.loser and rows[c.winner].ids == rows[c.loser].ids
    ]
    return {
        "completions_cut": sum(row.truncated for rows in encoded for row in rows),
        "comparisons_made_identical": len(made_same),
        "lines": made_same[:100],
    }


def leakage(groups: Sequence[Group], held_out: Sequence[Group]) -> dict[str, Any]:
    """Evaluation prompts that occur in the training data, exactly or for the most part."""
    leaked = leaked_prompts(groups, held_out)
    exact = {group.prompt for group in groups}
    return {
        "prompts": len(held_out),
        "ngram": NGRAM,
        "share_of_words": LEAK,
        "exact": sum(group.prompt in exact for group in held_out),
        "overlapping": sum(leaked),
        "lines": [g.lines[0] for g, is_one in zip(held_out, leaked, strict=True) if is_one][:100],
    }


def leaked_prompts(groups: Sequence[Group], held_out: Sequence[Group]) -> list[bool]:
    """Per held-out group, whether its prompt overlaps the training prompts too much."""
    shares = covered_share(
        [prompt_text(group.prompt) for group in held_out],
        (prompt_text(group.prompt) for group in groups),
        NGRAM,
    )
    return [share > LEAK for share in shares]


def prompt_text(prompt: Prompt) -> str:
    """The words of a prompt, turns one below the other."""
    return prompt if isinstance(prompt, str) else "\n".join(message.content for message in prompt)


def baseline_sums(group: Group, values: np.ndarray) -> tuple[float, int]:
    """(correct, counted) where the larger of `values`, (K,), wins; equal ones count 1/2."""
    correct, counted = 0.0, 0
    for c in group.comparisons:
        if c.target != 0.5:
            sign = np.sign(values[c.winner] - values[c.loser]) * np.sign(c.target - 0.5)
            correct, counted = correct + (float(sign) + 1) / 2, counted + 1
    return correct, counted


def _baseline(groups: Sequence[Group], values: Sequence[np.ndarray]) -> dict[str, Any]:
    sums = [baseline_sums(group, v) for group, v in zip(groups, values, strict=True)]
    return estimate(np.array(sums))


def _quantiles(lengths: list[int]) -> dict[str, float]:
    names = {"min": 0, "median": 50, "p95": 95, "max": 100}
    return {name: float(np.percentile(lengths, q)) for name, q in names.items()}


def _begun(prompts: list[str]) -> int:
    """Prompts that another begins with: in order, that is the next one."""
    return sum(after.startswith(prompt) for prompt, after in pairwise(sorted(prompts)))


def _repeated(group: Group) -> int:
    """Comparisons that say what an earlier one of the prompt has said."""
    said = [(c.winner, c.loser, c.target) for c in group.comparisons]
    return len(said) - len(set(said))


def _has_cycle(group: Group) -> bool:
    """Whether no order of the responses agrees with all choices, as with a > b > c > a."""
    worse: dict[int, set[int]] = {}
    for c in group.comparisons:
        if c.target != 0.5:
            winner, loser = (c.winner, c.loser) if c.target > 0.5 else (c.loser, c.winner)
            worse.setdefault(winner, set()).add(loser)
    try:
        TopologicalSorter(worse).prepare()
    except CycleError:
        return True
    return False
