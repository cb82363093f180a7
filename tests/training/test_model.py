"""The scalar head: how it begins, where it reads, what a checkpoint holds."""

import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoModelForSequenceClassification, Qwen3Config

from tests.training.families import DECODERS, FAMILIES, tiny
from training.checkpoint import read
from training.model import RewardModel


def test_the_head_begins_with_the_published_spread_and_no_bias() -> None:
    config = Qwen3Config(
        vocab_size=8, hidden_size=4096, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=1, num_key_value_heads=1, head_dim=8,
    )  # fmt: skip
    torch.manual_seed(0)
    head = RewardModel(AutoModel.from_config(config)).score
    # 4,096 draws: the sample deviation is within 5 % of 1/sqrt(d+1) with more than 4 sigma
    assert head.weight.std().item() == pytest.approx(1 / math.sqrt(4097), rel=0.05)
    assert head.bias.item() == 0


@pytest.mark.parametrize("family", DECODERS)
def test_padding_on_either_side_changes_nothing(family: str) -> None:
    model = tiny(family)
    row = torch.tensor([[5, 9, 2, 7, 2]])  # holds 2, which other code would take for padding
    alone = model(row, torch.ones_like(row))
    for pad in (0, 2):
        padding = torch.full((1, 4), pad)
        ones, zeros = torch.ones(1, 5, dtype=torch.long), torch.zeros(1, 4, dtype=torch.long)
        right = model(torch.cat([row, padding], 1), torch.cat([ones, zeros], 1))
        left = model(torch.cat([padding, row], 1), torch.cat([zeros, ones], 1))
        assert torch.allclose(right, alone, atol=1e-6) and torch.allclose(left, alone, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_checkpoint_reads_back_and_opens_in_transformers(family: str, tmp_path: Path) -> None:
    model = tiny(family)
    model.save(tmp_path, mean=0.25)
    again = read(tmp_path)
    ids = torch.randint(3, 100, (4, 9))
    expected = model(ids, torch.ones_like(ids))
    assert torch.equal(again(ids, torch.ones_like(ids)), expected)
    assert (again.config.mean, again.config.std) == (0.25, 1.0)

    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    logits = theirs(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, 0]
    assert torch.allclose(logits, expected, atol=1e-6)
