"""Prompts per second against TRL's RewardTrainer, fed all the pairs of the same prompts.

    uv venv trl && VIRTUAL_ENV=trl uv pip install trl==1.16.0 torch==2.13.0
    python -m loadtests.training_bench --trl trl/bin/python

fp32, no gradient checkpointing, AdamW on both sides; no forward pass pads to more than the same
number of tokens; as many prompts per optimizer step. Runs interleave; of each side the fastest is
taken, as timeit does: what slows a run down is somebody else. Memory is what the peak of the
process grew by while it trained.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from itertools import combinations
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen3Config

WORKERS = Path(__file__).parent
VOCABULARY, PROMPTS_PER_STEP = 2048, 8


def base_model(path: Path) -> Path:
    """A random Qwen3 of 3.7 M parameters, and a tokenizer that TRL asks for and nobody uses."""
    config = Qwen3Config(
        vocab_size=VOCABULARY, hidden_size=256, intermediate_size=768, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, head_dim=64, max_position_embeddings=512,
        tie_word_embeddings=True, pad_token_id=0, eos_token_id=1, bos_token_id=None,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(path)
    tokenizer = Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1, "<unk>": 2}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(path)
    return path


def groups(prompts: int, k: int, seed: int = 0) -> list[dict]:
    """Prompts of 64 to 128 tokens, k responses of 32 to 128, all pairs of a random ranking."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(prompts):
        prompt = rng.integers(3, VOCABULARY, rng.integers(64, 129)).tolist()
        rows = [
            prompt + rng.integers(3, VOCABULARY, rng.integers(32, 129)).tolist() for _ in range(k)
        ]
        pairs = [[int(a), int(b)] for a, b in combinations(rng.permutation(k), 2)]
        found.append({"rows": rows, "comparisons": pairs})
    return found


def job(
    model: Path,
    train: list[dict],
    max_batch_tokens: int,
    groups_per_step: int = PROMPTS_PER_STEP,
    **changes: object,
) -> dict:
    """Both sides' settings: TRL's pairs per pass are as many as its longest rows leave room for."""
    longest = max(len(row) for group in train for row in group["rows"])
    pairs = sum(len(group["comparisons"]) for group in train) / len(train)
    per_pass = max(1, max_batch_tokens // (2 * longest))
    return {
        "model": str(model), "train": train, "eval": [], "seed": 0, "epochs": 1,
        "head": None, "order": None,  # None: each side's own
        "learning_rate": 1e-4, "max_batch_tokens": max_batch_tokens,
        "groups_per_step": groups_per_step, "pairs_per_pass": per_pass,
        "passes_per_step": max(1, round(pairs * groups_per_step / per_pass)), **changes,
    }  # fmt: skip


def run(worker: str, python: str, job: dict) -> dict:
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(job, file)
        file.flush()
        command = (
            [python, "-m", "loadtests.our_worker", file.name]
            if worker == "ours"
            else [python, str(WORKERS / "trl_worker.py"), file.name]
        )
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{worker}: {done.stderr[-3000:]}")
    result: dict = json.loads(done.stdout.splitlines()[-1])
    return result


def compare(name: str, job: dict, trl: str, repeats: int) -> dict:
    results: dict[str, list[dict]] = {"ours": [], "trl": []}
    for _ in range(repeats):
        for worker, python in (("ours", sys.executable), ("trl", trl)):
            results[worker].append(run(worker, python, job))
    row: dict[str, object] = {"data": name, "prompts": len(job["train"])}
    for worker, runs in results.items():
        seconds = [r["seconds"] for r in runs]
        row[f"{worker}_prompts_per_s"] = round(len(job["train"]) / min(seconds), 2)
        row[f"{worker}_seconds"] = [round(value, 1) for value in seconds]
        row[f"{worker}_grown_mib"] = round(statistics.median(r["grown_mib"] for r in runs))
    ours, theirs = (min(r["seconds"] for r in results[worker]) for worker in ("ours", "trl"))
    row["ratio"] = round(theirs / ours, 2)
    return row


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--trl", required=True, help="the python of an environment with trl==1.16.0"
    )
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--max-batch-tokens", type=int, default=4096)
    parser.add_argument("--only", choices=["pairs", "k4", "k9"])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        model = base_model(Path(directory))
        for name, prompts, k in (("k9", 16, 9), ("pairs", 96, 2), ("k4", 48, 4)):
            if options.only in (None, name):
                wanted = job(model, groups(prompts, k), options.max_batch_tokens)
                print(json.dumps(compare(name, wanted, options.trl, options.repeats)), flush=True)


if __name__ == "__main__":
    main()
