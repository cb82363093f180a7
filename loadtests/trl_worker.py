"""One training run of TRL's RewardTrainer, in an environment of its own; imports nothing of ours.

python trl_worker.py JOB.json, a job as training_bench.py writes it; prints one line of JSON.
"""

import json
import resource
import sys
import tempfile
import time
from pathlib import Path

import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from trl import RewardConfig, RewardTrainer


def main(path: str) -> None:
    job = json.loads(Path(path).read_text(encoding="utf-8"))
    torch.manual_seed(job["seed"])
    model = AutoModelForSequenceClassification.from_pretrained(
        job["model"], num_labels=1, dtype=torch.float32
    )
    if job["head"] is not None:
        with torch.no_grad():
            model.score.weight.copy_(torch.tensor([job["head"]]))
    train = job["train"] if job["order"] is None else [job["train"][i] for i in job["order"]]
    pairs = [
        {"chosen_ids": group["rows"][winner], "rejected_ids": group["rows"][loser]}
        for group in train
        for winner, loser in group["comparisons"]
    ]
    arguments = RewardConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=job["pairs_per_pass"],
        gradient_accumulation_steps=job["passes_per_step"],
        num_train_epochs=job["epochs"],
        learning_rate=job["learning_rate"],
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": 0.1},
        warmup_steps=0.03,
        max_length=None,
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=True,
        save_strategy="no",
        train_sampling_strategy="random" if job["order"] is None else "sequential",
        report_to=[],
        disable_tqdm=True,
        seed=job["seed"],
    )
    trainer = RewardTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(pairs),
        processing_class=AutoTokenizer.from_pretrained(job["model"]),
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    model.eval()
    with torch.no_grad():
        rewards = [
            [model(input_ids=torch.tensor([row])).logits.item() for row in group["rows"]]
            for group in job["eval"]
        ]
    grown = (peak - before) / 1024
    print(json.dumps({"seconds": seconds, "grown_mib": grown, "rewards": rewards}))


if __name__ == "__main__":
    main(sys.argv[1])
