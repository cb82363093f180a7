"""Bundles of random weights in the shapes of known models: speed does not depend on the values.

Weights are filled with copies of one block of noise, since drawing 8 billion numbers takes minutes.
They are numbers of bf16 in every precision, so that all variants of a model have the same.
Texts are of made-up words, a token each.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModel, LlamaConfig, PretrainedConfig, Qwen3Config

from loadtests.sources import digest
from service import bundle as bundles
from service.manifest import GoldenRow, Provenance, TextRules, Variant
from service.text import Encoder
from training.graph import export_graph, final_norm, sizes
from training.model import RewardModel
from training.paged import KINDS as PAGED
from training.paged_graph import export_paged_graph
from training.predict import predict
from training.ragged_graph import export_ragged_graph
from training.rounding import rounded

GRAPH, RAGGED_GRAPH = "model.onnx", "model.ragged.onnx"
WORDS = [f"w{i}" for i in range(400)]
BLOCK = 1 << 20
SPREAD = 0.02
"standard deviation of weights, as these families begin with"
TOLERANCE = {"fp32": 1e-3, "bf16": 0.25, "fp16": 0.25}
"""of golden scores whose standard deviation is near 1: a bundle that was built wrong is far off;
bf16 keeps 8 bits, and 32 layers of random weights lose some of them"""


@dataclass(frozen=True, slots=True)
class Model:
    config: PretrainedConfig
    share: float = 1.0
    "of the benchmark's pairs that this model is given"
    limits: tuple[int, int] = (6144, 2048)
    "tokens of a prompt and of a response"


MODELS = {
    "tiny": Model(
        Qwen3Config(
            vocab_size=512, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, head_dim=16,
        ),
        limits=(384, 128),
    ),
    "qwen3-0.6b": Model(
        Qwen3Config(
            vocab_size=151_936, hidden_size=1024, intermediate_size=3072, num_hidden_layers=28,
            num_attention_heads=16, num_key_value_heads=8, head_dim=128,
            max_position_embeddings=40_960, rope_theta=1e6,
        )
    ),
    "llama-3.1-8b": Model(
        LlamaConfig(
            vocab_size=128_256, hidden_size=4096, intermediate_size=14_336, num_hidden_layers=32,
            num_attention_heads=32, num_key_value_heads=8, max_position_embeddings=131_072,
            rope_theta=5e5,
        ),
        share=0.25,
    ),
}  # fmt: skip


def random_model(model: Model, dtype: torch.dtype, device: str = "cpu") -> RewardModel:
    """A reward model without any initialisation but noise."""
    with torch.device("meta"):
        built = RewardModel(AutoModel.from_config(model.config, attn_implementation="sdpa"))
    built = built.to(dtype).to_empty(device=device)
    # its buffers are not noise: they are computed from the configuration
    built.backbone.rotary_emb = type(built.backbone.rotary_emb)(model.config).to(device)
    noise = torch.randn(BLOCK, generator=torch.Generator().manual_seed(0)) * SPREAD
    block = noise.bfloat16().to(device=device, dtype=dtype)
    head = noise / SPREAD / model.config.hidden_size**0.5
    with torch.no_grad():
        for name, parameter in built.named_parameters():
            _fill(parameter, block)
            if "norm" in name:
                parameter.fill_(1.0)
        _fill(built.score.weight, head.bfloat16().to(device=device, dtype=dtype))
    return built.eval()


def _fill(parameter: torch.Tensor, block: torch.Tensor) -> None:
    flat = parameter.view(-1)
    whole = len(flat) // BLOCK * BLOCK
    flat[:whole].view(-1, BLOCK).copy_(block.expand(whole // BLOCK, BLOCK))
    flat[whole:].copy_(block[: len(flat) - whole])


def _padded(built: RewardModel, path: Path, name: str) -> Variant:
    """The graph with past key/values; a PaddedEngine runs it on a GPU. In fp32 that of CPUs too."""
    export_graph(built, 0.0, path / GRAPH)
    if name != "fp32":
        return _variant(name, "bf16")
    export_ragged_graph(built, 0.0, path / RAGGED_GRAPH, path / GRAPH)
    return _variant(name, "fp32").model_copy(update={"ragged": RAGGED_GRAPH})


def _packed(built: RewardModel, path: Path, name: str) -> Variant:
    """The graph with blocks; a PagedEngine runs it."""
    copied = rounded(built, PAGED[name].dtype)
    for kept in (final_norm(copied), copied.score):
        kept.float()  # the weights are of 16 bits already; what is computed with them is not
    export_paged_graph(copied, 0.0, path / GRAPH)
    return _variant(name, PAGED[name].precision)


def _variant(name: str, precision: Literal["fp32", "bf16", "fp16"]) -> Variant:
    return Variant(
        name=name,
        graph=GRAPH,
        data=(f"{GRAPH}.data",),
        precision=precision,
        devices=("cpu", "cuda") if name == "fp32" else ("cuda",),
        tolerance=TOLERANCE[precision],
        bit_invariant=False,
    )


VARIANTS: dict[str, tuple[torch.dtype, Callable[[RewardModel, Path, str], Variant]]] = {
    "fp32": (torch.float32, _padded),
    "bf16": (torch.bfloat16, _padded),
    **dict.fromkeys(PAGED, (torch.bfloat16, _packed)),
}
"how a model's variants are made: of weights of a type, by a function that writes its files"


def build(name: str, variant: str, room: Path) -> Path:
    """The bundle of a model with that one variant, below `room`; made unless these sources have."""
    path = room / f"{name}-{variant}-{digest(MODELS[name], Path(__file__))}"
    if (path / bundles.MANIFEST).is_file():
        return path
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    model = MODELS[name]
    dtype, write = VARIANTS[variant]
    built = random_model(model, dtype)
    rules = TextRules(
        bos_id=None,
        ending_ids=(),
        max_prompt_tokens=model.limits[0],
        max_response_tokens=model.limits[1],
        template_date="2026-01-01",
    )
    tokenizer = _tokenizer()
    (path / bundles.TOKENIZER).write_text(tokenizer, encoding="utf-8")
    golden = _golden(built, Encoder(tokenizer, None, rules))
    (path / bundles.GOLDEN).write_text(json.dumps(golden), encoding="utf-8")
    made = write(built, path, variant)
    bundles.write_manifest(
        path,
        name=name,
        architecture=sizes(built),
        text=rules,
        normalization=None,
        variants=(made,),
        evaluation={},
        provenance=Provenance(
            created="", service_version="0", base_model="random weights", libraries={}
        ),
    )
    return path


def _tokenizer() -> str:
    vocabulary = {word: i for i, word in enumerate(["<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer.to_str()


def _golden(built: RewardModel, encoder: Encoder) -> list[dict[str, object]]:
    """A few short conversations with torch's rewards."""
    pairs = [(" ".join(WORDS[:n]), " " + " ".join(WORDS[n : 3 * n])) for n in (1, 3, 9)]
    ids = [encoder.encode(prompt, response).ids for prompt, response in pairs]
    rewards = predict(built, ids).tolist()
    return [
        GoldenRow(prompt=prompt, response=response, ids=row, reward=reward).model_dump()
        for (prompt, response), row, reward in zip(pairs, ids, rewards, strict=True)
    ]
