"""Training on decoders and encoders, with adapters, in bf16, with gradient checkpointing."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from service.errors import TrainingError
from tests.conftest import CONFIGS
from tests.training.families import DECODERS, FAMILIES, tiny
from training.checkpoint import begin, read
from training.config import Lora, read_config
from training.data import read_groups
from training.demo.data import write
from training.export import export
from training.fit import last_whole_checkpoint
from training.lora import attach, merge, restore
from training.lora import write as write_adapters
from training.measure import evaluate_run
from training.pipeline import train
from training.predict import predict
from training.run import Run

IDS = torch.randint(3, 700, (4, 12), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def base(run: Run, tmp_path_factory):
    """A checkpoint to begin with: a family's weights beside the demo's tokenizer."""

    def made(family: str) -> Path:
        path = tmp_path_factory.mktemp("base") / family
        tiny(family).save(path)
        AutoTokenizer.from_pretrained(run.model).save_pretrained(path)
        return path

    return made


def _train(base: Path, tmp_path: Path, *settings: str) -> Run:
    write(tmp_path / "data.jsonl", prompts=60, seed=0)
    (tmp_path / "config.toml").write_text(
        f"""name = "small"\nout = "{tmp_path / "run"}"\n[model]\npath = "{base}"
        [data]\ntrain = "{tmp_path / "data.jsonl"}"\n[text]\nmax_prompt_tokens = 48
        max_response_tokens = 48\n[fit]\nlearning_rate = 1e-3\ngroups_per_step = 8"""
    )
    return train(read_config(tmp_path / "config.toml", settings))


@pytest.mark.parametrize("family", ["bert", "deberta-v2", "modernbert", "gpt_neox"])
def test_a_backbone_is_trained_exported_and_served(family: str, base, tmp_path: Path) -> None:
    """Export proves the golden scores and the mean through the code that serves."""
    run = _train(base(family), tmp_path)
    bundle = export(run, tmp_path / "bundle")
    assert bundle.manifest.architecture.family == family
    assert abs(bundle.manifest.normalization.measured_mean) < 1e-3
    theirs = AutoModelForSequenceClassification.from_pretrained(run.model).eval()
    ours = read(run.model)
    mask = torch.ones_like(IDS)
    with torch.no_grad():
        expected = theirs(input_ids=IDS, attention_mask=mask).logits[:, 0]
        assert torch.allclose(ours(IDS, mask), expected, atol=1e-5)


@pytest.mark.parametrize("settings", [["fit.precision=bf16"], ["fit.gradient_checkpointing=true"]])
def test_memory_is_saved_at_the_same_rewards(settings: list[str], base, tmp_path: Path) -> None:
    """Against plain fp32 from the same beginning: exact with checkpointing, close with bf16."""
    path = base("llama")
    weights = []
    for name, chosen in (("plain", []), ("saved", settings)):
        (tmp_path / name).mkdir()
        run = _train(path, tmp_path / name, *chosen)
        weights.append(load_file(run.model / "model.safetensors"))
    # Adam moves each of ~7 steps by 1e-3 at most whichever way a small gradient's sign falls
    tolerance = 1e-5 if "checkpointing" in settings[0] else 2e-2
    assert all((weights[0][n] - weights[1][n]).abs().max() < tolerance for n in weights[0])
    assert any((weights[0][n] - weights[1][n]).abs().max() > 0 for n in weights[0]) or (
        "checkpointing" in settings[0]
    )


def test_a_run_in_bf16_is_measured_in_fp32(base, tmp_path: Path) -> None:
    """Its mean and evaluation are those of its checkpoint read again: what export goes by."""
    run = _train(base("llama"), tmp_path, "fit.precision=bf16")
    report, encoder = run.read_report(), run.encoder()
    rows = [encoder.encode_group(prompt, [text])[0].ids for prompt, text in run.reference()]
    mean = predict(read(run.model), rows).mean(dtype=np.float64)
    # the same weights in the same kernels, while bf16 is 2e-3 off here, twice what export allows
    assert report["normalization"]["mean"] == pytest.approx(mean, abs=1e-6)
    again = evaluate_run(run, read_groups(run.held_out)[0])
    for name in ("accuracy", "margin", "loss", "reward_mean", "reward_std"):
        assert report["evaluation"][name] == pytest.approx(again[name], abs=1e-6), name


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_merged_adapters_give_the_rewards_they_gave_beside_it(family: str, base, tmp_path) -> None:
    model = begin(base(family))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    adapted = attach(model, Lora(rank=4, alpha=8))
    trained = [n for n, p in model.named_parameters() if p.requires_grad]
    assert any("lora_A" in n for n in trained) and any(n.endswith("bias") for n in trained)
    assert not any("base_layer" in n for n in trained)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
        mask = torch.ones_like(IDS)
        beside = model(IDS, mask)
        merge(adapted)
        assert torch.allclose(model(IDS, mask), beside, atol=1e-5)
    assert model.state_dict().keys() == before.keys()
    assert any((model.state_dict()[n] - before[n]).abs().max() > 1e-3 for n in before)


def test_the_bias_moves_only_where_the_loss_sees_a_shift(base, tmp_path: Path) -> None:
    biases = []
    for name, settings in (("plain", []), ("centred", ["loss.centring=0.1"])):
        (tmp_path / name).mkdir()
        run = _train(base("llama"), tmp_path / name, *settings)
        biases.append(load_file(run.model / "model.safetensors")["score.bias"].item())
    assert biases[0] == 0 and biases[1] != 0


def test_a_run_with_adapters_leaves_a_plain_checkpoint(base, tmp_path: Path) -> None:
    path = base("llama")
    run = _train(path, tmp_path, "model.lora={rank=4,alpha=8.0}")
    assert (
        load_file(run.model / "model.safetensors").keys()
        == load_file(path / "model.safetensors").keys()
    )
    export(run, tmp_path / "bundle")


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_a_checkpoint_with_adapters_opens_and_a_run_goes_on_from_it(
    family: str, base, tmp_path: Path
) -> None:
    """Both bit for bit."""
    lora = "model.lora={rank=4,alpha=8.0}"
    path, settings = base(family), [lora, "fit.evaluations=3", "fit.learning_rate=1e-2"]
    run = _train(path, tmp_path, *settings)
    last = Path(last_whole_checkpoint(run.checkpoints))
    best = json.loads((last / "trainer_state.json").read_bytes())["best_model_checkpoint"]
    opened, ended = read(Path(best)).state_dict(), read(run.model).state_dict()
    assert all(torch.equal(opened[name], ended[name]) for name in ended)

    weights = load_file(last / "model.safetensors")
    run.report.unlink()
    shutil.rmtree(last)
    assert last_whole_checkpoint(run.checkpoints) is not None
    _train(path, tmp_path, *settings)
    again = load_file(last / "model.safetensors")
    assert all(torch.equal(again[name], weights[name]) for name in weights)


def test_adapters_that_are_not_there_or_of_another_model_are_not_gone_on_from(
    base, tmp_path: Path
) -> None:
    model = begin(base("llama"))
    attach(model, Lora(rank=4))
    with pytest.raises(TrainingError, match=r"adapters\.safetensors: .*name another `out`"):
        restore(model, tmp_path)
    other = begin(base("llama"))
    attach(other, Lora(rank=4, target_modules=["q_proj"]))
    write_adapters(other, tmp_path)
    with pytest.raises(TrainingError, match=r"adapters\.safetensors: it is not of this model"):
        restore(model, tmp_path)


def test_nothing_random_is_left_in_training(base) -> None:
    for family in FAMILIES:
        model = begin(base(family)).train()
        mask = torch.ones_like(IDS)
        assert torch.equal(model(IDS, mask), model(IDS, mask)), family


def test_a_saved_file_puts_every_weight_back(base) -> None:
    """As the trainer does with its best checkpoint: not strictly, so a wrong name would be lost."""
    for family in FAMILIES:
        path = base(family)
        model, saved = begin(path), tiny(family)
        model.load_state_dict(load_file(path / "model.safetensors"), strict=False)
        expected = saved.state_dict()
        assert model.state_dict().keys() == expected.keys()
        assert all(torch.equal(model.state_dict()[n], expected[n]) for n in expected), family


def test_a_base_that_lacks_weights_is_refused(base) -> None:
    path = base("llama")
    weights = load_file(path / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]

    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(TrainingError, match=r"weights would be random: .*mlp\.up_proj\.weight"):
        begin(path)


def test_every_family_begins_with_a_new_head(base) -> None:
    for family in FAMILIES:
        model = begin(base(family))
        assert model.kind == ("causal" if family in DECODERS else "bidirectional")
        assert model.score.bias.item() == 0 and model.score.weight.std() < 0.5


@pytest.mark.parametrize("target", ["no_such", "[unclosed", ["no_such"], ["norm"]])
def test_adapters_for_layers_that_the_model_lacks_are_refused(target: str | list, base) -> None:
    with pytest.raises(TrainingError, match=r"model\.lora\.target_modules: "):
        attach(begin(base("llama")), Lora(target_modules=target))


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        "null",
        "[" * 100_000,
        '{"model_type": "llama", "hidden_size": "wide"}',
        '{"model_type": "llama", "num_attention_heads": 0}',
    ],
)
def test_a_config_json_that_is_none_is_refused(content: str, base) -> None:
    path = base("llama")
    (path / "config.json").write_text(content)
    with pytest.raises(TrainingError, match=r"config\.json: "):
        read(path)


def test_weights_that_were_cut_short_are_refused(base) -> None:
    file = base("llama") / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(TrainingError, match=r"cannot be loaded: .*incomplete"):
        begin(file.parent)


def test_the_adapters_configuration_is_valid() -> None:
    assert read_config(CONFIGS / "lora.toml").model.lora.rank == 16
