"""transformers.Trainer with our batches and our loss. Knows groups of token ids, not text."""

import contextlib
import functools
import json
import math
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import set_seed

from service.errors import TrainingError
from training import lora
from training.batches import EncodedGroup, Share, collate, deal, schedule
from training.checkpoint import read
from training.config import Fit, Loss
from training.data import Group
from training.encoding import check_likelihood
from training.evaluate import evaluate
from training.gradient import accumulate, batch_loss
from training.model import AnyRewardModel
from training.predict import predict_groups
from training.processes import on_cpu
from training.watch import Watch


class PreferenceTrainer(Trainer):
    """Our step, our evaluation and our alarms inside transformers' loop.

    An item of the training set is all groups of one optimizer step; each process takes its share.
    """

    model: AnyRewardModel

    def __init__(
        self, *args: Any, held_out: Sequence[Group], settings: Fit, loss: Loss, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = False
        self.held_out, self.settings, self.loss = held_out, settings, loss
        self.adapted = lora.is_adapted(self.model)
        self.watch = Watch(settings.learning_rate)
        self._squares = torch.zeros(2)  # sum of squared margins since the last log, and how many

    def get_train_dataloader(self) -> DataLoader:
        deal_out = functools.partial(
            _share,
            max_tokens=self.settings.max_batch_tokens,
            rank=self.accelerator.process_index,
            processes=self.accelerator.num_processes,
            ranked=self.loss.likelihood == "plackett-luce",
        )
        return DataLoader(self.train_dataset, batch_size=1, shuffle=False, collate_fn=deal_out)

    def training_step(self, model: Any, inputs: list[Share], *args: Any) -> torch.Tensor:
        (share,) = inputs
        model.train()
        loss, margins = accumulate(
            model,
            share.to(self.args.device),
            self.loss,
            self.accelerator.backward,
            functools.partial(self.accelerator.no_sync, model),
        )
        if not torch.isfinite(loss):
            raise TrainingError(
                f"step {self.state.global_step}: the loss is {loss.item()}; "
                "lower fit.learning_rate, or look for broken weights in the base model"
            )
        squares = margins.double().square().sum().item()
        self._squares += torch.tensor([squares, float(len(margins))])
        return loss.to(self.args.device)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Adds the margins' root mean square to a training step's entry, and looks at it."""
        if "grad_norm" in logs:
            total = self.accelerator.reduce(self._squares.to(self.args.device))
            logs["margin_rms"] = math.sqrt(total[0].item() / max(total[1].item(), 1.0))
            self._squares = torch.zeros(2)
        super().log(logs, *args, **kwargs)
        if "grad_norm" in logs:
            self.watch.observe(
                self.state.global_step,
                logs["loss"],
                logs["grad_norm"],
                logs["margin_rms"],
                self._last_good(),
            )

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Accuracy and margin of the held-out groups, and the loss that is trained on them."""
        rewards = predict_groups(self.model, self.eval_dataset)
        report = evaluate(self.held_out, rewards, resamples=0)
        choices = [replace(group, rows=[[0]] * len(group.rows)) for group in self.eval_dataset]
        batch = collate(choices, ranked=self.loss.likelihood == "plackett-luce")
        metrics = {f"eval_{name}": report[name] for name in ("accuracy", "margin")}
        flat = torch.cat([torch.from_numpy(values) for values in rewards])
        metrics["eval_loss"] = batch_loss(flat, batch, self.loss).item()
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """A checkpoint is a raw reward model that opens by itself, beside the trainer's state."""
        assert output_dir is not None
        if not self.args.should_save:
            return
        if self.adapted:
            self.model.save(output_dir, state_dict=lora.merged(self.model))
            lora.write(self.model, Path(output_dir))
        else:
            self.model.save(output_dir, state_dict=state_dict)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self.adapted:
            lora.restore(self.model, Path(resume_from_checkpoint))
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        if self.adapted:
            lora.restore(self.model, Path(str(self.state.best_model_checkpoint)))
        else:
            super()._load_best_model()

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        try:
            super()._save_checkpoint(model, trial)
        except (OSError, SafetensorError, RuntimeError) as error:
            broken = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
            shutil.rmtree(broken, ignore_errors=True)
            raise OSError(
                f"{broken} could not be written: {error}; what was written of it is removed, "
                f"{self._last_good() or 'no checkpoint'} is kept. Make room and give the same "
                "command again to go on"
            ) from error

    def _last_good(self) -> str | None:
        best = self.state.best_model_checkpoint
        return best or last_whole_checkpoint(Path(self.args.output_dir))


def fit(
    model: AnyRewardModel,
    train: Sequence[EncodedGroup],
    held_out: Sequence[Group],
    encoded_held_out: Sequence[EncodedGroup],
    settings: Fit,
    loss: Loss,
    checkpoints: Path,
    seed: int,
) -> tuple[AnyRewardModel, list[dict[str, float]]]:
    """The trained model, as in the checkpoint with the lowest held-out loss, and the log.

    `model` is trained in place, except where it is sharded: then the checkpoint is read again. It
    computes in fp32 again, whatever precision it was trained in.
    AdamW, linear warm-up, cosine to 10 % of the rate. The log has one entry per logged step.
    """
    check_likelihood([*train, *encoded_held_out], loss)
    set_seed(seed)
    if settings.gradient_checkpointing:
        model.backbone.gradient_checkpointing_enable({"use_reentrant": False})
    # The likelihoods do not see a shift: the bias's gradient is rounding, which Adam would step by.
    model.score.bias.requires_grad_(loss.centring > 0)
    steps = schedule(len(train), settings.groups_per_step, settings.epochs, seed)
    trainer = PreferenceTrainer(
        model=model,
        args=_arguments(settings, len(steps), checkpoints, seed),
        train_dataset=[[train[i] for i in step] for step in steps],
        eval_dataset=list(encoded_held_out),
        held_out=held_out,
        settings=settings,
        loss=loss,
    )
    trainer.train(resume_from_checkpoint=last_whole_checkpoint(checkpoints))
    log = [
        entry | {"epoch": round(entry["epoch"] * settings.epochs, 4)} if "epoch" in entry else entry
        for entry in trainer.state.log_history
    ]
    if settings.fsdp:
        trainer.accelerator.wait_for_everyone()
        return read(Path(str(trainer.state.best_model_checkpoint))), log
    # accelerate leaves its autocast in model.forward: what is measured would be off by bf16
    return trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False), log


def _arguments(settings: Fit, steps: int, checkpoints: Path, seed: int) -> TrainingArguments:
    every = max(1, math.ceil(steps / settings.evaluations))
    sharding = {"fsdp": True, "fsdp_config": settings.fsdp_config} if settings.fsdp else {}
    return TrainingArguments(
        output_dir=str(checkpoints),
        max_steps=steps,
        per_device_train_batch_size=1,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": 0.1},
        warmup_steps=settings.warmup_ratio,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        bf16=settings.precision == "bf16",
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
        report_to=[],
        use_cpu=on_cpu(),
        ddp_find_unused_parameters=False,
        disable_tqdm=not sys.stderr.isatty(),  # then a line per logged step instead
        seed=seed,
        **sharding,
    )


def _share(items: list[list[EncodedGroup]], **options: Any) -> list[Share]:
    return [deal(item, **options) for item in items]


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
