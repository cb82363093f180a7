"""The demo's true reward of any text, also of what a policy made up. Knows `data.py`'s grammar.

`data.generate` knows the true rewards of its own responses; this reads them off the text again.
"""

import re

from training.demo.data import (
    CAPITALS,
    COLOURS,
    EVASIVE,
    FILLER,
    KINDS,
    OPPOSITES,
    POLITE,
    SEQUENCES,
    WEIGHTS,
)

QUESTIONS = {
    "sum": r"What is (\d+) plus (\d+)\?$",
    "opposite": r"What is the opposite of (\w+)\?$",
    "capital": r"What is the capital of (\w+)\?$",
    "kind": r"What kind of thing is (\w+)\?$",
    "next": r"What comes after (\w+)\?$",
    "colour": r"Which colour has (\w+)\?$",
}
ANSWERS = {
    "sum": r"The sum is (\d+)\.",
    "opposite": r"The opposite is (\w+)\.",
    "capital": r"The capital is (\w+)\.",
    "kind": r"It is a (\w+)\.",
    "next": r"That is (\w+)\.",
    "colour": r"It is (\w+)\.",
}


def _right(family: str, asked: tuple[str, ...]) -> str | None:
    if family == "sum":
        return str(int(asked[0]) + int(asked[1]))
    if family == "next":
        for sequence in SEQUENCES:
            if asked[0] in sequence:
                return sequence[(sequence.index(asked[0]) + 1) % len(sequence)]
    kinds = {member: kind for kind, members in KINDS.items() for member in members}
    opposites = {a: b for pair in OPPOSITES for a, b in (pair, pair[::-1])}
    tables = {"opposite": opposites, "capital": CAPITALS, "kind": kinds, "colour": COLOURS}
    return tables[family].get(asked[0])


def true_reward(prompt: str, response: str) -> float:
    """The weighted sum of the response's traits, as `data.py` defines them.

    A text without any answer, evasion included, is worth what an answer to another question is:
    it does not answer this one. Raises ValueError for a prompt that is none of the demo's.

    >>> true_reward("What is 7 plus 5?", "Certainly! The sum is 12. This is worth some thought.")
    3.4
    """
    family, asked = _question(prompt)
    polite = any(response.startswith(phrase) for phrase in POLITE)
    filler = sum(response.count(phrase) for phrase in FILLER)
    core = _core(family, asked, response)
    worth = WEIGHTS[core] if core else 0.0
    return round(worth + polite * WEIGHTS["polite"] + filler * WEIGHTS["filler"], 6)


def _question(prompt: str) -> tuple[str, tuple[str, ...]]:
    for family, pattern in QUESTIONS.items():
        if found := re.search(pattern, prompt):
            return family, found.groups()
    raise ValueError(f"prompt: {prompt!r} asks none of the demo's questions")


def _core(family: str, asked: tuple[str, ...], response: str) -> str | None:
    """The trait of the response's answer; None for a wrong one, whose weight is 0."""
    if any(phrase in response for phrase in EVASIVE):
        return "evasive"
    answer = re.search(ANSWERS[family], response)
    if answer is None:
        return "elsewhere"
    return "right" if answer[1] == _right(family, asked) else None
