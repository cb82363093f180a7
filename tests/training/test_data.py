"""Preference data: every format, every oddity, with line numbers."""

import gzip
import json
from pathlib import Path

import pytest

from service.errors import DataError
from service.text import Message
from tests.conftest import SHARED
from training.data import (
    Comparison,
    read_groups,
    reference_completions,
    split_by_prompt,
)
from training.run import as_record

HH = SHARED / "data" / "hh-harmless-base-test.jsonl.gz"


def _write(path: Path, *records: object) -> Path:
    file = path / "data.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return file


def _user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def _answer(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


USER = (Message(role="user", content="Hi"),)


@pytest.mark.parametrize(
    ("record", "prompt", "responses"),
    [
        ({"prompt": "Hi", "chosen": " a", "rejected": " b"}, "Hi", (" a", " b")),
        ({"chosen": "Hi there a", "rejected": "Hi there b"}, "Hi there", (" a", " b")),
        (
            {"prompt": _user("Hi"), "chosen": _answer("a"), "rejected": _answer("b")},
            USER,
            ("a", "b"),
        ),
        (
            {"chosen": _user("Hi") + _answer("a"), "rejected": _user("Hi") + _answer("b")},
            USER,
            ("a", "b"),
        ),
        (
            {
                "chosen": "\n\nHuman: Hi\n\nAssistant: a",
                "rejected": "\n\nHuman: Hi\n\nAssistant: b",
            },
            USER,
            ("a", "b"),
        ),
        ({"prompt": "Hi", "responses": ["a", "b"], "comparisons": [[0, 1]]}, "Hi", ("a", "b")),
        ({"prompt": "Hi", "responses": ["b", "a"], "ranking": [1, 0]}, "Hi", ("a", "b")),
    ],
)
def test_every_format_gives_the_same_group(tmp_path: Path, record, prompt, responses) -> None:
    (group,), issues = read_groups(_write(tmp_path, record))
    assert (group.prompt, group.responses) == (prompt, responses)
    assert group.comparisons == (Comparison(0, 1, line=1),)
    assert group.chosen == (0,) and not issues.lines


def test_gzip_reads_alike(tmp_path: Path) -> None:
    record = {"prompt": "Hi", "chosen": "a", "rejected": "b"}
    packed = tmp_path / "data.jsonl.gz"
    packed.write_bytes(gzip.compress(json.dumps(record).encode()))
    assert read_groups(packed)[0] == read_groups(_write(tmp_path, record))[0]


def test_records_of_one_prompt_become_one_group_of_unique_responses(tmp_path: Path) -> None:
    file = _write(
        tmp_path,
        {"prompt": "Hi", "chosen": "a", "rejected": "b", "margin": 0.5},
        {"prompt": "Ho", "chosen": "a", "rejected": "b"},
        {"prompt": "Hi", "chosen": "a", "rejected": "c"},
    )
    first, second = read_groups(file)[0]
    assert first.responses == ("a", "b", "c")
    assert first.comparisons == (Comparison(0, 1, 1.0, 0.5, 1), Comparison(0, 2, line=3))
    assert first.lines == (1, 3) and second.lines == (2,)
    assert reference_completions([first, second]) == [("Hi", "a"), ("Hi", "a"), ("Ho", "a")]


def test_the_reference_completion_of_a_k_wise_record_has_the_most_wins(tmp_path: Path) -> None:
    record = {"prompt": "p", "responses": ["a", "b", "c"], "comparisons": [[1, 0], [2, 0], [2, 1]]}
    (group,), _ = read_groups(_write(tmp_path, record))
    assert reference_completions([group]) == [("p", "c")]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"prompt": "a", "chosen": "b"}, "column 'rejected' is missing"),
        ({"prompt": "a", "rejected": "b"}, "column 'chosen' is missing"),
        ({"prompt": "a", "chosen": "b", "rejected": 3}, "one is a string"),
        (
            {"prompt": "a", "responses": ["x", "y"], "comparisons": [[0, 2]]},
            "does not name two of 2",
        ),
        ({"prompt": "a", "responses": ["x", "y"], "comparisons": [[0, 1, 7]]}, "not a probability"),
        ({"prompt": "a", "responses": ["x", "y"], "ranking": [0]}, "does not order 2"),
        ({"chosen": _user("a"), "rejected": _user("b")}, "not the assistant's"),
        ([1, 2], "not a JSON object"),
    ],
)
def test_a_broken_record_is_named_by_its_line(tmp_path: Path, record, message: str) -> None:
    good = {"prompt": "Hi", "chosen": "a", "rejected": "b"}
    file = _write(tmp_path, *([good] if "chosen" in record and "prompt" in record else []), record)
    line = file.read_text().count("\n")
    with pytest.raises(DataError, match=rf"data\.jsonl:{line}: .*{message}"):
        read_groups(file)


ODD = {
    "identical": [{"prompt": "p", "chosen": "same", "rejected": "same"}],
    "contradictory": [
        {"prompt": "p", "chosen": "a", "rejected": "b"},
        {"prompt": "p", "chosen": "b", "rejected": "a"},
    ],
    "different_prompts": [
        {"chosen": _user("a") + _answer("x"), "rejected": _user("b") + _answer("y")}
    ],
}


@pytest.mark.parametrize("kind", ODD)
def test_an_oddity_is_counted_and_dropped_only_where_asked(tmp_path: Path, kind) -> None:
    good = {"chosen": _user("q") + _answer("x"), "rejected": _user("q") + _answer("y")}
    file = _write(tmp_path, good, *ODD[kind])
    line = 1 + len(ODD[kind])

    groups, issues = read_groups(file, "trl", {kind: "drop"})
    assert issues.report() == {kind: {"count": 1, "dropped": 1, "lines": [line]}}
    comparisons = [c.line for group in groups for c in group.comparisons]
    assert line not in comparisons

    with pytest.raises(DataError, match=rf":{line}: .*data\.issues\.{kind}"):
        read_groups(file, "trl", {kind: "error"})
    if kind != "different_prompts":
        groups, issues = read_groups(file, "trl")
        assert line in [c.line for group in groups for c in group.comparisons]
        assert issues.report()[kind]["dropped"] == 0


def test_a_prompt_is_on_one_side_of_the_split_only(tmp_path: Path) -> None:
    records = [{"prompt": f"p{i % 40}", "chosen": f"a{i}", "rejected": f"b{i}"} for i in range(200)]
    groups, _ = read_groups(_write(tmp_path, *records))
    train, held_out = split_by_prompt(groups, 0.25, seed=3)
    assert len(held_out) == 10 and len(train) == 30
    assert not {g.prompt for g in train} & {g.prompt for g in held_out}
    assert split_by_prompt(groups, 0.25, seed=3) == (train, held_out)


def test_held_out_groups_survive_being_written_and_read(tmp_path: Path) -> None:
    record = {
        "prompt": _user("Hi"),
        "responses": ["a", "b"],
        "comparisons": [[1, 0, 0.75]],
        "subset": "s",
        "true_rewards": [0.5, 1.5],
    }
    (group,), _ = read_groups(_write(tmp_path, record))
    assert group.responses == ("b", "a") and group.true_rewards == (1.5, 0.5)
    (again,), _ = read_groups(_write(tmp_path, as_record(group)))
    assert again == group


@pytest.mark.skipif(not HH.exists(), reason="the HH file is not part of the project")
def test_human_choices_are_read_whole() -> None:
    groups, issues = read_groups(HH, actions={"different_prompts": "drop"})
    assert sum(len(group.comparisons) for group in groups) == 2312 - 5
    assert issues.report()["different_prompts"]["count"] == 5
    assert len({group.prompt for group in groups}) == len(groups)
