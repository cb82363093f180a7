"""Tiny random models of the decoder families that are exported."""

import torch
from transformers import AutoModel, GPT2Config, LlamaConfig, Qwen3Config

from training.model import RewardModel

MAX_TOKENS = 96

_SIZES = {
    "vocab_size": 800,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": MAX_TOKENS,
}
FAMILIES = {
    "qwen3": Qwen3Config(**_SIZES, head_dim=16),
    "llama": LlamaConfig(**_SIZES),
    "gpt2": GPT2Config(vocab_size=800, n_embd=48, n_layer=3, n_head=4, n_positions=MAX_TOKENS),
}


def tiny(family: str) -> RewardModel:
    torch.manual_seed(0)
    model = RewardModel(AutoModel.from_config(FAMILIES[family])).eval()
    with torch.no_grad():  # spread the rewards, or rank flips could hide in their closeness
        model.score.weight *= 20
    return model
