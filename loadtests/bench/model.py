"""The bundle that is measured: a Qwen3 decoder through the real training and export.

Its weights are as good as random. Its tokenizer is a byte-level BPE of generated words, many of
which are one token, so that texts have the lengths they are asked for.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from loadtests.sources import digest
from service.bundle import TOKENIZER
from training.config import read_config
from training.demo.walk import CONFIG
from training.export import export
from training.pipeline import train

SEED = 4
PROMPT_TOKENS, RESPONSE_TOKENS = 2048 + 64, 640
"limits of the bundle: the longest prompt and its template; the longest response of HH and more"


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of the decoder; heads have hidden // heads."""

    name: str
    vocabulary: int
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    records: int
    "preference records that tokenizer and model see"

    def settings(self) -> list[str]:
        scratch = {
            "vocab_size": self.vocabulary,
            "layers": self.layers,
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "heads": self.heads,
            "kv_heads": self.kv_heads,
            "epochs": 0.05,
        }
        return [
            *(f"model.scratch.{name}={value}" for name, value in scratch.items()),
            *(f"text.max_prompt_tokens={PROMPT_TOKENS}", f"seed={SEED}"),
            f"text.max_response_tokens={RESPONSE_TOKENS}",
            *("fit.epochs=0.05", "fit.evaluations=1", "data.eval_fraction=0.05"),
        ]


BENCH = Shape("bench", 8192, 6, 384, 1024, 6, 2, records=400)
"12.6 M parameters, 9.4 M without the embedding; heads of 64"
QUICK = Shape("quick", 1024, 2, 64, 128, 2, 1, records=100)


def build(shape: Shape, root: Path) -> Path:
    """The bundle below `root`; made unless these sources have made it before."""
    path = root / f"{shape.name}-{digest(shape, CONFIG, Path(__file__))}"
    if not (path / "bundle").is_dir():
        data = path / "data.jsonl"
        path.mkdir(parents=True, exist_ok=True)
        _write_records(data, shape)
        settings = [f"out={path / 'run'}", f"data.train={data}", f"name={shape.name}"]
        export(train(read_config(CONFIG, [*settings, *shape.settings()])), path / "bundle")
    return path / "bundle"


def words(bundle: Path) -> list[str]:
    """Words that are a single token after a space, whatever stands around them."""
    tokenizer = Tokenizer.from_file(str(bundle / TOKENIZER))
    found = []
    for token in sorted(tokenizer.get_vocab()):
        word = token.removeprefix("Ġ")
        if word != token and word.isascii() and word.isalpha():
            ids = tokenizer.encode(f" {word}", add_special_tokens=False).ids
            found += [word] if len(ids) == 1 else []
    return found


def _write_records(file: Path, shape: Shape) -> None:
    """Preferences between texts of made-up words, frequent and rare ones, in TRL's format."""
    random = np.random.default_rng(SEED)
    syllables = np.array([c + v for c in "bdfghjklmnprstvwz" for v in "aeiou"])
    made = {"".join(random.choice(syllables, random.integers(1, 4))) for _ in range(12_000)}
    lexicon = np.array(["user", "assistant", *sorted(made)])

    def text(count: int) -> str:
        return " ".join(random.choice(lexicon, count)) + "\nuser\nassistant\n"

    with file.open("w", encoding="utf-8") as out:
        for _ in range(shape.records):
            record = {"prompt": text(60), "chosen": text(30), "rejected": text(30)}
            out.write(json.dumps(record) + "\n")
