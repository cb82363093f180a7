"""The job as a whole: what it refuses, and what it leaves behind."""

import json
import math
from datetime import date
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from transformers import AutoModel, MistralConfig

from service.errors import DataError, TrainingError
from tests.conftest import CONFIGS, SHARED
from tests.training.families import tiny
from training.config import Scratch, Text, read_config
from training.data import read_groups
from training.demo.data import generate, write
from training.export import export
from training.graph import export_graph
from training.measure import evaluate_bundle, evaluate_run
from training.model import RewardModel
from training.pipeline import train
from training.predict import predict
from training.run import Run
from training.scratch import make_base

HH = SHARED / "data" / "hh-harmless-base-test.jsonl.gz"
TINY = CONFIGS / "tiny.toml"


def test_a_run_says_what_it_did(run: Run) -> None:
    report = run.read_report()
    assert report["data"]["prompts"] + report["evaluation"]["prompts"] == 150
    assert report["normalization"]["completions"] == report["data"]["prompts"]
    low, high = report["evaluation"]["accuracy_95"]
    assert low <= report["evaluation"]["accuracy"] <= high
    assert {"torch", "transformers", "onnxruntime"} <= report["libraries"].keys()
    config = json.loads((run.model / "config.json").read_text())
    assert config["mean"] == report["normalization"]["mean"] and config["std"] == 1.0


def test_a_run_and_its_bundle_evaluate_alike(run: Run, bundle) -> None:
    groups, _ = read_groups(run.held_out)
    through_torch, served = evaluate_run(run, groups), evaluate_bundle(bundle.path, groups)
    assert through_torch["accuracy"] == served["accuracy"]
    assert through_torch["loss"] == pytest.approx(served["loss"], abs=1e-5)


def test_a_finished_run_is_not_overwritten(run: Run, tmp_path: Path) -> None:
    write(tmp_path / "data.jsonl", prompts=20, seed=0)
    config = read_config(TINY, [f"out={run.path}", f"data.train={tmp_path / 'data.jsonl'}"])
    with pytest.raises(TrainingError, match="with other settings or other data"):
        train(config)


def test_held_out_prompts_that_were_trained_on_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "data.jsonl", prompts=20, seed=0)
    file = tmp_path / "data.jsonl"
    config = read_config(
        TINY, [f"out={tmp_path / 'run'}", f"data.train={file}", f"data.eval={file}"]
    )
    with pytest.raises(DataError, match=r"data\.jsonl:1: this prompt is in .* 19 others"):
        train(config)


def test_limits_beyond_the_model_s_positions_are_refused(run: Run, tmp_path: Path) -> None:
    write(tmp_path / "data.jsonl", prompts=20, seed=0)
    (tmp_path / "base.toml").write_text(
        f"""name = "x"\nout = "{tmp_path / "run"}"\n[model]\npath = "{run.base}"
        [data]\ntrain = "{tmp_path / "data.jsonl"}"\n[text]\nmax_prompt_tokens = 4000"""
    )
    with pytest.raises(TrainingError, match=r"= 4512, but the base model has 256 positions"):
        train(read_config(tmp_path / "base.toml"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["fit.epochs=0"], "fit.epochs: Input should be greater than 0"),
        (["fit.epoch=1"], "fit.epoch: Extra inputs"),
        (["name.x=1"], "name is a value, not a section"),
        (["seed"], "not key=value"),
        (['model.path="a"'], "model: .*give either model.path or"),
        (["data.issues.different_prompts=keep"], "different_prompts: Input should be"),
        (["text.template_date=today"], "text.template_date: Value error, Invalid isoformat"),
        (["text.template_date=2026-99-99"], "text.template_date: Value error, month must be in"),
        (["text.template_date=86400"], "text.template_date: Input should be a valid date"),
        (["model.scratch.kv_heads=3"], "model.scratch: .*kv_heads is 3, which does not divide hea"),
        (
            ["model.scratch.heads=5", "model.scratch.kv_heads=5", "model.scratch.hidden_size=25"],
            "model.scratch: .*hidden_size / heads is 5; .* an even",
        ),
        (["model.scratch.hidden_size=3"], "model.scratch: .*hidden_size / heads is 0; .* an even"),
    ],
)
def test_a_bad_setting_is_named(settings: list[str], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        read_config(TINY, settings)


def test_a_template_date_may_be_text_or_a_date_of_toml() -> None:
    dates = [
        read_config(TINY, [f"text.template_date={day}"]) for day in ('"2026-03-01"', "2026-03-01")
    ]
    assert {config.text.template_date for config in dates} == {date(2026, 3, 1)}
    assert dates[0].model_dump(mode="json")["text"]["template_date"] == "2026-03-01"


def test_a_reward_that_is_not_finite_is_named_by_its_row() -> None:
    model = tiny("qwen3")
    with torch.no_grad():
        model.backbone.embed_tokens.weight[7] = math.nan
    with pytest.raises(TrainingError, match="completion 2 of 3: its reward is nan"):
        predict(model, [[1, 2], [3, 4], [6, 7]])


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(tmp_path: Path) -> None:
    write(tmp_path / "data.jsonl", prompts=60, seed=0)
    settings = [f"out={tmp_path / 'run'}", f"data.train={tmp_path / 'data.jsonl'}"]
    broken = ["fit.learning_rate=1e30", "fit.max_grad_norm=1e30", "fit.evaluations=1"]
    with pytest.raises(TrainingError, match=r"step \d+: the loss is (nan|inf)"):
        train(read_config(TINY, [*settings, *broken]))


def test_attention_that_the_graph_would_change_is_refused(tmp_path: Path) -> None:
    config = MistralConfig(
        vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, sliding_window=8,
    )  # fmt: skip
    model = RewardModel(AutoModel.from_config(config)).eval()
    with pytest.raises(TrainingError, match="sliding_window=8, which is not exported"):
        export_graph(model, 0.0, tmp_path / "model.onnx")


@pytest.mark.parametrize("steps", [0, 1, 2, 19, 20, 21])
def test_a_base_model_takes_any_number_of_steps(steps: int, tmp_path: Path) -> None:
    """At 20 the warm-up, 5 % of the steps, is one step long."""
    write(tmp_path / "data.jsonl", prompts=21, seed=0)
    groups, _ = read_groups(tmp_path / "data.jsonl")
    sizes = {"vocab_size": 260, "layers": 1, "hidden_size": 8, "intermediate_size": 8}
    scratch = Scratch(heads=2, kv_heads=1, batch_size=1, epochs=steps / 21, **sizes)
    make_base(groups, scratch, Text(), tmp_path / "base", seed=0)
    assert (tmp_path / "base" / "model.safetensors").exists()


def test_the_same_weights_give_the_same_bundle_id_and_the_graph_names_no_path(
    run: Run, bundle, tmp_path: Path
) -> None:
    again = export(run, tmp_path / "elsewhere" / "bundle")
    assert again.manifest.id == bundle.manifest.id
    graph = again.file("model.onnx").read_bytes()
    assert str(Path(__file__).parent.parent.parent).encode() not in graph


def test_the_prompt_has_to_be_read() -> None:
    """Words and length of a response, without its prompt, trail the true reward by 10 points."""
    records = list(generate(1500, seed=3))
    train_records, held_out = records[:1000], records[1000:]
    words = CountVectorizer(token_pattern=r"\w+|!")
    words.fit([text for record in train_records for text in record["responses"]])

    def differences(records: list) -> np.ndarray:
        rows = []
        for record in records:
            counts = words.transform(record["responses"]).toarray()
            lengths = np.array([[len(text) / 50] for text in record["responses"]])
            features = np.hstack([counts, lengths])
            rows += [features[winner] - features[loser] for winner, loser in record["comparisons"]]
        return np.array(rows)

    difference = differences(train_records)
    model = LogisticRegression(C=0.1, fit_intercept=False, max_iter=300)
    model.fit(np.vstack([difference, -difference]), np.repeat([1, 0], len(difference)))
    shallow = (model.decision_function(differences(held_out)) > 0).mean()
    true = [
        float(record["true_rewards"][winner] > record["true_rewards"][loser])
        for record in held_out
        for winner, loser in record["comparisons"]
    ]
    assert shallow < np.mean(true) - 0.10


def _pairs(file: Path, number: int, identical: int) -> Path:
    """K-wise records of one comparison each, the first of them with two identical sides."""
    rows = [
        {
            "prompt": f"{file.stem} {i}",
            "responses": ["same", "same"] if i < identical else ["yes " * i, "no"],
            "comparisons": [[i % 2, 1 - i % 2]],
        }
        for i in range(number)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


SMALL = ["model.scratch.layers=1", "model.scratch.hidden_size=16", "model.scratch.epochs=0"]


def test_the_checks_of_a_run_are_those_of_its_training_part(tmp_path: Path) -> None:
    """As it was read: with what was dropped of it, without what was held out."""
    data = _pairs(tmp_path / "data.jsonl", 40, identical=20)
    settings = [f"data.train={data}", f"out={tmp_path / 'run'}", *SMALL, "data.eval_fraction=0.2",
                "data.issues.identical=drop"]  # fmt: skip
    run = train(read_config(TINY, settings))
    held_out = {json.loads(line)["prompt"] for line in run.held_out.read_text().splitlines()}
    assert len(held_out) == 4
    numbers = [i for i in range(40) if f"data {i}" not in held_out]
    found = run.read_report()["data"]
    assert (found["comparisons"], found["issues"]["identical"]["dropped"]) == (16, 20)
    checks = found["checks"]
    assert (checks["records"], checks["prompts"], checks["comparisons"]) == (36, 36, 36)
    assert checks["identical"] == 20
    first = np.mean([i % 2 == 0 for i in numbers])
    assert checks["first_wins"]["value"] == pytest.approx(first)


def test_what_is_odd_about_the_evaluation_data_is_counted_too(tmp_path: Path) -> None:
    data = _pairs(tmp_path / "data.jsonl", 20, identical=0)
    other = _pairs(tmp_path / "other.jsonl", 20, identical=3)
    settings = [f"data.train={data}", f"data.eval={other}", f"out={tmp_path / 'run'}", *SMALL,
                "data.issues.identical=drop", "text.max_response_tokens=8"]  # fmt: skip
    report = train(read_config(TINY, settings)).read_report()
    assert report["evaluation"]["issues"]["identical"] == {
        "count": 3, "dropped": 3, "lines": [1, 2, 3],
    }  # fmt: skip
    assert report["data"]["issues"] == {}


def test_completions_that_were_cut_are_counted_among_those_trained_on(tmp_path: Path) -> None:
    """Of two that the limits make identical neither is trained on."""
    file = tmp_path / "data.jsonl"
    same = " and so on" * 10
    rows = [
        {"prompt": f"p{i}", "chosen": f"{i}{same}", "rejected": f"{-i}{same}"} for i in range(1, 31)
    ]
    rows += [{"prompt": f"q{i}", "chosen": "a", "rejected": f"b{same}"} for i in range(30)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = [f"data.train={file}", f"out={tmp_path / 'run'}", *SMALL,
                "data.issues.identical_when_cut=drop", "text.max_response_tokens=8"]  # fmt: skip
    found = train(read_config(TINY, settings)).read_report()["data"]
    assert found["issues"]["identical_when_cut"]["dropped"] > 0
    assert found["completions"] == 2 * found["comparisons"]
    assert found["truncated_completions"] == found["comparisons"]  # each of the second kind


@pytest.mark.skipif(not HH.exists(), reason="the HH file is not part of the project")
def test_human_choices_become_a_bundle_that_serves(tmp_path: Path) -> None:
    sizes = ["model.scratch.layers=1", "model.scratch.hidden_size=16", "model.scratch.epochs=0"]
    settings = [
        f"data.train={HH}", f"out={tmp_path / 'run'}", "name=hh", *sizes,
        "data.issues.different_prompts=drop", "fit.groups_per_step=64",
    ]  # fmt: skip
    run = train(read_config(TINY, settings))
    assert run.read_report()["data"]["issues"]["different_prompts"]["dropped"] == 5
    bundle = export(run, tmp_path / "bundle")
    groups, _ = read_groups(run.held_out)
    report = evaluate_bundle(bundle.path, groups)
    assert report["accuracy"] == pytest.approx(run.read_report()["evaluation"]["accuracy"])
