"""One training run of ours on the job that trl_worker.py takes; prints one line of JSON."""

import json
import resource
import sys
import tempfile
import time
from pathlib import Path

import torch

from training.batches import EncodedGroup, schedule
from training.checkpoint import begin
from training.config import Fit, Loss
from training.data import Comparison
from training.fit import PreferenceTrainer, _arguments
from training.predict import predict_groups


def main(path: str) -> None:
    job = json.loads(Path(path).read_text(encoding="utf-8"))
    torch.manual_seed(job["seed"])
    train, held_out = (
        [
            EncodedGroup(group["rows"], tuple(Comparison(*pair) for pair in group["comparisons"]))
            for group in job[part]
        ]
        for part in ("train", "eval")
    )
    settings = Fit(
        epochs=job["epochs"],
        learning_rate=job["learning_rate"],
        groups_per_step=job["groups_per_step"],
        max_batch_tokens=job["max_batch_tokens"],
    )
    model = begin(Path(job["model"]))
    if job["head"] is not None:
        with torch.no_grad():
            model.score.weight.copy_(torch.tensor([job["head"]]))
    steps = schedule(len(train), settings.groups_per_step, settings.epochs, job["seed"])
    arguments = _arguments(settings, len(steps), Path(tempfile.mkdtemp()), job["seed"])
    arguments.eval_strategy = arguments.save_strategy = "no"
    arguments.load_best_model_at_end, arguments.logging_steps = False, 10
    trainer = PreferenceTrainer(
        model=model,
        args=arguments,
        train_dataset=[[train[i] for i in step] for step in steps],
        held_out=[],
        settings=settings,
        loss=Loss(),
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    rewards = [values.tolist() for values in predict_groups(model, held_out)] if held_out else []
    print(json.dumps({"seconds": seconds, "grown_mib": grown, "rewards": rewards}))


if __name__ == "__main__":
    main(sys.argv[1])
