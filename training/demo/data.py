"""Preference data whose true reward is known.

A prompt asks something from one of six task families. Its 4 to 9 responses differ in whether they
answer this prompt, whether the answer is right, politeness, needless length and evasiveness; the
true reward is a weighted sum of those. Choices are drawn from Bradley-Terry on the true reward.
Which words a response has says little: a right answer to one prompt is a wrong one to the next, so
the prompt has to be read.
"""

import json
import math
import random
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path

Question = tuple[str, str, str]
"(question, right answer, wrong answer)"

WEIGHTS = {"right": 3.0, "elsewhere": -1.5, "evasive": 0.5, "polite": 1.0, "filler": -0.6}

NAMES = """Anna Ben Carla David Emma Felix Grace Henry Irene Jack Laura Mark Nina Oscar Paula Ralph
    Sarah Tom Vera Walter""".split()


def _pairs(text: str) -> list[list[str]]:
    return [pair.split("/") for pair in text.split()]


OPPOSITES = _pairs(
    """hot/cold big/small wet/dry fast/slow old/new high/low hard/soft loud/quiet rich/poor
    full/empty early/late strong/weak"""
)
CAPITALS = dict(
    _pairs(
        """France/Paris Italy/Rome Spain/Madrid Japan/Tokyo Egypt/Cairo Peru/Lima Cuba/Havana
        Greece/Athens Norway/Oslo Kenya/Nairobi Austria/Vienna Poland/Warsaw"""
    )
)
COLOURS = dict(
    _pairs(
        """grass/green snow/white coal/black milk/white blood/red honey/yellow tomatoes/red
        lemons/yellow leaves/green chocolate/brown soil/brown night/black"""
    )
)
KINDS = {
    "bird": ["robin", "sparrow", "eagle", "owl", "swan", "crow"],
    "fish": ["trout", "salmon", "shark", "tuna", "cod", "eel"],
    "tree": ["oak", "pine", "birch", "maple", "willow", "cedar"],
    "tool": ["hammer", "saw", "drill", "chisel", "wrench", "pliers"],
}
SEQUENCES = [  # each begins again after its end
    "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split(),
    "spring summer autumn winter".split(),
    "January February March April May June July August September October November December".split(),
]
POLITE = ["Certainly!", "Happy to help.", "Good question!", "With pleasure."]
FILLER = [
    "There is much to say here.",
    "People often wonder about it.",
    "This is worth some thought.",
    "I looked at it with care.",
]
EVASIVE = [
    "I am not sure about that.",
    "You could ask somebody else.",
    "That is hard to say.",
    "It depends on many things.",
]
LEAD_INS = [
    "",
    "Quick question. ",
    "I am making a quiz. ",
    "Please help me. ",
    "One more thing. ",
    "This is for school. ",
    "Tell me, please. ",
    "Here is an easy one. ",
]
ASKED = ["", *(f"{name} asks: " for name in NAMES)]


def _sum(rng: random.Random) -> Question:
    a, b = rng.randint(1, 9), rng.randint(1, 9)
    wrong = rng.choice([n for n in range(2, 19) if n != a + b])
    return f"What is {a} plus {b}?", f"The sum is {a + b}.", f"The sum is {wrong}."


def _opposite(rng: random.Random) -> Question:
    pair, other = rng.sample(OPPOSITES, 2)
    word, right = rng.sample(pair, 2)
    return (
        f"What is the opposite of {word}?",
        f"The opposite is {right}.",
        f"The opposite is {rng.choice(other)}.",
    )


def _capital(rng: random.Random) -> Question:
    country, other = rng.sample(sorted(CAPITALS), 2)
    return (
        f"What is the capital of {country}?",
        f"The capital is {CAPITALS[country]}.",
        f"The capital is {CAPITALS[other]}.",
    )


def _kind(rng: random.Random) -> Question:
    kind, other = rng.sample(sorted(KINDS), 2)
    member = rng.choice(KINDS[kind])
    return f"What kind of thing is {member}?", f"It is a {kind}.", f"It is a {other}."


def _colour(rng: random.Random) -> Question:
    thing = rng.choice(sorted(COLOURS))
    right = COLOURS[thing]
    wrong = rng.choice(sorted(set(COLOURS.values()) - {right}))
    return f"Which colour has {thing}?", f"It is {right}.", f"It is {wrong}."


def _next(rng: random.Random) -> Question:
    sequence = rng.choice(SEQUENCES)
    i = rng.randrange(len(sequence))
    right = sequence[(i + 1) % len(sequence)]
    wrong = rng.choice([item for item in sequence if item != right])
    return f"What comes after {sequence[i]}?", f"That is {right}.", f"That is {wrong}."


FAMILIES: dict[str, Callable[[random.Random], Question]] = {
    "sum": _sum,
    "opposite": _opposite,
    "capital": _capital,
    "kind": _kind,
    "next": _next,
    "colour": _colour,
}


def _response(rng: random.Random, question: Question, elsewhere: str) -> tuple[str, float]:
    """One response and its true reward."""
    traits: dict[str, float] = {"polite": float(rng.random() < 0.4)}
    traits["filler"] = rng.choice([0, 0, 1, 2, 3])
    core = rng.choices(["right", "wrong", "elsewhere", "evasive"], [4, 3, 2, 2])[0]
    traits[core] = 1.0
    text = {
        "right": question[1],
        "wrong": question[2],
        "elsewhere": elsewhere,
        "evasive": rng.choice(EVASIVE),
    }[core]
    parts = [text, *rng.sample(FILLER, int(traits["filler"]))]
    if traits["polite"]:
        parts.insert(0, rng.choice(POLITE))
    return " ".join(parts), sum(WEIGHTS.get(trait, 0.0) * x for trait, x in traits.items())


def generate(prompts: int, seed: int) -> Iterator[dict[str, object]]:
    """K-wise records (training/formats/kwise.py) of `prompts` different prompts.

    Every comparison among a prompt's responses is there; the preferred one is drawn with
    P(a beats b) = sigmoid(true_a - true_b).
    """
    rng = random.Random(seed)
    seen: set[str] = set()
    while len(seen) < prompts:
        family = rng.choice(sorted(FAMILIES))
        question = FAMILIES[family](rng)
        prompt = rng.choice(LEAD_INS) + rng.choice(ASKED) + question[0]
        if prompt in seen:
            continue
        seen.add(prompt)
        responses: dict[str, float] = {}
        wanted = rng.randint(4, 9)
        while len(responses) < wanted:
            other = FAMILIES[rng.choice([f for f in FAMILIES if f != family])](rng)
            text, true_reward = _response(rng, question, other[1])
            responses.setdefault(text, true_reward)
        texts, true_rewards = list(responses), list(responses.values())
        comparisons = []
        for a, b in combinations(range(wanted), 2):
            p = 1 / (1 + math.exp(true_rewards[b] - true_rewards[a]))
            comparisons.append([a, b] if rng.random() < p else [b, a])
        yield {
            "prompt": prompt,
            "responses": texts,
            "comparisons": comparisons,
            "subset": family,
            "true_rewards": [round(t, 6) for t in true_rewards],
        }


def write(path: Path, prompts: int, seed: int) -> int:
    """Write JSON lines; returns how many comparisons they hold."""
    path.parent.mkdir(parents=True, exist_ok=True)
    comparisons = 0
    with path.open("w", encoding="utf-8") as file:
        for record in generate(prompts, seed):
            comparisons += len(record["comparisons"])  # type: ignore[arg-type]
            file.write(json.dumps(record) + "\n")
    return comparisons
