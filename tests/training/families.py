"""Tiny random models of every family that is exported."""

import torch
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    BertConfig,
    DebertaV2Config,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    ModernBertConfig,
    Qwen2Config,
    Qwen3Config,
    RobertaConfig,
)

from training.model import AnyRewardModel, EncoderRewardModel, RewardModel, begin_head

MAX_TOKENS = 96

_SIZES = {
    "vocab_size": 800,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": MAX_TOKENS,
    "pad_token_id": 0,
}
_GROUPED = {**_SIZES, "num_key_value_heads": 2}
DECODERS = {
    "qwen3": Qwen3Config(**_GROUPED, head_dim=16),
    "qwen2": Qwen2Config(**_GROUPED),
    "llama": LlamaConfig(**_GROUPED, head_dim=16),
    "mistral": MistralConfig(**_GROUPED, sliding_window=4096),  # wider than any row, as Mistral 7B
    "gemma": GemmaConfig(**_GROUPED, head_dim=16),
    "gpt_neox": GPTNeoXConfig(  # a quarter of 64 dimensions rotates, as in Pythia
        **{**_SIZES, "hidden_size": 64, "num_attention_heads": 1}
    ),
    "gpt2": GPT2Config(
        vocab_size=800, n_embd=48, n_layer=3, n_head=4, n_positions=MAX_TOKENS, pad_token_id=0
    ),
}
ENCODERS = {
    "bert": BertConfig(**_SIZES),
    "roberta": RobertaConfig(
        **{**_SIZES, "max_position_embeddings": MAX_TOKENS + 2, "pad_token_id": 1}
    ),
    "deberta-v2": DebertaV2Config(  # the options of DeBERTa-v3
        **_SIZES,
        initializer_range=0.1,  # its rewards are all alike at 0.02 and this width
        type_vocab_size=0,
        relative_attention=True,
        position_buckets=16,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        pos_att_type=["p2c", "c2p"],
        position_biased_input=False,
        pooler_hidden_size=48,
    ),
    "modernbert": ModernBertConfig(
        **_SIZES, global_attn_every_n_layers=2, local_attention=16, cls_token_id=1, sep_token_id=2
    ),
}
FAMILIES = {**DECODERS, **ENCODERS}
_LLAMA_3 = {
    "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
}  # fmt: skip
_YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}
PACKED = {
    "qwen2-biased": Qwen2Config(**{**_GROUPED, "hidden_size": 64}),
    "qwen3-biased": Qwen3Config(**_GROUPED, head_dim=16, attention_bias=True),
    "mistral-0.3": MistralConfig(**_GROUPED, head_dim=16, sliding_window=None, hidden_act="gelu"),
    "llama-3.1": LlamaConfig(**_GROUPED, head_dim=16, rope_parameters=_LLAMA_3),
    "llama-biased": LlamaConfig(**_GROUPED, head_dim=8, attention_bias=True, mlp_bias=True),
    "llama-yarn": LlamaConfig(**_GROUPED, head_dim=16, rope_parameters=_YARN),
}
"""what else a decoder that is packed may have; its norms and biases are noise, since a fresh
model's are all 1 and all 0, and nobody would see one left out or taken for another"""


def tiny(family: str) -> AnyRewardModel:
    torch.manual_seed(0)
    known = {**FAMILIES, **PACKED}[family]
    config = known.__class__.from_dict(known.to_dict())
    config.num_labels = 1
    if family not in ENCODERS:
        model: AnyRewardModel = RewardModel(AutoModel.from_config(config)).eval()
    else:
        model = EncoderRewardModel(AutoModelForSequenceClassification.from_config(config)).eval()
        begin_head(model.score)
    with torch.no_grad():  # spread the rewards, or rank flips could hide in their closeness
        model.score.weight *= 20
        if family in PACKED:
            for vector in (each for each in model.backbone.parameters() if each.dim() == 1):
                vector.add_(torch.randn_like(vector), alpha=0.2)
    return model
