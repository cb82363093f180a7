"""Accuracy on held-out choices: against TRL, over epochs, and of a pretrained encoder.

    python -m loadtests.training_quality epochs                        1, 3, 10 epochs, demo data
    python -m loadtests.training_quality trl --trl trl/bin/python      demo data, 3 seeds
    python -m loadtests.training_quality trl --trl ... --hh FILE       5 folds by first turn
    python -m loadtests.training_quality encoder --hh FILE --model DIR [--fold N]

Both sides see the same prompts and take as many tokens through the model: TRL one epoch over all
pairs, in which a prompt of K completions has C(K,2) pairs and each completion comes K - 1 times;
we as many epochs as that is worth, one on plain pairs. --equal epochs gives us one always, a sixth
of TRL's computing on the demo data. Each side searches its learning rate on a part of its training
data of seed 0 (fold 0). Accuracy is over all comparisons, a tie counts one half; intervals are the
bootstrap's over prompts, of the difference where two sides are compared on the same prompts.
"""

import argparse
import hashlib
import json
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from transformers import AutoTokenizer

from loadtests.training_bench import job, run
from service.text import Encoder
from training.config import Scratch, Text
from training.data import Group, read_groups
from training.demo.data import write
from training.fit import encode_groups
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
    encoded, _ = encode_groups(encoder, groups)
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


def score(
    worker: str, python: str, model: Path, train: list, held_out: list, **changes
) -> np.ndarray:
    wanted = job(model, train, 4096, eval=held_out, **changes)
    return correct(held_out, run(worker, python, wanted)["rewards"])


def best_rate(worker: str, python: str, model: Path, train: list, epochs: int) -> float:
    """On a quarter of the training prompts."""
    cut = len(train) * 3 // 4
    settings = {"epochs": epochs}
    found = {
        rate: accuracy(
            score(worker, python, model, train[:cut], train[cut:], learning_rate=rate, **settings)
        )
        for rate in RATES
    }
    print(json.dumps({"search": worker, "accuracy_by_rate": found}), flush=True)
    return max(found, key=lambda rate: found[rate])


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
        train, held_out = demo_split(Path(name), options.prompts)
        text, base = Text(max_prompt_tokens=128, max_response_tokens=128), Path(name) / "base"
        make_base(train, SCRATCH, text, base, 0)
        known, unseen = encode(base, text, train), encode(base, text, held_out)
        for n in (1, 3, 10):
            scored = [
                score("ours", sys.executable, base, known, known[:300] + unseen, epochs=n,
                      learning_rate=2e-3, seed=seed)
                for seed in range(options.seeds)
            ]  # fmt: skip
            seen, new = (np.mean([s[part] for s in scored], 0) for part in
                         (slice(0, 300), slice(300, None)))  # fmt: skip
            print(json.dumps({"epochs": n, "train": round(100 * accuracy(seen), 2),
                              "held_out": round(100 * accuracy(new), 2),
                              "held_out_95": interval(new)}), flush=True)  # fmt: skip


def trl(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as name:
        if options.hh:
            splits = list(folds(options.hh))
            text = Text(max_prompt_tokens=384, max_response_tokens=256)
        else:
            splits = [demo_split(Path(name), options.prompts)]
            text = Text(max_prompt_tokens=128, max_response_tokens=128)
        sides = {"ours": sys.executable, "trl": options.trl}
        rates: dict[str, float] = {}
        counts: dict[str, list] = {side: [] for side in sides}
        for fold, (train, held_out) in enumerate(splits):
            base = Path(name) / f"base-{fold}"
            make_base(train, SCRATCH, text, base, 0)
            known, unseen = encode(base, text, train), encode(base, text, held_out)
            worth = epochs_worth(known) if options.equal == "tokens" else 1
            for side, python in sides.items():
                epochs = worth if side == "ours" else 1
                rates.setdefault(side, 0.0)
                rates[side] = rates[side] or best_rate(side, python, base, known, epochs)
                settings = {"learning_rate": rates[side], "epochs": epochs}
                scored = [
                    score(side, python, base, known, unseen, seed=seed, **settings)
                    for seed in range(options.seeds)
                ]
                counts[side].append(np.mean(scored, 0))
            _report(fold, rates, {side: np.concatenate(c) for side, c in counts.items()})


def _report(fold: int, rates: dict, counts: dict[str, np.ndarray]) -> None:
    ours, theirs = counts["ours"], counts["trl"]
    difference = 100 * (accuracy(ours) - accuracy(theirs))
    print(json.dumps({
        "folds": fold + 1, "prompts": len(ours), "rates": rates,
        "ours": round(100 * accuracy(ours), 2), "trl": round(100 * accuracy(theirs), 2),
        "difference": round(difference, 2), "difference_95": interval(ours, theirs),
    }), flush=True)  # fmt: skip


def encoder(options: argparse.Namespace) -> None:
    text = Text(
        max_prompt_tokens=options.prompt_tokens, max_response_tokens=options.response_tokens,
        template=TEMPLATE,
    )  # fmt: skip
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
    parser.add_argument("what", choices=["epochs", "trl", "encoder"])
    parser.add_argument("--trl", help="the python of an environment with trl==1.16.0")
    parser.add_argument("--hh", type=Path)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--fold", type=int)
    parser.add_argument("--counts", action="store_true", help="print every prompt's counts")
    parser.add_argument("--prompts", type=int, default=1000)
    parser.add_argument("--equal", choices=["tokens", "epochs"], default="tokens")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--learning-rate", type=float, default=5e-5)
    parser.add_argument("--prompt-tokens", type=int, default=256)
    parser.add_argument("--response-tokens", type=int, default=256)
    options = parser.parse_args()
    {"epochs": epochs, "trl": trl, "encoder": encoder}[options.what](options)


if __name__ == "__main__":
    main()
