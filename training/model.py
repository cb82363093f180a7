"""Backbone + scalar head with a bias. Knows tensors; knows nothing of text.

Named and saved like transformers' ...ForSequenceClassification with num_labels = 1, so a checkpoint
opens there too (its decoder heads have no bias; ours is 0 until a loss that is not shift-invariant
moves it).
"""

import math
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel

from service.errors import TrainingError

WEIGHTS = "model.safetensors"


class RewardModel(nn.Module):
    """A copy of a causal backbone, its unembedding layer gone, one scalar per sequence instead.

    The head is initialised with weights N(0, 1/(d+1)), standard deviation 1/sqrt(d+1), and bias 0,
    as in "Learning to summarize" (arXiv 2009.01325).
    """

    def __init__(self, backbone: PreTrainedModel) -> None:
        super().__init__()
        self.config: PretrainedConfig = backbone.config
        self.backbone_name: str = backbone.base_model_prefix
        self.add_module(self.backbone_name, backbone)
        self.score = nn.Linear(self.config.hidden_size, 1)
        nn.init.normal_(self.score.weight, std=1 / math.sqrt(self.config.hidden_size + 1))
        nn.init.zeros_(self.score.bias)

    @property
    def backbone(self) -> PreTrainedModel:
        return self.get_submodule(self.backbone_name)  # type: ignore[return-value]

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """(N, T), (N, T) -> raw rewards (N,), read at the last token that is not padding.

        The position comes from the mask, never from a pad id, and padding may be on either side.
        """
        position_ids = (attention_mask.cumsum(-1) - 1).clamp(min=0)  # (N, T)
        hidden = self.backbone(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            use_cache=False,
        ).last_hidden_state  # (N, T, d)
        last = (attention_mask * torch.arange(input_ids.shape[1], device=input_ids.device)).argmax(
            -1
        )
        pooled = hidden[torch.arange(len(last), device=last.device), last]  # (N, d)
        return self.score(pooled).squeeze(-1).float()

    @classmethod
    def from_causal(cls, path: str | Path) -> "RewardModel":
        """A new reward model on the backbone of a causal checkpoint."""
        backbone = AutoModel.from_pretrained(path, dtype=torch.float32)
        return cls(backbone)

    @classmethod
    def load(cls, path: str | Path) -> "RewardModel":
        """A reward model saved by `save`."""
        path = Path(path)
        config = AutoConfig.from_pretrained(path)
        model = cls(AutoModel.from_config(config, dtype=torch.float32))
        missing, unexpected = model.load_state_dict(load_file(path / WEIGHTS), strict=False)
        if missing or unexpected:
            raise TrainingError(f"{path / WEIGHTS}: missing {missing}, unexpected {unexpected}")
        return model.eval()

    def save(self, path: str | Path, mean: float | None = None) -> None:
        """Weights and config.json. Rewards stay raw: `mean` and `std = 1` are written beside them.

        The two names are OpenRLHF's; std is 1 so that nothing is scaled, and export, not the
        checkpoint, does the centring, so nothing is centred twice.
        """
        path = Path(path)
        path.mkdir(parents=True, exist_ok=True)
        self.config.num_labels = 1
        if mean is not None:
            self.config.mean, self.config.std = mean, 1.0
        self.config.architectures = [
            type(self.backbone).__name__.removesuffix("Model") + "ForSequenceClassification"
        ]
        self.config.save_pretrained(path)
        weights = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
        save_file(weights, path / WEIGHTS, metadata={"format": "pt"})
