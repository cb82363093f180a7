"""Accuracy on held-out choices: against TRL, over epochs, and of a pretrained encoder.

    python -m loadtests.training_quality epochs                        1, 3, 10 epochs, demo data
    python -m loadtests.training_quality steps --steps 8 2             prompts per step and rates
    python -m loadtests.training_quality trl --trl trl/bin/python      demo data, 3 seeds
    python -m loadtests.training_quality trl --trl ... --hh FILE       5 folds by first turn
    python -m loadtests.training_quality encoder --hh FILE --model DIR [--fold N]

Both sides see the same prompts and take as many tokens through the model: TRL one epoch over all
pairs, in which a prompt of K completions has C(K,2) pairs and each completion comes K - 1 times;
we as many epochs as that is worth, one on plain pairs. --equal epochs gives us one always, a sixth
of TRL's computing on the demo data. Each side searches its learning rate, and its step in prompts
where --steps gives several, on a part of its training data of seed 0 (fold 0). On the plain
pairs of HH both begin with the same head and see the pairs in the same order. Accuracy is over all
comparisons, a tie counts one half; intervals are the bootstrap's over prompts, of the difference
where two sides are compared on the same prompts.
"""

import argparse
import hashlib
import itertools
import json
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from transformers import AutoTokenizer

from loadtests.training_bench import PROMPTS_PER_STEP, job, run
from service.text import Encoder
from training.batches import schedule
from training.config import Scratch, Text
from training.data import Group, read_groups
from training.demo.data import write
from training.encoding import encode_groups
from training.rules import text_rules
from training.scratch import make_base

RATES = (5e-4, 1e-3, 2e-3, 4e-3)
SCRATCH = Scratch(
    vocab_size=768, layers=3, hidden_size=64, intermediate_size=192, heads=4, kv_heads=2,
    learning_rate=3e-3, batch_size=8,
)  # fmt: skip
"the demo's, training/configs/tiny.toml"
TEMPLATE = Path(__file__).parent.parent / "training" / "configs" / "encoder.jinja"


def encode(base: Path, text: Text, groups: Sequence[Group]) -> list[dict]:
    tokenizer = AutoTokenizer.from_pretrained(base)
    if text.template is not None:
        tokenizer.chat_template = text.template.read_text()
    rules = text_rules(tokenizer, text)
    encoder = Encoder(tokenizer.backend_tokenizer.to_str(), tokenizer.chat_template, rules)
    encoded = encode_groups(encoder, groups)
    return [
        {"rows": group.rows, "comparisons": [[c.winner, c.loser] for c in group.comparisons]}
        for group in encoded
    ]


def correct(groups: Sequence[dict], rewards: Sequence[Sequence[float]]) -> np.ndarray:
    """Per group: right comparisons, and how many there are, (G, 2)."""
    rows = []
    for group, r in zip(groups, rewards, strict=True):
        signs = [np.sign(r[winner] - r[loser]) for winner, loser in group["comparisons"]]
        rows.append((sum((sign + 1) / 2 for sign in signs), len(signs)))
    return np.array(rows)


def accuracy(counts: np.ndarray) -> float:
    return float(counts[:, 0].sum() / counts[:, 1].sum())


def interval(counts: np.ndarray, other: np.ndarray | None = None) -> tuple[float, float]:
    """95 % bootstrap over prompts of the accuracy in percent, or of its distance from another."""
    rng, n = np.random.default_rng(0), len(counts)
    draws = rng.multinomial(n, np.full(n, 1 / n), size=2000)
    values = (draws @ counts[:, 0]) / (draws @ counts[:, 1])
    if other is not None:
        values = values - (draws @ other[:, 0]) / (draws @ other[:, 1])
    low, high = np.percentile(100 * values, [2.5, 97.5])
    return round(float(low), 2), round(float(high), 2)


def same_start(base: Path, pairs: Sequence[dict], seed: int = 0, **_: object) -> dict:
    """A head and an order of plain pairs for both sides: what differs then is the trainers."""
    size = json.loads((base / "config.json").read_text())["hidden_size"]
    head = np.random.default_rng(seed).normal(0, (size + 1) ** -0.5, size)
    steps = schedule(len(pairs), PROMPTS_PER_STEP, 1, seed)
    return {
        "head": head.tolist(), "order": list(itertools.chain(*steps)),
        "pairs_per_pass": 2, "passes_per_step": PROMPTS_PER_STEP // 2,
    }  # fmt: skip


def score(
    worker: str, python: str, model: Path, train: list, held_out: list, same=False, **changes
) -> np.ndarray:
    changes |= same_start(model, train, **changes) if same else {}
    wanted = job(model, train, 4096, eval=held_out, **changes)
    return correct(held_out, run(worker, python, wanted)["rewards"])


def side_by_side(run: Callable, arguments: Iterable, jobs: int) -> list:
    """Training runs, `jobs` at a time."""
    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(run, arguments))


def by_seed(run: Callable[..., np.ndarray], options: argparse.Namespace) -> list[np.ndarray]:
    return side_by_side(lambda seed: run(seed=seed), range(options.seeds), options.jobs)


def search(run: Callable[..., np.ndarray], options: argparse.Namespace) -> dict:
    """The learning rate and the prompts per step with the highest accuracy."""
    tried = [
        {"learning_rate": rate, "groups_per_step": step}
        for step, rate in itertools.product(options.steps, options.rates)
    ]
    if len(tried) == 1:
        return tried[0]
    found = side_by_side(lambda settings: accuracy(run(**settings)), tried, options.jobs)
    for settings, value in zip(tried, found, strict=True):
        print(json.dumps({**settings, "accuracy": round(100 * value, 2)}), flush=True)
    return tried[int(np.argmax(found))]


def epochs_worth(groups: Sequence[dict]) -> int:
    """How many epochs of ours take the tokens of one of TRL's over all pairs."""
    once = sum(len(row) for group in groups for row in group["rows"])
    in_pairs = sum(
        len(group["rows"][i]) for group in groups for pair in group["comparisons"] for i in pair
    )
    return max(1, round(in_pairs / once))


def demo_split(directory: Path, train: int, held_out: int = 600) -> tuple[list, list]:
    write(directory / "data.jsonl", prompts=train + held_out, seed=11)
    groups, _ = read_groups(directory / "data.jsonl")
    return groups[:train], groups[train:]


def folds(file: Path) -> Iterable[tuple[list[Group], list[Group]]]:
    """5 folds of an HH file, by the first turn of the conversation."""
    groups, _ = read_groups(file, "hh", {"different_prompts": "drop"})
    place = [hashlib.sha256(group.prompt[0].content.encode()).digest()[0] % 5 for group in groups]
    for fold in range(5):
        yield (
            [g for g, p in zip(groups, place, strict=True) if p != fold],
            [g for g, p in zip(groups, place, strict=True) if p == fold],
        )


def epochs(options: argparse.Namespace) -> None:
    """The last weights of each run, not its best checkpoint: what more epochs do."""
    with tempfile.TemporaryDirectory() as name:
        split, base = demo_split(Path(name), options.prompts), Path(name) / "base"
        known, unseen = prepare(split, Text(max_prompt_tokens=128, max_response_tokens=128), base)
        for n in (1, 3, 10):
            run_seed = partial(score, "ours", sys.executable, base, known, known[:300] + unseen,
                               epochs=n, learning_rate=2e-3)  # fmt: skip
            scored = by_seed(run_seed, options)
            seen, new = (np.mean([s[part] for s in scored], 0) for part in
                         (slice(0, 300), slice(300, None)))  # fmt: skip
            print(json.dumps({"epochs": n, "train": round(100 * accuracy(seen), 2),
                              "held_out": round(100 * accuracy(new), 2),
                              "held_out_95": interval(new)}), flush=True)  # fmt: skip


def steps(options: argparse.Namespace) -> None:
    """One epoch of ours on the demo data, by prompts per step and learning rate."""
    with tempfile.TemporaryDirectory() as name:
        split, base = demo_split(Path(name), options.prompts), Path(name) / "base"
        known, unseen = prepare(split, Text(max_prompt_tokens=128, max_response_tokens=128), base)
        search(partial(score, "ours", sys.executable, base, known, unseen), options)


def trl(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as name:
        if options.hh:
            splits = list(folds(options.hh))
            text = _limits(options)
        else:
            splits = [demo_split(Path(name), options.prompts)]
            text = Text(max_prompt_tokens=128, max_response_tokens=128)
        bases = [Path(name) / f"base-{i}" for i in range(len(splits))]
        parts = prepared(splits, text, bases, options.jobs)
        worth = epochs_worth(parts[0][0]) if options.equal == "tokens" else 1
        run_side = {
            "ours": partial(score, "ours", sys.executable, epochs=worth, same=bool(options.hh)),
            "trl": partial(score, "trl", options.trl, epochs=1, same=bool(options.hh)),
        }
        settings = {}
        for side, run_one in run_side.items():
            print(json.dumps({"search": side}), flush=True)
            known, cut = parts[0][0], len(parts[0][0]) * 3 // 4
            part = partial(run_one, bases[0], known[:cut], known[cut:])
            settings[side] = search(part, options)
        counts: dict[str, list] = {side: [[] for _ in splits] for side in run_side}
        for seed, fold in itertools.product(range(options.seeds), range(len(splits))):
            run_both = [
                partial(one, bases[fold], *parts[fold], seed=seed, **settings[side])
                for side, one in run_side.items()
            ]
            both = side_by_side(lambda run_one: run_one(), run_both, options.jobs)
            for side, found in zip(run_side, both, strict=True):
                counts[side][fold].append(found)
            _report(seed, fold, settings, counts)


def prepared(
    splits: Sequence[tuple[list, list]], text: Text, bases: Sequence[Path], jobs: int
) -> list[tuple[list, list]]:
    """A base model of each training part; both parts encoded by its tokenizer."""
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        return list(pool.map(prepare, splits, itertools.repeat(text), bases))


def prepare(split: tuple[list, list], text: Text, base: Path) -> tuple[list, list]:
    make_base(split[0], SCRATCH, text, base, 0)
    return encode(base, text, split[0]), encode(base, text, split[1])


def _report(seed: int, fold: int, settings: dict, counts: dict[str, list]) -> None:
    """Of what has run so far: the seeds of a fold averaged, the folds pooled."""
    ours, theirs = (
        np.concatenate([np.mean(runs, 0) for runs in counts[side] if runs])
        for side in ("ours", "trl")
    )
    difference = 100 * (accuracy(ours) - accuracy(theirs))
    print(json.dumps({
        "seed": seed, "fold": fold, "prompts": len(ours), "settings": settings,
        "ours": round(100 * accuracy(ours), 2), "trl": round(100 * accuracy(theirs), 2),
        "difference": round(difference, 2), "difference_95": interval(ours, theirs),
    }), flush=True)  # fmt: skip


def _limits(options: argparse.Namespace, **more: Path) -> Text:
    return Text(
        max_prompt_tokens=options.prompt_tokens,
        max_response_tokens=options.response_tokens,
        **more,
    )


def encoder(options: argparse.Namespace) -> None:
    text = _limits(options, template=TEMPLATE)
    counts, shorter = [], []
    for fold, (train, held_out) in enumerate(folds(options.hh)):
        if options.fold not in (None, fold):
            continue
        known, unseen = (encode(options.model, text, part) for part in (train, held_out))
        counts.append(
            score("ours", sys.executable, options.model, known, unseen,
                  learning_rate=options.learning_rate, groups_per_step=16)
        )  # fmt: skip
        lengths = [[-float(len(text)) for text in group.responses] for group in held_out]
        shorter.append(correct(unseen, lengths))
        pooled, baseline = np.concatenate(counts), np.concatenate(shorter)
        print(json.dumps({
            "fold": fold, "counts": counts[-1].tolist() if options.counts else None,
            "prompts": len(pooled), "accuracy": round(100 * accuracy(pooled), 2),
            "accuracy_95": interval(pooled), "shorter_wins": round(100 * accuracy(baseline), 2),
        }), flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["epochs", "steps", "trl", "encoder"])
    parser.add_argument("--trl", help="the python of an environment with trl==1.16.0")
    parser.add_argument("--hh", type=Path)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--fold", type=int)
    parser.add_argument("--counts", action="store_true", help="print every prompt's counts")
    parser.add_argument("--prompts", type=int, default=1000)
    parser.add_argument("--equal", choices=["tokens", "epochs"], default="tokens")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, nargs="+", default=[PROMPTS_PER_STEP])
    parser.add_argument("--rates", type=float, nargs="+", default=RATES)
    parser.add_argument("--jobs", type=int, default=1, help="training runs at a time")
    parser.add_argument("--learning-rate", type=float, default=5e-5)
    parser.add_argument("--prompt-tokens", type=int, default=256)
    parser.add_argument("--response-tokens", type=int, default=256)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(max(1, len(os.sched_getaffinity(0)) // options.jobs))
    {"epochs": epochs, "steps": steps, "trl": trl, "encoder": encoder}[options.what](options)


if __name__ == "__main__":
    main()
