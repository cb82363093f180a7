"""Scoring a file: the bits of the service, every format, and going on after a stop."""

import gzip
import json
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from service.bundle import Bundle
from service.errors import DataError
from service.offline import count_rows, score_file
from service.pairs import Pair
from service.scorer import Scorer, score_offline
from training.demo.data import generate


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    groups = [{"prompt": r["prompt"], "responses": r["responses"]} for r in generate(120, seed=8)]
    pairs = [{"prompt": g["prompt"], "response": g["responses"][0]} for g in groups[:40]]
    messages = [{"prompt": [{"role": "user", "content": "Hi"}], "responses": ["a", ""]}]
    return [*groups, *pairs, *messages]


@pytest.fixture(scope="module")
def expected(scorer: Scorer, rows: list[dict]) -> list[list[float]]:
    rewards = []
    for row in rows:
        prompt = row["prompt"]
        if not isinstance(prompt, str):
            prompt = "Hi"  # one user turn: the same conversation
        pairs = [Pair(prompt, r) for r in row.get("responses", [row.get("response")])]
        rewards.append([result.reward for result in score_offline(scorer, pairs)])
    return rewards


def _write(path: Path, name: str, rows: list[dict]) -> Path:
    file = path / name
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows), file)
    elif name.endswith(".gz"):
        file.write_bytes(gzip.compress(lines.encode()))
    else:
        file.write_text(lines)
    return file


def _rewards(out: Path) -> list[list[float]]:
    return [json.loads(line)["rewards"] for line in out.read_text().splitlines()]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows.parquet"])
def test_every_format_gives_the_bits_of_the_scorer(
    scorer, rows, expected, tmp_path: Path, name: str
) -> None:
    if name.endswith(".parquet"):  # one type per column
        rows, expected = rows[:120], expected[:120]
    progress = list(score_file(scorer, _write(tmp_path, name, rows), tmp_path / "out.jsonl"))
    assert progress[0] == 0 and progress[-1] == len(rows)
    assert _rewards(tmp_path / "out.jsonl") == expected


def test_it_goes_on_where_it_stopped_even_in_the_middle_of_a_line(
    scorer, rows, expected, tmp_path: Path
) -> None:
    data, out = _write(tmp_path, "rows.jsonl", rows), tmp_path / "out.jsonl"
    assert list(islice(score_file(scorer, data, out), 2))[1] < len(rows)
    out.write_bytes(out.read_bytes()[:-7])
    done = next(score_file(scorer, data, out))
    assert 0 < done < len(rows)
    list(score_file(scorer, data, out))
    assert _rewards(out) == expected


def test_output_of_another_origin_is_not_continued(scorer, rows, tmp_path: Path) -> None:
    data, out = _write(tmp_path, "rows.jsonl", rows), tmp_path / "out.jsonl"
    list(score_file(scorer, _write(tmp_path, "few.jsonl", rows[:3]), out))
    whole = out.read_text()
    for old, new, message in (
        (scorer.bundle.manifest.id, "sha256:other", "bundle is 'sha256:other'"),
        (scorer.engine.fingerprint, "another", "engine is 'another'"),
        ('"variant": "fp32"', '"variant": "int8"', "variant is 'int8'"),
        ("{", "<", "not a line of this command"),
    ):
        out.write_text(whole.replace(old, new, 1))
        with pytest.raises(DataError, match=rf"out\.jsonl:1: {message}"):
            list(score_file(scorer, data, out))
    out.write_text(whole)
    other = _write(tmp_path, "other.jsonl", rows[1:])
    with pytest.raises(DataError, match=r"out\.jsonl:1: row_sha256 is"):
        list(score_file(scorer, other, out))
    fewer = _write(tmp_path, "fewer.jsonl", rows[:2])
    with pytest.raises(DataError, match=r"more lines than .* has rows"):
        list(score_file(scorer, fewer, out))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a"}, "row 2: responses"),
        ({"response": "a"}, "row 2: not an object with a prompt"),
        ({"prompt": "", "response": "a"}, "row 2: .*the conversation is empty"),
        ({"prompt": "a", "responses": []}, "row 2: .*there are none"),
        ([], "row 2: not an object"),
        ({"prompt": "a\ud83d", "response": "b"}, "row 2: prompt: .*half of a character"),
        ({"prompt": "a", "response": "b\ude00"}, r"row 2: responses\[0\]: .*half of a character"),
        (
            {"prompt": [{"role": "user", "content": "\ud83d"}], "response": "b"},
            r"row 2: prompt\[0\]\.content: .*half of a character",
        ),
    ],
)
def test_a_bad_row_is_named_by_its_number(scorer, tmp_path: Path, row, message: str) -> None:
    data = _write(tmp_path, "rows.jsonl", [{"prompt": "a", "response": "b"}, row])
    with pytest.raises(DataError, match=message):
        list(score_file(scorer, data, tmp_path / "out.jsonl"))


def _damaged(whole: bytes) -> bytes:
    return whole[:40] + bytes(byte ^ 255 for byte in whole[40:60]) + whole[60:]


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("rows.jsonl", lambda whole: whole + b"\xff"),
        ("rows.jsonl", lambda whole: b'{"prompt": ' + b"[" * 100_000),
        ("rows.jsonl.gz", _damaged),
        ("rows.jsonl.gz", lambda whole: whole[:-20]),
        ("rows.jsonl.gz", lambda whole: b"{}"),
        ("rows.parquet", _damaged),
        ("rows.parquet", lambda whole: whole[:-20]),
        ("rows.parquet", lambda whole: b""),
    ],
)
def test_a_damaged_file_is_named(scorer, rows, tmp_path: Path, name: str, damage) -> None:
    data = _write(tmp_path, name, rows[:120])
    data.write_bytes(damage(data.read_bytes()))
    with pytest.raises(DataError, match=f"^{data}:"):
        list(score_file(scorer, data, tmp_path / "out.jsonl"))


@pytest.mark.parametrize("content", [b"", b"nonsense"])
def test_rows_of_a_broken_file_are_not_counted(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "rows.parquet").write_bytes(content)
    with pytest.raises(DataError, match=r"rows\.parquet: cannot be read"):
        count_rows(tmp_path / "rows.parquet")


@pytest.mark.parametrize(
    ("data", "out", "named"),
    [
        ("none.jsonl", "out.jsonl", "none.jsonl: cannot be read"),
        ("none.jsonl.gz", "out.jsonl", "none.jsonl.gz: cannot be read"),
        ("none.parquet", "out.jsonl", "none.parquet: cannot be read"),
        ("rows.jsonl", "none/out.jsonl", "none/out.jsonl: cannot be written"),
        ("rows.jsonl", ".", ": cannot be written"),
    ],
)
def test_a_file_that_is_not_there_is_one_clear_line(
    bundle: Bundle, rows, tmp_path: Path, data: str, out: str, named: str
) -> None:
    _write(tmp_path, "rows.jsonl", rows[:2])
    arguments = [str(bundle.path), f"--data={tmp_path / data}", f"--out={tmp_path / out}"]
    done = subprocess.run(
        [sys.executable, "-m", "service", "score", *arguments], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert named in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
