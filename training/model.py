"""Backbone + scalar head with a bias. Knows tensors; knows nothing of text.

Named and saved like transformers' ...ForSequenceClassification with num_labels = 1, so a checkpoint
opens there too (its decoder heads have no bias; ours is 0 until a loss that is not shift-invariant
moves it).
"""

import math
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from training.loss import at_least_fp32

WEIGHTS = "model.safetensors"
PREFIX = "sequence_classifier."


class RewardModel(nn.Module):
    """A causal backbone, its unembedding layer gone, one scalar per sequence instead.

    The head is initialised with weights N(0, 1/(d+1)), standard deviation 1/sqrt(d+1), and bias 0,
    as in "Learning to summarize" (arXiv 2009.01325).
    """

    kind: Literal["causal", "bidirectional"] = "causal"

    def __init__(self, backbone: PreTrainedModel) -> None:
        super().__init__()
        self.config: PretrainedConfig = backbone.config
        self.backbone_name: str = backbone.base_model_prefix
        self.add_module(self.backbone_name, backbone)
        self.score = nn.Linear(self.config.hidden_size, 1)
        begin_head(self.score)

    @property
    def backbone(self) -> PreTrainedModel:
        return self.get_submodule(self.backbone_name)  # type: ignore[return-value]

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """(N, T), (N, T) -> raw rewards (N,), read at the last token that is not padding.

        The position comes from the mask, never from a pad id, and padding may be on either side.
        On the right it needs no mask: attention is causal, no real token sees one that pads, and
        without a mask the attention kernel computes only what is below the diagonal.
        """
        padding = {}
        if not attention_mask[:, 0].all():  # on the left
            position_ids = (attention_mask.cumsum(-1) - 1).clamp(min=0)  # (N, T)
            padding = {"attention_mask": attention_mask, "position_ids": position_ids}
        hidden = self.backbone(
            input_ids=input_ids, use_cache=False, **padding
        ).last_hidden_state  # (N, T, d)
        last = (attention_mask * torch.arange(input_ids.shape[1], device=input_ids.device)).argmax(
            -1
        )
        pooled = hidden[torch.arange(len(last), device=last.device), last]  # (N, d)
        return at_least_fp32(self.score(pooled).squeeze(-1))

    def save(
        self, path: str | Path, mean: float | None = None, state_dict: dict[str, Any] | None = None
    ) -> None:
        """Weights and config.json. Rewards stay raw: `mean` and `std = 1` are written beside them.

        The two names are OpenRLHF's; std is 1 so that nothing is scaled, and export, not the
        checkpoint, does the centring, so nothing is centred twice. state_dict: the weights, where
        they are gathered from several processes.
        """
        name = type(self.backbone).__name__.removesuffix("Model") + "ForSequenceClassification"
        weights = self.state_dict() if state_dict is None else state_dict
        _write(Path(path), self.config, name, weights, mean)


class EncoderRewardModel(nn.Module):
    """A bidirectional backbone with the head that transformers gives its family.

    The whole is transformers' ...ForSequenceClassification with one label: pooling and the layers
    before the scalar are the family's own.
    """

    kind: Literal["causal", "bidirectional"] = "bidirectional"

    def __init__(self, classifier: PreTrainedModel) -> None:
        super().__init__()
        self.config: PretrainedConfig = classifier.config
        self.sequence_classifier = classifier
        self.register_load_state_dict_pre_hook(_with_prefix)

    @property
    def backbone(self) -> PreTrainedModel:
        return self.sequence_classifier.base_model

    @property
    def score(self) -> nn.Linear:
        """The last layer: d -> 1."""
        (head,) = (
            module
            for name, module in self.sequence_classifier.named_modules()
            if isinstance(module, nn.Linear) and module.out_features == 1
        )
        return head

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """(N, T), (N, T), padded on the right -> raw rewards (N,)."""
        output = self.sequence_classifier(input_ids=input_ids, attention_mask=attention_mask)
        return at_least_fp32(output.logits.squeeze(-1))

    def save(
        self, path: str | Path, mean: float | None = None, state_dict: dict[str, Any] | None = None
    ) -> None:
        """As RewardModel.save."""
        weights = self.state_dict() if state_dict is None else state_dict
        weights = {name.removeprefix(PREFIX): tensor for name, tensor in weights.items()}
        _write(Path(path), self.config, type(self.sequence_classifier).__name__, weights, mean)


AnyRewardModel = RewardModel | EncoderRewardModel


def usable_positions(model: AnyRewardModel) -> int | None:
    """The longest row the backbone has positions for; None: no limit that it knows of.

    RoBERTa counts its positions from padding_idx + 1, so that 514 serve 512 tokens.
    """
    positions: int | None = getattr(model.config, "max_position_embeddings", None)
    if positions is not None and model.config.model_type == "roberta":
        return positions - model.config.pad_token_id - 1
    return positions


def begin_head(head: nn.Linear) -> None:
    nn.init.normal_(head.weight, std=1 / math.sqrt(head.in_features + 1))
    nn.init.zeros_(head.bias)


def _write(
    path: Path,
    config: PretrainedConfig,
    architecture: str,
    weights: dict[str, torch.Tensor],
    mean: float | None,
) -> None:
    path.mkdir(parents=True, exist_ok=True)
    config.num_labels = 1
    config.architectures = [architecture]
    if mean is not None:
        config.mean, config.std = mean, 1.0
    config.save_pretrained(path)
    contiguous = {name: tensor.contiguous() for name, tensor in weights.items()}
    save_file(contiguous, path / WEIGHTS, metadata={"format": "pt"})


def _with_prefix(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """A saved file has transformers' names, without the name of our attribute."""
    for name in list(state_dict):
        if not name.startswith(prefix + PREFIX):
            state_dict[prefix + PREFIX + name.removeprefix(prefix)] = state_dict.pop(name)
