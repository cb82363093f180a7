"""verl's own reward loop: its loader with our manager, or its client of reward models.

Arguments: naive|vllm|sglang, URL, tokenizer directory, samples as JSON lines, overrides.
"""

import asyncio
import json
import sys
from pathlib import Path

import numpy as np
import torch
from omegaconf import OmegaConf
from tensordict import TensorDict
from transformers import AutoTokenizer
from verl import DataProto
from verl.experimental.reward_loop.reward_loop import RewardLoopWorker

mode, url, directory, path, *overrides = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(directory)
samples = [json.loads(line) for line in Path(path).read_text().splitlines()]


def padded(rows: list[list[int]], left: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids (B, T) and their mask, as verl's rollout leaves them."""
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), tokenizer.pad_token_id)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        place = slice(width - len(row), width) if left else slice(0, len(row))
        ids[i, place] = torch.tensor(row)
        mask[i, place] = 1
    return ids, mask


def batch() -> DataProto:
    chats = [[{"role": "user", "content": sample["prompt"]}] for sample in samples]
    texts = [
        tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        for chat in chats
    ]
    prompts, prompt_mask = padded([tokenizer(text)["input_ids"] for text in texts], left=True)
    endings = [sample["response"] + tokenizer.eos_token for sample in samples]
    responses, response_mask = padded(
        [tokenizer(text)["input_ids"] for text in endings], left=False
    )
    tensors = {
        "prompts": prompts,
        "responses": responses,
        "attention_mask": torch.cat([prompt_mask, response_mask], dim=1),
    }
    columns = {
        "raw_prompt": chats,
        "data_source": ["demo"] * len(samples),
        "reward_model": [{"ground_truth": ""} for _ in samples],
        "extra_info": [{"prompt": sample["prompt"]} for sample in samples],
    }
    return DataProto(
        batch=TensorDict(tensors, batch_size=len(samples)),
        non_tensor_batch={name: objects(values) for name, values in columns.items()},
    )


def objects(values: list) -> np.ndarray:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


reward = {
    "num_workers": 1,
    "custom_reward_function": {"path": None, "name": "compute_score"},
    "reward_manager": {"source": "register", "name": "naive"},
    "reward_model": {"enable": False, "model_path": directory, "rollout": {"name": mode}},
    "sandbox_fusion": {"url": None},
}
address = None
if mode in ("vllm", "sglang"):
    overrides.append("reward.reward_model.enable=true")
    address = url.removeprefix("http://")

config = OmegaConf.create(
    {
        "reward": reward,
        "actor_rollout_ref": {"model": {"path": directory, "tokenizer_path": directory}},
    }
)
given = [override.removeprefix("+") for override in overrides]  # as hydra takes them
config = OmegaConf.merge(config, OmegaConf.from_dotlist(given))


async def main() -> tuple[list[dict], str]:
    worker = RewardLoopWorker(config, address)
    return await worker.compute_score_batch(batch()), type(worker.reward_manager).__name__


outputs, manager = asyncio.new_event_loop().run_until_complete(main())
print(json.dumps({"outputs": outputs, "manager": manager}))
