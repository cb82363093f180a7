"""A base model from nothing but the training data: tokenizer, random decoder, language modelling.

For the demo, for tests, and for machines without a model hub. A published checkpoint is better.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen3Config

from service.errors import TrainingError
from service.text import Encoder
from training.config import Scratch, Text
from training.data import Group, reference_completions
from training.progress import track
from training.rules import text_rules

TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def train_tokenizer(groups: Sequence[Group], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with ChatML turns, from the text of the groups."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )

    def texts():
        for group in groups:
            turns = [group.prompt] if isinstance(group.prompt, str) else group.prompt
            yield from (turn if isinstance(turn, str) else turn.content for turn in turns)
            yield from group.responses

    tokenizer.train_from_iterator(texts(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=TEMPLATE,
    )


def make_base(groups: Sequence[Group], scratch: Scratch, text: Text, path: Path, seed: int) -> None:
    """Train tokenizer and decoder on the chosen responses, save both as a causal checkpoint."""
    torch.manual_seed(seed)
    tokenizer = train_tokenizer(groups, scratch.vocab_size)
    tokenizer.save_pretrained(path)
    rules = text_rules(tokenizer, text)
    model = AutoModelForCausalLM.from_config(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=scratch.hidden_size,
            intermediate_size=scratch.intermediate_size,
            num_hidden_layers=scratch.layers,
            num_attention_heads=scratch.heads,
            num_key_value_heads=scratch.kv_heads,
            head_dim=scratch.hidden_size // scratch.heads,
            max_position_embeddings=max(rules.max_tokens, 64),
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
        )
    )
    encoder = Encoder(tokenizer.backend_tokenizer.to_str(), TEMPLATE, rules)
    rows = [encoder.encode(prompt, chosen).ids for prompt, chosen in reference_completions(groups)]
    _language_model(model, rows, scratch, seed)
    model.save_pretrained(path)


def _language_model(
    model: torch.nn.Module, rows: list[list[int]], scratch: Scratch, seed: int
) -> None:
    """Next-token prediction over whole conversations, cosine to 10 % of the rate."""
    steps = int(scratch.epochs * len(rows) / scratch.batch_size)
    order = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=scratch.learning_rate, weight_decay=0.0)
    total = max(steps, 2) + (steps == 20)  # OneCycleLR divides by a warm-up of one step less one
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, scratch.learning_rate, total, pct_start=0.05, final_div_factor=0.4
    )
    model.train()
    batches = torch.randperm(len(rows), generator=order).repeat(int(scratch.epochs) + 1)
    for step in track(range(steps), "language modelling"):
        chosen = batches[step * scratch.batch_size : (step + 1) * scratch.batch_size].tolist()
        batch = [torch.tensor(rows[i]) for i in chosen]
        ids = torch.nn.utils.rnn.pad_sequence(batch, batch_first=True)  # (B, T)
        lengths = torch.tensor([len(row) for row in batch])
        mask = torch.arange(ids.shape[1]) < lengths[:, None]
        logits = model(input_ids=ids, attention_mask=mask.long()).logits[:, :-1]  # (B, T-1, V)
        labels = ids[:, 1:].masked_fill(~mask[:, 1:], -100)
        loss = cross_entropy(logits.flatten(0, 1), labels.flatten())
        if not torch.isfinite(loss):
            raise TrainingError(
                f"language modelling, step {step}: the loss is {loss.item()}; "
                "lower model.scratch.learning_rate"
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.eval()
