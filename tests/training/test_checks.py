"""What is said of the data, against data whose faults are known."""

import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from service.text import Encoder
from tests.conftest import SHARED
from training.checks import check, leakage, truncation
from training.data import group_records, read_records
from training.overlap import covered_share, near_duplicates, shingles
from training.run import as_records

ANSWER, OTHER = ({"role": "assistant", "content": text} for text in "ab")
HH = SHARED / "data" / "hh-harmless-base-test.jsonl.gz"


def _check(path: Path, records: list[dict]) -> dict:
    file = path / "data.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    read = list(read_records(file))
    return check(read, *group_records(read, str(file)))


def _texts(rng: random.Random, number: int) -> list[str]:
    """Texts of 30 words, some of them copies with a few words changed."""
    texts: list[list[str]] = []
    for _ in range(number):
        text = [f"w{rng.randrange(500)}" for _ in range(30)]
        if texts and rng.random() < 0.5:
            text = list(rng.choice(texts))
            for _ in range(rng.randrange(4)):
                text[rng.randrange(30)] = "changed"
        texts.append(text)
    return [" ".join(text) for text in texts]


def test_near_duplicates_are_those_of_a_comparison_of_all_pairs() -> None:
    texts = _texts(random.Random(0), 300)
    sets = [shingles(text, 3) for text in texts]
    cluster = list(range(300))
    for i in range(300):
        for j in range(i):
            if len(sets[i] & sets[j]) / len(sets[i] | sets[j]) >= 0.8:
                old, new = sorted((cluster[i], cluster[j]), reverse=True)
                cluster = [new if c == old else c for c in cluster]
    members = {c: [i for i in range(300) if cluster[i] == c] for c in set(cluster)}
    expected = sorted(m for m in members.values() if len(m) > 1)
    assert len(expected) > 20
    assert near_duplicates(texts, 0.8) == expected  # a pair at 0.8 is missed 2 times in 1,000


def test_texts_without_words_are_no_duplicates_of_each_other() -> None:
    assert near_duplicates(["", "", "a", "a"], 0.8) == [[2, 3]]


def test_the_covered_share_counts_words_inside_common_n_grams() -> None:
    known = ["one two three four five six seven eight nine ten"]
    texts = [
        "x one two three four y",  # the 3-grams one..four: 4 words of 6
        "one two x three four",  # no common 3-gram
        "TWO  three",  # shorter than n: no such text is known
        "nine ten",
        "",
    ]
    assert covered_share(texts, known, 3) == [4 / 6, 0, 0, 0, 0]
    assert covered_share(["Nine ten"], ["nine ten"], 3) == [1.0]


def test_a_group_with_known_faults_is_counted_fault_by_fault(tmp_path: Path) -> None:
    long = "please tell me at some length what the capital of this country is called"
    report = _check(
        tmp_path,
        [
            {"prompt": long + " now", "responses": ["aaa", "b", "cc"], "comparisons": [[0, 1]]},
            {"prompt": long + " then", "responses": ["b", "aaa", "cc"], "ranking": [1, 2, 0]},
            {"prompt": "q", "responses": ["x", "y", "z"], "comparisons": [[0, 1], [1, 2], [2, 0]]},
            {"prompt": "q", "responses": ["x", "y"], "comparisons": [[0, 1], [1, 0], [0, 0]]},
            {"prompt": "r", "responses": ["x", "y"], "comparisons": [[0, 1, 0.5], [1, 0, 0.2]]},
        ],
    )
    assert (report["records"], report["prompts"], report["comparisons"]) == (5, 4, 12)
    assert report["ties"] == 1 and report["identical"] == 1 and report["contradictory"] == 1
    assert report["cyclic_prompts"] == 1
    duplicates = report["duplicates"]
    assert duplicates["comparisons"] == 1  # x beats y, twice
    assert (duplicates["near_prompts"], duplicates["near_clusters"]) == (2, 1)
    assert duplicates["near_examples"] == [[1, 2]]
    assert duplicates["reused_responses_share"] == 8 / 10  # aaa, b, x, y; cc was not compared once
    # aaa > b; aaa > cc > b; all others are equally long: 4 + 7 halves of 11 that are not ties
    assert report["longer_wins"]["value"] == (4 + 7 / 2) / 11
    # by position: 0>1 | 1>2, 1>0, 2>0 | 0>1, 1>2, 2>0 | 0>1, 1>0 | 0>1 (turned round by 0.2)
    assert report["first_wins"]["value"] == pytest.approx(6 / 10)


def test_prompts_that_begin_others_are_counted(tmp_path: Path) -> None:
    """As those that responses with the same first word lengthen (training/formats/trl.py)."""
    prompts = ["Q? A:", "Q? A: dark", "Q? A: dark night", "Q", "other"]
    records = [{"prompt": prompt, "chosen": "a", "rejected": "b"} for prompt in prompts]
    turns = [
        {"prompt": [{"role": "user", "content": "Q?"}], "chosen": [ANSWER], "rejected": [OTHER]}
    ]
    assert _check(tmp_path, records + turns)["duplicates"]["begun_prompts"] == 3


def test_a_format_that_puts_the_chosen_first_has_no_first_wins(tmp_path: Path) -> None:
    report = _check(tmp_path, [{"prompt": "p", "chosen": "a", "rejected": "b"}] * 3)
    assert report["first_wins"] is None
    assert report["duplicates"]["comparisons"] == 2


def test_held_out_groups_do_not_tell_who_stood_first(tmp_path: Path) -> None:
    """They are kept with the preferred response first."""
    file = tmp_path / "data.jsonl"
    record = {"prompt": "p", "responses": ["a", "b"], "comparisons": [[1, 0]]}
    file.write_text(json.dumps(record))
    (group,), _ = group_records(read_records(file), str(file))
    assert _check(tmp_path, [record])["first_wins"]["value"] == 0.0
    assert _check(tmp_path, [*as_records(group)])["first_wins"] is None


def test_a_position_bias_is_found_and_its_absence_too(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for probability in (0.5, 0.6):
        records = [
            {
                "prompt": f"p{i}",
                "responses": ["a", "b"],
                "comparisons": [[0, 1] if rng.random() < probability else [1, 0]],
            }
            for i in range(2000)
        ]
        found = _check(tmp_path, records)["first_wins"]
        assert found["low"] < probability < found["high"]
        assert (found["low"] > 0.5) == (probability > 0.5)


def test_what_the_limits_make_identical_is_found(tmp_path: Path, run) -> None:
    rules = run.rules().model_copy(update={"max_response_tokens": 4})
    encoder = Encoder(run.tokenizer_json(), run.template(), rules)
    file = tmp_path / "data.jsonl"
    same = " and so on and so on and so on and so on"
    records = [
        {"prompt": "p", "chosen": "this" + same, "rejected": "that" + same},
        {"prompt": "q", "chosen": "a", "rejected": "b"},
    ]
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    groups, _ = group_records(read_records(file), str(file))
    encoded = [encoder.encode_group(group.prompt, group.responses) for group in groups]
    assert truncation(groups, encoded) == {
        "completions_cut": 2,
        "comparisons_made_identical": 1,
        "lines": [1],
    }


def test_leakage_counts_exact_and_overlapping_prompts(tmp_path: Path) -> None:
    words = [f"w{i}" for i in range(40)]
    train = [" ".join(words[:20]), "short one"]
    evaluation = [
        " ".join(words[:20]),  # the same
        " ".join(words[:12] + words[30:38]),  # 12 of 20 words
        " ".join(words[:10] + words[30:40]),  # 10 of 20: not more than one half
        " ".join(words[20:40]),
        "short one",
    ]

    def groups(prompts: list[str]) -> list:
        file = tmp_path / "data.jsonl"
        records = [{"prompt": prompt, "chosen": "a", "rejected": "b"} for prompt in prompts]
        file.write_text("".join(json.dumps(record) + "\n" for record in records))
        return group_records(read_records(file), str(file))[0]

    found = leakage(groups(train), groups(evaluation))
    assert (found["exact"], found["overlapping"], found["lines"]) == (2, 3, [1, 2, 5])


def test_the_command_prints_a_table_and_json(tmp_path: Path, bundle) -> None:
    file = tmp_path / "data.jsonl"
    file.write_text(json.dumps({"prompt": "p", "chosen": "aa", "rejected": "b"}) + "\n")
    command = [sys.executable, "-m", "training", "check", str(file), "--eval", str(file)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "the longer response wins" in printed and "100.0 %" in printed
    tokens = [*command, "--tokens", str(bundle.path), "--json"]
    report = json.loads(subprocess.run(tokens, capture_output=True, check=True).stdout)
    assert report["leakage"]["exact"] == 1 and report["truncation"]["completions_cut"] == 0
    broken = subprocess.run([*command[:-1], str(tmp_path / "no")], capture_output=True, text=True)
    assert broken.returncode == 1 and "no such file" in broken.stderr


@pytest.mark.skipif(not HH.exists(), reason="the HH file is not part of the project")
def test_the_shorter_wins_in_the_harmless_choices() -> None:
    """44.5 %: the figure that others report for longer-wins on this file."""
    records = list(read_records(HH))
    report = check(records, *group_records(records, "hh", {"different_prompts": "drop"}))
    assert report["longer_wins"]["value"] == pytest.approx(0.445, abs=0.0005)
    assert report["different_prompts"] == 5 and report["first_wins"] is None
