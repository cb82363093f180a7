"""transformers.Trainer with our collator and our loss. Knows groups of token ids, not text."""

import contextlib
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import set_seed

from service.errors import InvalidRequest, TrainingError
from service.text import Encoder
from training.config import Fit
from training.data import Comparison, Group
from training.evaluate import evaluate
from training.loss import preference_loss
from training.model import RewardModel


@dataclass(frozen=True, slots=True)
class EncodedGroup:
    rows: list[list[int]]
    comparisons: tuple[Comparison, ...]


def encode_groups(encoder: Encoder, groups: Sequence[Group]) -> tuple[list[EncodedGroup], int]:
    """Token ids of all groups, and how many completions the limits cut."""
    encoded, truncated = [], 0
    for group in groups:
        try:
            rows = encoder.encode_group(group.prompt, group.responses)
        except InvalidRequest as error:
            raise TrainingError(f"data line {group.lines[0]}: {error.message}") from error
        truncated += sum(row.truncated for row in rows)
        encoded.append(EncodedGroup([row.ids for row in rows], group.comparisons))
    return encoded, truncated


def collate(groups: Sequence[EncodedGroup]) -> dict[str, torch.Tensor]:
    """Unique completions of the groups, padded on the right, and the comparisons among them.

    Each group weighs 1/len(groups) in all, each of its comparisons an equal part of that: all
    C(K,2) comparisons of a prompt are one batch element (InstructGPT, arXiv 2203.02155, eq. 1).

    >>> batch = collate([EncodedGroup([[5, 6], [5, 7, 8]], (Comparison(1, 0),))])
    >>> batch["input_ids"].tolist(), batch["attention_mask"].tolist()
    ([[5, 6, 0], [5, 7, 8]], [[1, 1, 0], [1, 1, 1]])
    >>> batch["winner"].tolist(), batch["loser"].tolist(), batch["weight"].tolist()
    ([1], [0], [1.0])
    """
    rows = [row for group in groups for row in group.rows]
    longest = max(map(len, rows))
    starts = np.cumsum([0, *(len(group.rows) for group in groups)])
    placed = [
        (start + c.winner, start + c.loser, c.target, c.target_margin, 1 / len(group.comparisons))
        for start, group in zip(starts, groups, strict=False)
        for c in group.comparisons
    ]
    winner, loser, target, target_margin, weight = zip(*placed, strict=True)
    return {
        "input_ids": torch.tensor([row + [0] * (longest - len(row)) for row in rows]),  # (N, T)
        "attention_mask": torch.tensor(
            [[1] * len(row) + [0] * (longest - len(row)) for row in rows]
        ),
        "winner": torch.tensor(winner),  # (C,)
        "loser": torch.tensor(loser),
        "target": torch.tensor(target, dtype=torch.float32),
        "target_margin": torch.tensor(target_margin, dtype=torch.float32),
        "weight": torch.tensor(weight, dtype=torch.float32) / len(groups),
    }


def batch_loss(rewards: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Mean over groups of the mean over their comparisons, scalar."""
    losses = preference_loss(
        rewards, batch["winner"], batch["loser"], batch["target"], batch["target_margin"]
    )
    return (batch["weight"] * losses).sum()


@torch.no_grad()
def predict(model: RewardModel, rows: Sequence[Sequence[int]], batch_size: int = 64) -> np.ndarray:
    """Raw rewards of the rows, (N,), computed in order of length."""
    training, device = model.training, next(model.parameters()).device
    model.eval()
    rewards = np.empty(len(rows), np.float32)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        batch = collate([EncodedGroup([list(rows[i]) for i in chosen], (Comparison(0, 0),))])
        rewards[chosen] = (
            model(batch["input_ids"].to(device), batch["attention_mask"].to(device)).cpu().numpy()
        )
    model.train(training)
    if not np.isfinite(rewards).all():
        row = int(np.flatnonzero(~np.isfinite(rewards))[0])
        raise TrainingError(
            f"completion {row} of {len(rows)}: its reward is {rewards[row]}; the weights are broken"
        )
    return rewards


def predict_groups(model: RewardModel, groups: Sequence[EncodedGroup]) -> list[np.ndarray]:
    """Raw rewards per group, one per unique completion."""
    flat = predict(model, [row for group in groups for row in group.rows])
    return np.split(flat, np.cumsum([len(group.rows) for group in groups])[:-1])


class PreferenceTrainer(Trainer):
    """Our loss and our evaluation inside transformers' loop."""

    model: RewardModel

    def __init__(self, *args: Any, held_out: Sequence[Group], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = False  # our loss is a mean: accumulation divides it
        self.held_out = held_out

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = batch_loss(model(inputs["input_ids"], inputs["attention_mask"]), inputs)
        if not torch.isfinite(loss):
            raise TrainingError(
                f"step {self.state.global_step}: the loss is {loss.item()}; "
                "lower fit.learning_rate, or look for broken weights in the base model"
            )
        return loss

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        rewards = predict_groups(self.model, self.eval_dataset)
        report = evaluate(self.held_out, rewards, resamples=0)
        metrics = {f"eval_{name}": report[name] for name in ("loss", "accuracy", "margin")}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics


def fit(
    model: RewardModel,
    train: Sequence[EncodedGroup],
    held_out: Sequence[Group],
    encoded_held_out: Sequence[EncodedGroup],
    settings: Fit,
    checkpoints: Path,
    seed: int,
) -> list[dict[str, float]]:
    """Train `model` in place; the checkpoint with the lowest held-out loss is the one kept.

    AdamW, linear warm-up, cosine to 10 % of the rate. Returns the log: one entry per logged step.
    """
    set_seed(seed)
    steps = math.ceil(len(train) / settings.groups_per_batch / settings.accumulate)
    every = max(1, math.ceil(steps * settings.epochs / settings.evaluations))
    arguments = TrainingArguments(
        output_dir=str(checkpoints),
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.groups_per_batch,
        gradient_accumulation_steps=settings.accumulate,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": 0.1},
        warmup_steps=settings.warmup_ratio,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        optim="adamw_torch",
        eval_strategy="steps",
        save_strategy="steps",
        eval_steps=every,
        save_steps=every,
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        logging_steps=max(1, every // 10),
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        report_to=[],
        disable_tqdm=not sys.stderr.isatty(),  # then a line per logged step instead
        seed=seed,
    )
    trainer = PreferenceTrainer(
        model=model,
        args=arguments,
        train_dataset=list(train),
        eval_dataset=list(encoded_held_out),
        data_collator=collate,
        held_out=held_out,
    )
    trainer.train(resume_from_checkpoint=last_whole_checkpoint(checkpoints))
    return trainer.state.log_history


def last_whole_checkpoint(path: Path) -> str | None:
    """The latest checkpoint that was written to its end; trainer_state.json is written last."""
    found = [
        (int(file.parent.name.split("-")[1]), file) for file in path.glob("*/trainer_state.json")
    ]
    for _, file in sorted(found, reverse=True):
        with contextlib.suppress(ValueError):
            json.loads(file.read_bytes())
            return str(file.parent)
    return None
