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
    find_identical_when_cut,
    read_groups,
    reference_completions,
    split_by_prompt,
)
from training.run import as_records

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


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        (
            "Q: colour of the sky? A: blue",
            "Q: colour of the sky? A: black",
            "Q: colour of the sky? A:",
        ),
        ("Q: sky?\nA:\nblue", "Q: sky?\nA:\nblack", "Q: sky?\nA:\n"),
        ("Is it? yes", "Is it? yes, it is", "Is it?"),
        ("Is it? yes", "Is it? yes", "Is it?"),
        (
            "\n\nHuman: sky?\n\nAssistant: It is blue",
            "\n\nHuman: sky?\n\nAssistant: It is black",
            "\n\nHuman: sky?\n\nAssistant:",
        ),
        *(
            (prompt + "blue", prompt + other, prompt)
            for prompt in ("<user>sky?</user><assistant>", "[INST] sky? [/INST]")
            for other in ("red", "black")
        ),
        (
            "问：天空是什么颜色？答：蓝色",
            "问：天空是什么颜色？答：黑色",
            "问：天空是什么颜色？答：",
        ),
        ("答：蓝", "答：蓝色", "答："),
        ("ตอบสี", "ตอบสา", "ตอบ"),  # a vowel sign belongs to its letter
        ("하늘은? 파란색", "하늘은? 파랑", "하늘은?"),
        ("sky? cafe\u0301", "sky? cafe", "sky?"),
    ],
)
def test_an_implicit_prompt_ends_where_no_letter_of_a_response_moves_it(
    tmp_path: Path, chosen: str, rejected: str, prompt: str
) -> None:
    (group,), _ = read_groups(_write(tmp_path, {"chosen": chosen, "rejected": rejected}), "trl")
    assert group.prompt == prompt
    assert {prompt + response for response in group.responses} == {chosen, rejected}


def test_sides_that_share_no_word_share_no_prompt(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"same prompt; .* give the prompt in a column of its own"):
        read_groups(_write(tmp_path, {"chosen": "abc", "rejected": "abd"}))


@pytest.mark.parametrize("format", ["trl", "hh"])
@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [
        (["sky?", "blue"], ["skin?", "blue"]),
        (["sky?", "blue", "sure?", "yes"], ["sky?", "blue", "really?", "yes"]),
        (["sky?", "blue", "sure?", "yes"], ["sky?", "black"]),
    ],
)
def test_transcripts_that_differ_before_the_last_answer_share_no_prompt(
    tmp_path: Path, format: str, chosen: list[str], rejected: list[str]
) -> None:
    sides = [
        "".join(f"\n\n{('Human', 'Assistant')[i % 2]}: {text}" for i, text in enumerate(turns))
        for turns in (chosen, rejected)
    ]
    with pytest.raises(DataError, match="do not belong to the same prompt"):
        read_groups(_write(tmp_path, {"chosen": sides[0], "rejected": sides[1]}), format)


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


K2 = {"prompt": "a", "responses": ["x", "y"]}
NAN = float("nan")


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"prompt": "a", "chosen": "b"}, "column 'rejected' is missing"),
        ({"prompt": "a", "rejected": "b"}, "column 'chosen' is missing"),
        ({"prompt": "a", "chosen": "b", "rejected": 3}, "rejected: "),
        ({"prompt": "a", "chosen": "b", "rejected": _answer("c")}, "some are strings"),
        ({"prompt": "", "chosen": "b", "rejected": "c"}, "prompt: the conversation is empty"),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "margin": [1]}, "margin: "),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "tools": [{}]}, "tools: no template"),
        ({"prompt": "a", "responses": ["b"], "tools": "[{}]"}, "tools: no template"),
        ({"chosen": "\n\nHuman: a", "rejected": "", "tools": [{}]}, "tools: no template"),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "margin": NAN}, "margin: .*finite"),
        ({"prompt": "\ud800", "chosen": "b", "rejected": "c"}, "surrogates not allowed"),
        (K2, "column 'comparisons' or 'ranking' is missing"),
        (K2 | {"comparisons": [[0, 2]]}, "does not name two of 2"),
        (K2 | {"comparisons": [[0, 1, 7]]}, "not a probability"),
        (K2 | {"comparisons": 3}, "comparisons: "),
        (K2 | {"comparisons": [[[0], 1]]}, "comparisons: "),
        (K2 | {"comparisons": [[0, 1, "x"]]}, "comparisons: "),
        (K2 | {"comparisons": [[0]]}, "comparisons: .*at least 2"),
        (K2 | {"ranking": [0]}, "does not order 2"),
        (K2 | {"ranking": [0, 1], "comparisons": [[1, 0]]}, "comparisons and ranking: .* one of"),
        (K2 | {"ranking": [0, "1"]}, "ranking: "),
        (K2 | {"comparisons": [[0, 1]], "true_rewards": [1.0]}, "true_rewards: 1 for 2"),
        ({"chosen": _user("a"), "rejected": _user("b")}, "not the assistant's"),
        ([1, 2], "not a JSON object"),
    ],
)
def test_a_broken_record_is_named_by_its_line(tmp_path: Path, record, message: str) -> None:
    with pytest.raises(DataError, match=rf"data\.jsonl:1: .*{message}"):
        read_groups(_write(tmp_path, record))


def test_the_line_counts_what_came_before(tmp_path: Path) -> None:
    good = {"prompt": "Hi", "chosen": "a", "rejected": "b"}
    with pytest.raises(DataError, match=r"data\.jsonl:3: column 'chosen'"):
        read_groups(_write(tmp_path, good, good, {"prompt": "Hi", "rejected": "b"}))


ODD = {
    "identical": [{"prompt": "p", "chosen": "same", "rejected": "same"}],
    "contradictory": [
        {"prompt": "p", "chosen": "a", "rejected": "b"},
        {"prompt": "p", "chosen": "b", "rejected": "a"},
    ],
    "contradictory by target": [
        {"prompt": "p", "responses": ["a", "b"], "comparisons": [[0, 1, 1.0]]},
        {"prompt": "p", "responses": ["a", "b"], "comparisons": [[0, 1, 0.1]]},
    ],
    "different_prompts": [
        {"chosen": _user("a") + _answer("x"), "rejected": _user("b") + _answer("y")}
    ],
}


@pytest.mark.parametrize("name", ODD)
def test_an_oddity_is_counted_and_dropped_only_where_asked(tmp_path: Path, name: str) -> None:
    good = {"chosen": _user("q") + _answer("x"), "rejected": _user("q") + _answer("y")}
    format, kind = "trl", name.split()[0]
    if "responses" in ODD[name][0]:
        good, format = {"prompt": "q", "responses": ["x", "y"], "ranking": [0, 1]}, "kwise"
    file = _write(tmp_path, good, *ODD[name])
    line = 1 + len(ODD[name])

    groups, issues = read_groups(file, format, {kind: "drop"})
    assert issues.report() == {kind: {"count": 1, "dropped": 1, "lines": [line]}}
    comparisons = [c.line for group in groups for c in group.comparisons]
    assert line not in comparisons

    with pytest.raises(DataError, match=rf":{line}: .*data\.issues\.{kind}"):
        read_groups(file, format, {kind: "error"})
    if kind != "different_prompts":
        groups, issues = read_groups(file, format)
        assert line in [c.line for group in groups for c in group.comparisons]
        assert issues.report()[kind]["dropped"] == 0


def test_the_line_of_several_odd_comparisons_is_named_once(tmp_path: Path) -> None:
    record = {"prompt": "p", "responses": ["a", "a", "a"], "ranking": [0, 1, 2]}
    _, issues = read_groups(_write(tmp_path, record))
    assert issues.report() == {"identical": {"count": 3, "dropped": 0, "lines": [1]}}


def test_responses_that_the_limits_make_identical_take_their_record_along(tmp_path: Path) -> None:
    file = _write(
        tmp_path,
        {"prompt": "p", "chosen": "a", "rejected": "b"},
        {"prompt": "p", "chosen": "c", "rejected": "d"},
    )
    groups, issues = read_groups(file)
    rows = [[[1], [2], [3], [3]]]
    kept = find_identical_when_cut(groups, rows, issues, "drop", "f")
    assert [c.line for c in kept[0].comparisons] == [1]
    assert kept[0].chosen == (0,) and kept[0].lines == (1,)
    assert issues.report()["identical_when_cut"] == {"count": 1, "dropped": 1, "lines": [2]}
    assert find_identical_when_cut(groups, rows, issues, "keep", "f") == groups


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
        "comparisons": [[1, 0, 0.75, 1.5], [0, 0]],
        "subset": "s",
        "true_rewards": [0.5, 1.5],
    }
    (group,), _ = read_groups(_write(tmp_path, record))
    assert group.responses == ("b", "a") and group.true_rewards == (1.5, 0.5)
    (again,), _ = read_groups(_write(tmp_path, *as_records(group)))
    assert again == group


def test_a_prompt_in_several_subsets_is_one_group_whose_comparisons_keep_theirs(tmp_path) -> None:
    file = _write(
        tmp_path,
        {"prompt": "p", "chosen": "a", "rejected": "b", "subset": "first"},
        {"prompt": "p", "chosen": "c", "rejected": "d", "subset": "second"},
        {"prompt": "p", "chosen": "a", "rejected": "d"},
        {"prompt": "p", "chosen": "c", "rejected": "b", "subset": "first"},
    )
    (group,), _ = read_groups(file)
    assert [c.subset for c in group.comparisons] == ["first", "second", None, "first"]
    (again,), _ = read_groups(_write(tmp_path, *as_records(group)))
    assert again.responses == group.responses and again.comparisons == group.comparisons


@pytest.mark.skipif(not HH.exists(), reason="the HH file is not part of the project")
def test_human_choices_are_read_whole() -> None:
    groups, issues = read_groups(HH, actions={"different_prompts": "drop"})
    assert sum(len(group.comparisons) for group in groups) == 2312 - 5
    assert issues.report()["different_prompts"]["count"] == 5
    assert len({group.prompt for group in groups}) == len(groups)
