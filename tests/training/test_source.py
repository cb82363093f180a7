"""The same preferences from every kind of source become the same groups; errors name the place."""

import csv
import datetime
import gzip
import json
from decimal import Decimal
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from service.errors import DataError
from training.data import read_groups
from training.demo.data import generate
from training.formats.source import sha256

PAIRS = [
    {"prompt": "Hi", "chosen": 'a,\n"b"', "rejected": "c", "margin": 0.5, "subset": "x"},
    {"prompt": "Hö 👋", "chosen": "d", "rejected": "", "margin": 0.0, "subset": "y"},
]  # an empty response is a response


def _jsonl(path: Path, records: list[dict]) -> Path:
    file = path / "data.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return file


def _csv(file: Path, records: list[dict]) -> Path:
    with file.open("w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, records[0].keys())
        writer.writeheader()
        for record in records:
            writer.writerow(
                {k: v if isinstance(v, str) else json.dumps(v) for k, v in record.items()}
            )
    return file


def _parquet(file: Path, records: list[dict]) -> Path:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), file)
    return file


@pytest.mark.parametrize("kind", ["pairs", "k-wise", "messages"])
def test_every_source_gives_the_groups_of_json_lines(tmp_path: Path, kind: str) -> None:
    turn = [{"role": "user", "content": "Hi"}]
    records = {
        "pairs": PAIRS,
        "k-wise": list(generate(20, seed=0)),
        "messages": [
            {
                "chosen": [*turn, {"role": "assistant", "content": "a"}],
                "rejected": [*turn, {"role": "assistant", "content": "b"}],
            }
        ],
    }[kind]
    groups, _ = read_groups(_jsonl(tmp_path, records))

    assert read_groups(_parquet(tmp_path / "data.parquet", records))[0] == groups
    dataset = datasets.Dataset.from_list(records)
    dataset.save_to_disk(tmp_path / "saved")
    datasets.DatasetDict(test=dataset).save_to_disk(tmp_path / "splits")
    assert read_groups(tmp_path / "saved")[0] == groups
    assert read_groups(f"{tmp_path / 'splits'}:test")[0] == groups
    assert sha256(tmp_path / "saved") == sha256(Path(f"{tmp_path / 'splits'}:test"))
    (tmp_path / "files").mkdir()
    _parquet(tmp_path / "files" / "train.parquet", records)
    assert read_groups(tmp_path / "files")[0] == groups
    if kind == "k-wise":
        assert [g.responses for g in read_groups(_csv(tmp_path / "a.csv", records))[0]] == [
            g.responses for g in groups
        ]


def test_a_csv_cell_is_text_unless_its_column_holds_json(tmp_path: Path) -> None:
    records = [PAIRS[0], PAIRS[0] | {"prompt": "[1, 2]", "rejected": "true"}]
    file = _csv(tmp_path / "data.csv", records)
    groups, _ = read_groups(file)
    assert [g.prompt for g in groups] == ["Hi", "[1, 2]"]
    assert groups[1].responses == ('a,\n"b"', "true")
    assert groups[0].comparisons[0].target_margin == 0.5
    with gzip.open(tmp_path / "data.csv.gz", "wb") as out:
        out.write(b"\xef\xbb\xbf" + file.read_bytes())  # as spreadsheets write it
    assert read_groups(tmp_path / "data.csv.gz")[0] == groups


def test_a_column_of_another_format_may_hold_any_text_in_csv(tmp_path: Path) -> None:
    records = [PAIRS[0] | {"ordered": "yes, twice", "ranking": "first", "tools": "[]"}]
    groups, _ = read_groups(_csv(tmp_path / "data.csv", records))
    assert groups[0].comparisons[0].target_margin == 0.5
    more = [records[0] | {"tools": ""}]
    assert read_groups(_csv(tmp_path / "data.csv", more))[0] == groups


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("prompt,chosen,rejected\nHi,a\n", r"data\.csv:2: not the 3 cells"),
        ("prompt,chosen,rejected\nHi,a,b\nHi,a,b,c\n", r"data\.csv:3: not the 3 cells"),
        ("prompt,chosen,rejected,margin\nHi,a,b,high\n", r"data\.csv:2: margin: "),
        ("prompt,chosen,rejected,tools\nHi,a,b,search\n", r"data\.csv:2: tools: no template"),
        ("prompt,responses,ranking\nHi,a,[0]\n", r"data\.csv:2: responses: .* valid list"),
        ('prompt,responses,ranking,ordered\nHi,"[""a""]",[0],no\n', r"csv:2: ordered: .* boolean"),
        ("prompt,chosen\nHi,a\n", r"data\.csv:2: column 'rejected' is missing"),
        ("prompt,chosen,rejected\n", "no comparisons"),
    ],
)
def test_a_broken_csv_file_is_named_by_its_line(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "data.csv").write_text(content)
    with pytest.raises(DataError, match=message):
        read_groups(tmp_path / "data.csv")


def test_a_source_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    (tmp_path / "bad.parquet").write_bytes(b"not parquet")
    with pytest.raises(DataError, match=r"bad\.parquet: cannot be read: .*[Pp]arquet"):
        read_groups(tmp_path / "bad.parquet")
    with pytest.raises(DataError, match="no such file or directory"):
        read_groups(tmp_path / "absent.jsonl")
    datasets.DatasetDict(test=datasets.Dataset.from_list(PAIRS)).save_to_disk(tmp_path / "splits")
    with pytest.raises(DataError, match=r"has no split 'train'; name one as .*:SPLIT"):
        read_groups(tmp_path / "splits")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="datasets cannot read it"):
        read_groups(tmp_path / "empty")


def test_a_damaged_or_cut_gzip_file_is_named(tmp_path: Path) -> None:
    whole = gzip.compress(json.dumps(PAIRS[0]).encode())
    no_block = b"\xff" * 8  # 11 in bits 1 and 2 is no type of a block (RFC 1951, 3.2.3)
    for broken in (whole[:40], whole[:10] + no_block + whole[18:]):
        (tmp_path / "data.jsonl.gz").write_bytes(broken)
        with pytest.raises(DataError, match=r"data\.jsonl\.gz: cannot be read: "):
            read_groups(tmp_path / "data.jsonl.gz")


@pytest.mark.parametrize("escape", ["ud800", "uD800", "uDFFF"])
def test_a_lone_surrogate_is_refused_however_it_is_written(tmp_path: Path, escape: str) -> None:
    (tmp_path / "data.jsonl").write_text(
        f'{{"prompt": "\\{escape}", "chosen": "", "rejected": ""}}'
    )
    with pytest.raises(DataError, match=r"data\.jsonl:1: .*surrogates not allowed"):
        read_groups(tmp_path / "data.jsonl")
    pair = '{"prompt": "\\uD83D\\uDC4B", "chosen": "a", "rejected": "b"}'
    (tmp_path / "data.jsonl").write_text(pair)
    assert read_groups(tmp_path / "data.jsonl")[0][0].prompt == "👋"


def test_a_dataset_has_a_digest_whatever_its_other_columns_hold(tmp_path: Path) -> None:
    digests = set()
    for i, day in enumerate((1, 1, 2)):
        more = {"at": datetime.datetime(2026, 1, day), "price": Decimal("1.5"), "raw": b"\xff"}
        dataset = datasets.Dataset.from_list([PAIRS[0] | more])
        dataset.save_to_disk(tmp_path / str(i))
        digests.add(sha256(tmp_path / str(i)))
    assert len(digests) == 2


def test_a_null_of_a_table_is_an_absent_column(tmp_path: Path) -> None:
    records = [PAIRS[0], {k: v for k, v in PAIRS[1].items() if k != "margin"}]
    table = _parquet(tmp_path / "data.parquet", records)
    groups, _ = read_groups(table)
    assert [g.comparisons[0].target_margin for g in groups] == [0.5, 0.0]
