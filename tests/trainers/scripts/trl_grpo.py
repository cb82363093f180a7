"""A GRPO or RLOO run of TRL's on the demo: conversations, KL penalty, rewards from the service.

Arguments: URL, the demo's run directory, output directory, seed, steps, grpo|rloo, sync|async.
"""

import json
import sys
from pathlib import Path

import torch
from datasets import Dataset

url, demo, out, seed, steps, algorithm, form = sys.argv[1:8]
torch.set_num_threads(1)
prompts = [json.loads(line)["prompt"] for line in (Path(demo) / "held_out.jsonl").open()]
dataset = Dataset.from_list([{"prompt": [{"role": "user", "content": p}]} for p in prompts])
model = str(Path(demo) / "base")
shared = {
    "output_dir": out,
    "use_cpu": True,
    "bf16": False,
    "max_steps": int(steps),
    "num_generations": 8,
    "per_device_train_batch_size": 128,
    "max_completion_length": 48,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "constant",
    "gradient_checkpointing": False,
    "logging_steps": 1,
    "log_completions": True,
    "num_completions_to_print": 0,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "seed": int(seed),
}
settings = {**shared, "loss_type": "dr_grpo", "scale_rewards": "none"}  # per sequence, unscaled

if algorithm == "rloo":
    from trl import RLOOConfig, RLOOTrainer

    from reward_client.trl import RemoteReward

    def kept(prompts, completions, **columns):
        """RLOO writes no completion tables: keeps what was rewarded, and adds 0 to it."""
        rows = [(p, c[0]["content"]) for p, c in zip(prompts, completions, strict=True)]
        with (Path(out) / "completions.jsonl").open("a") as file:
            file.write(json.dumps(rows) + "\n")
        return [0.0] * len(rows)

    trainer = RLOOTrainer(
        model=model,
        reward_funcs=[RemoteReward(url), kept],
        args=RLOOConfig(**shared, beta=0.2),
        train_dataset=dataset,
    )
elif form == "async":
    from trl import GRPOConfig, GRPOTrainer

    from reward_client.trl import remote_reward_async

    trainer = GRPOTrainer(
        model=model,
        reward_funcs=remote_reward_async(url),
        args=GRPOConfig(**settings, beta=0.2),
        train_dataset=dataset,
    )
else:
    # README: TRL
    from trl import GRPOConfig, GRPOTrainer

    from reward_client.trl import RemoteReward

    trainer = GRPOTrainer(
        model=model,
        reward_funcs=RemoteReward(url),
        args=GRPOConfig(beta=0.2, **settings),
        train_dataset=dataset,
    )
    # README: end

trainer.train()
with (Path(out) / "log.jsonl").open("w") as file:
    for entry in trainer.state.log_history:
        if "reward" in entry:
            file.write(json.dumps({key: float(value) for key, value in entry.items()}) + "\n")
print(json.dumps({"steps": trainer.state.global_step}))
