"""Other people's reward models: every family, from safetensors to served rewards; the refusals."""

import asyncio
import json
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertTokenizerFast,
    PreTrainedTokenizerFast,
)

from service.bundle import load
from service.config import ServiceConfig
from service.errors import DataError, TrainingError
from service.http_api import build_http
from service.journal import Journal
from service.metrics import Recorder
from service.pairs import Pair
from service.scorer import Scorer, score_offline
from tests.training.families import DECODERS, FAMILIES, tiny
from training.data import completions_sha256
from training.demo.data import generate
from training.export import TOLERANCE
from training.foreign import export_foreign
from training.run import Run

TEXTS = [
    text for record in generate(60, seed=5) for text in (record["prompt"], *record["responses"])
]
PAIRS = [
    Pair(record["prompt"], response)
    for record in generate(8, seed=6)
    for response in record["responses"][:4]
]


def _wordpiece() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=600, special_tokens=specials)
    tokenizer.train_from_iterator(TEXTS, trainer)
    return BertTokenizerFast(tokenizer_object=tokenizer)


def _unigram() -> PreTrainedTokenizerFast:
    """As DeBERTa-v3's: a Unigram model with [CLS] and [SEP]."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    trainer = trainers.UnigramTrainer(
        vocab_size=600, special_tokens=specials, unk_token="[UNK]", show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **dict(zip(("pad_token", "unk_token", "cls_token", "sep_token"), specials, strict=True)),
    )


@pytest.fixture(scope="module")
def save(run: Run, tmp_path_factory):
    """Saves a family as transformers does: its own class, its safetensors, its tokenizer."""

    def saved(family: str, **config: object) -> Path:
        path = tmp_path_factory.mktemp("theirs") / family
        ours = tiny(family)
        ours.save(path)
        theirs = AutoModelForSequenceClassification.from_pretrained(path)
        theirs.config.pad_token_id = FAMILIES[family].pad_token_id
        for name, value in config.items():
            setattr(theirs.config, name, value)
        theirs.save_pretrained(path)
        tokenizer = {"bert": _wordpiece, "deberta-v2": _unigram}.get(family)
        (tokenizer() if tokenizer else AutoTokenizer.from_pretrained(run.model)).save_pretrained(
            path
        )
        return path

    return saved


@pytest.mark.parametrize("family", FAMILIES)
def test_served_rewards_are_those_of_transformers(family: str, save, tmp_path: Path) -> None:
    """Within 1e-4 and in the same order, through its own class and its own pooling."""
    path = save(family)
    bundle = export_foreign(path, tmp_path / "bundle", uncalibrated=True)
    assert bundle.manifest.architecture.family == family
    assert bundle.manifest.architecture.kind == (
        "causal" if family in DECODERS else "bidirectional"
    )
    scorer = Scorer.open(ServiceConfig(bundle=bundle.path, device="cpu"))
    got = np.array([result.reward for result in score_offline(scorer, PAIRS)])
    rows = [row.ids for row in scorer.encoding.encode(PAIRS)]
    scorer.close()
    theirs = AutoModelForSequenceClassification.from_pretrained(path).eval()
    with torch.no_grad():
        expected = np.array([theirs(torch.tensor([row])).logits.item() for row in rows])
    assert np.abs(got - expected).max() <= TOLERANCE["fp32"]
    distinct = np.abs(np.diff(np.sort(expected))).min() > 2 * TOLERANCE["fp32"]
    assert not distinct or (np.argsort(got) == np.argsort(expected)).all()


def test_the_tokenizer_of_an_encoder_gives_the_ids_it_gives_in_transformers(save, tmp_path) -> None:
    for family in ("bert", "deberta-v2"):
        path = save(family)
        bundle = export_foreign(path, tmp_path / family, uncalibrated=True)
        scorer = Scorer.open(ServiceConfig(bundle=bundle.path, device="cpu"))
        rows = scorer.encoding.encode([Pair("What is 7 plus 5?", " The sum is 12.")])
        scorer.close()
        if family == "bert":  # its tokenizer adds [CLS] and [SEP] by itself
            theirs = AutoTokenizer.from_pretrained(path)
            assert rows[0].ids == theirs("What is 7 plus 5? The sum is 12.").input_ids
        assert rows[0].ids[-1] == bundle.manifest.text.ending_ids[0]


def test_every_answer_of_an_uncalibrated_bundle_says_so(save, tmp_path: Path) -> None:
    bundle = export_foreign(save("bert"), tmp_path / "bundle", uncalibrated=True)
    config = ServiceConfig(bundle=bundle.path, device="cpu")
    scorer = Scorer.open(config)

    async def ask() -> dict:
        transport = httpx.ASGITransport(build_http(scorer, config, Journal(Recorder())))
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as http:
            body = {"prompt": "What is 7 plus 5?", "responses": ["12.", "9."]}
            return (await http.post("/score", json=body)).json()

    answer = asyncio.run(ask())
    scorer.close()
    assert answer["bundle"]["normalized"] is False
    assert [r["reward"] for r in answer["results"]] == [r["raw_reward"] for r in answer["results"]]


def test_calibration_data_averages_zero(save, tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    rows = [{"prompt": p.prompt, "response": p.response} for p in PAIRS]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    bundle = export_foreign(save("llama"), tmp_path / "bundle", calibrate=data)
    scorer = Scorer.open(ServiceConfig(bundle=bundle.path, device="cpu"))
    rewards = [result.reward for result in score_offline(scorer, PAIRS)]
    scorer.close()
    assert np.mean(rewards) == pytest.approx(0, abs=1e-5)
    assert bundle.manifest.normalization.completions == len(PAIRS)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "data.jsonl: no comparisons in it"),
        ([{"prompt": "x", "response": 5}], "data.jsonl:1: response: "),
        ([{"prompt": [], "response": "a"}], "data.jsonl:1: prompt: the conversation is empty"),
        ([{"prompt": "x", "response": "a"}, {"prompt": "x"}], "data.jsonl:2: column 'response'"),
    ],
)
def test_calibration_data_that_is_none_is_named_by_its_line(
    rows: list, message: str, save, tmp_path: Path
) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=message):
        export_foreign(save("llama"), tmp_path / "bundle", calibrate=data)


def test_preferences_with_a_response_column_are_calibrated_on_what_was_chosen(
    save, tmp_path: Path
) -> None:
    shapes = {
        "pairs": {"chosen": "a", "rejected": "b"},
        "k-wise": {"responses": ["a", "b"], "ranking": [0, 1]},
    }
    sums = set()
    for name, record in shapes.items():
        data = tmp_path / "data.jsonl"
        data.write_text(json.dumps({"prompt": "p", "response": "another"} | record))
        bundle = export_foreign(save("llama"), tmp_path / name, calibrate=data)
        sums.add(bundle.manifest.normalization.reference_sha256)
    assert sums == {completions_sha256([("p", "a")])}


def test_an_odd_record_is_one_however_many_of_its_comparisons_are(save, tmp_path: Path) -> None:
    odd = {"prompt": "q", "responses": ["a", "a", "a"], "ranking": [0, 1, 2]}
    good = {"prompt": "p", "responses": ["a", "b"], "ranking": [0, 1]}
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in (odd, good)))
    bundle = export_foreign(
        save("llama"), tmp_path / "bundle", calibrate=data, actions={"identical": "drop"}
    )
    assert bundle.manifest.normalization.reference.endswith("data.jsonl without 1 odd record")


def test_the_mean_and_std_of_a_checkpoint_are_honoured(save, tmp_path: Path) -> None:
    """OpenRLHF's names: the mean is subtracted, the standard deviation kept and not applied."""
    path = save("qwen2", mean=0.75, std=2.5)
    centred = export_foreign(path, tmp_path / "centred")
    raw = export_foreign(path, tmp_path / "raw", uncalibrated=True)
    assert centred.manifest.normalization.scale == 2.5 and raw.manifest.normalization is None
    rewards = []
    for bundle in (centred, raw):
        scorer = Scorer.open(ServiceConfig(bundle=bundle.path, device="cpu"))
        rewards.append(np.array([result.reward for result in score_offline(scorer, PAIRS)]))
        scorer.close()
    assert rewards[0] == pytest.approx(rewards[1] - 0.75, abs=1e-5)
    assert load(centred.path).manifest.id != load(raw.path).manifest.id


def _change(path: Path, **changes: object) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | changes))


def _without_head(path: Path) -> None:
    weights = load_file(path / "model.safetensors")
    save_file({k: v for k, v in weights.items() if not k.startswith("score")},
              path / "model.safetensors", metadata={"format": "pt"})  # fmt: skip


def _pickled(path: Path) -> None:
    torch.save(load_file(path / "model.safetensors"), path / "pytorch_model.bin")
    (path / "model.safetensors").unlink()


REFUSED = {
    "labels": (
        lambda p: _change(p, id2label={"0": "a", "1": "b"}, label2id={"a": 0, "b": 1}),
        r"has 2 labels \(num_labels in config.json\)",
    ),
    "head": (_without_head, r"the head would be random: the safetensors lack score.weight"),
    "padding": (lambda p: _change(p, pad_token_id=None), "has no pad_token_id"),
    "pickle": (_pickled, "only pytorch_model.bin, which can hold code"),
    "code": (lambda p: _change(p, auto_map={"AutoModel": "x.Y"}), r"code of its own \(auto_map\)"),
    "family": (lambda p: _change(p, model_type="mamba"), "mamba models cannot be exported; known"),
    "window": (lambda p: _change(p, sliding_window=8), "uses sliding_window=8, which is not exp"),
    "softcap": (lambda p: _change(p, model_type="gemma2"), "gemma2 models cannot be exported"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_served_as_it_is_is_refused(name: str, save, tmp_path: Path) -> None:
    path = save("mistral")
    change, message = REFUSED[name]
    change(path)
    with pytest.raises(TrainingError, match=message):
        export_foreign(path, tmp_path / "bundle", uncalibrated=True)
    assert not (tmp_path / "bundle").exists()


def test_an_ending_that_is_the_padding_is_refused(save, tmp_path: Path) -> None:
    """The template ends turns in a newline; with that as padding, transformers pools before it."""
    path = save("llama")
    newline = AutoTokenizer.from_pretrained(path)("\n").input_ids[-1]
    _change(path, pad_token_id=newline)
    with pytest.raises(TrainingError, match="reads the reward one token earlier"):
        export_foreign(path, tmp_path / "bundle", uncalibrated=True)


def test_without_a_mean_one_has_to_say_uncalibrated(save, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"--calibrate FILE .* or --uncalibrated"):
        export_foreign(save("gpt2"), tmp_path / "bundle")


def test_a_name_that_is_nowhere_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="neither a directory nor a model that the Hub gives"):
        export_foreign("no-such/model", tmp_path / "bundle", uncalibrated=True)


def test_limits_beyond_the_positions_are_refused(save, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="= 1048, but the base model has 96 positions"):
        export_foreign(
            save("bert"), tmp_path / "bundle", {"max_prompt_tokens": 1000}, uncalibrated=True
        )
