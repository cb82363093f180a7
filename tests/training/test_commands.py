"""The commands: what an option leaves out is counted, and one that would do nothing is refused."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from service.bundle import Bundle
from service.errors import DataError, RewardError
from training.__main__ import app
from training.run import Run

ODD = [
    {"prompt": "p", "chosen": "a", "rejected": "b"},
    {"prompt": "q", "chosen": "same", "rejected": "same"},
    {"prompt": "r", "chosen": "a", "rejected": "b"},
]


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments)])


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    file = tmp_path / "odd.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in ODD))
    return file


@pytest.mark.parametrize("kind", ["identicl", "identical_when_cut"])
def test_only_kinds_that_can_be_dropped_are_taken(kind: str, run: Run, odd: Path) -> None:
    for command in (["evaluate", run.path], ["compare", run.path, run.path]):
        found = _run(*command, "--data", odd, "--drop", kind)
        assert found.exit_code == 2 and kind in found.output


def test_what_is_left_out_is_counted_and_reported(run: Run, odd: Path) -> None:
    for command in (["evaluate", run.path], ["compare", run.path, run.path]):
        kept = json.loads(_run(*command, "--data", odd, "--json").stdout)
        less = _run(*command, "--data", odd, "--drop", "identical", "--json")
        found = json.loads(less.stdout)
        assert found["comparisons"] == kept["comparisons"] - 1
        assert kept["issues"] == {"identical": {"count": 1, "dropped": 0, "lines": [2]}}
        assert found["issues"] == {"identical": {"count": 1, "dropped": 1, "lines": [2]}}
        shown = _run(*command, "--data", odd, "--drop", "identical").output
        assert "identical: 1, 1 of them left out (line 2)" in shown


def test_a_line_with_several_odd_comparisons_is_shown_once(run: Run, tmp_path: Path) -> None:
    rows = [
        {"prompt": "p", "responses": ["a", "b"], "ranking": [0, 1]},
        {"prompt": "q", "responses": ["a", "a", "a"], "ranking": [0, 1, 2]},
    ]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    shown = _run("evaluate", run.path, "--data", data).output
    assert "identical: 3, 0 of them left out (line 2)" in shown


@pytest.mark.parametrize(
    "option",
    [
        ["--calibrate", "data.jsonl"], ["--uncalibrated"], ["--drop", "identical"],
        ["--max-prompt-tokens", "9"], ["--max-response-tokens", "9"], ["--ending", "eos"],
        ["--template", "data.jinja"],
    ],
)  # fmt: skip
def test_a_run_is_exported_with_its_own_mean_and_text_rules(
    option: list[str], run: Run, tmp_path: Path
) -> None:
    error = _run("export", run.path, "--out", tmp_path / "bundle", *option).exception
    assert isinstance(error, RewardError) and f"{option[0]}: for models" in error.message


def test_options_of_export_that_exclude_or_need_another_are_refused(
    run: Run, odd: Path, tmp_path: Path
) -> None:
    export = ["export", run.model, "--out", tmp_path / "bundle"]
    error = _run(*export, "--calibrate", odd, "--uncalibrated").exception
    assert isinstance(error, RewardError) and "give one of them" in error.message
    error = _run(*export, "--uncalibrated", "--drop", "identical").exception
    assert isinstance(error, RewardError) and "--drop is for the records of" in error.message


def test_limits_of_a_bundle_are_its_own(bundle: Bundle, run: Run, odd: Path) -> None:
    for source in (bundle.path, run.path):
        error = _run("check", odd, "--tokens", source, "--max-prompt-tokens", 9).exception
        assert isinstance(error, RewardError) and "has limits of its own" in error.message
    error = _run("check", odd, "--max-response-tokens", 9).exception
    assert isinstance(error, RewardError) and "without --tokens" in error.message
    assert _run("check", odd, "--tokens", run.model, "--max-prompt-tokens", 0).exit_code == 2
    found = _run("check", odd, "--tokens", run.model, "--max-response-tokens", 1, "--json")
    assert json.loads(found.stdout)["truncation"]["completions_cut"] > 0


def test_calibration_leaves_out_what_is_named_and_says_so(run: Run, tmp_path: Path) -> None:
    def turns(*texts: str) -> str:
        return "".join(f"\n\n{('Human', 'Assistant')[i % 2]}: {t}" for i, t in enumerate(texts))

    data = tmp_path / "hh.jsonl"
    rows = [(turns("a", "b"), turns("a", "c")), (turns("a", "b"), turns("x", "c"))]
    data.write_text("".join(json.dumps({"chosen": c, "rejected": r}) + "\n" for c, r in rows))
    export = ["export", run.model, "--out", tmp_path / "bundle", "--calibrate", data]
    error = _run(*export).exception
    assert isinstance(error, DataError) and "--drop different_prompts" in error.message
    found = _run(*export, "--drop", "different_prompts")
    assert found.exit_code == 0, found.output
    manifest = json.loads((tmp_path / "bundle" / "manifest.json").read_bytes())
    assert manifest["normalization"]["completions"] == 1
    assert manifest["normalization"]["reference"].endswith("hh.jsonl without 1 odd record")
