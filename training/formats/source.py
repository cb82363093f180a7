"""Where preference data lies -> its rows. Knows files and columns; knows nothing of preferences.

A source is a file (JSON lines, CSV, either gzipped, or Parquet), a directory that `datasets` can
read, or `hub:OWNER/NAME`, a dataset of the Hugging Face Hub. A directory or a hub name may be
followed by `:SPLIT`; without it the split is `train`.
"""

import csv
import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import date, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from service.errors import DataError

HUB = "hub:"
JSON_CELLS = {
    "margin", "responses", "comparisons", "ranking", "true_rewards", "ordered", "tools"
}  # fmt: skip
"columns of a CSV file that may hold JSON; the others hold text as it stands"
LONGEST_CELL = 2**31 - 1

SURROGATE = re.compile(r"\\u[dD]")
"what half of a pair may begin with in JSON; alone it is no text"

Row = tuple[int, dict[str, Any]]
"(line of a text file or row of a table, both from 1; what stands there)"


def read_rows(path: Path) -> Iterator[Row]:
    """Rows of a source. Raises DataError naming the source, and the line where there is one."""
    name = Path(path.name.removesuffix(".gz"))
    try:
        if not path.is_file():
            yield from enumerate(_dataset(path), 1)
        elif name.suffix == ".parquet":
            yield from enumerate(_parquet(path), 1)
        elif name.suffix == ".csv":
            yield from _csv(path)
        else:
            yield from _json_lines(path)
    except (OSError, UnicodeDecodeError, EOFError, csv.Error, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


@contextmanager
def at_line(path: Path, number: int) -> Iterator[None]:
    """A DataError from inside names the source and the line."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{path}:{number}: {error}", field=f"line {number}") from error


def sha256(path: Path) -> str:
    """Of a file its bytes; of anything else its rows as canonical JSON, wherever it is stored."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    digest = hashlib.sha256()
    for _, row in read_rows(path):
        digest.update(json.dumps(row, sort_keys=True, default=_as_json).encode() + b"\n")
    return digest.hexdigest()


def _as_json(value: object) -> str:
    """What a table may hold and JSON has no word for."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, date | time | timedelta | Decimal):
        return str(value)
    raise DataError(
        f"a column holds a {type(value).__name__}, of which there is no digest; drop it"
    )


def _open(path: Path, encoding: str = "utf-8") -> Any:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding=encoding, newline="")
    return path.open(encoding=encoding, newline="")


def _json_lines(path: Path) -> Iterator[Row]:
    with _open(path) as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    content = _json(line)
                except (ValueError, RecursionError) as error:
                    raise DataError(f"{path}:{number}: {error}", field=f"line {number}") from error
                if not isinstance(content, dict):
                    raise DataError(f"{path}:{number}: not a JSON object", field=f"line {number}")
                yield number, content


def _json(text: str) -> Any:
    """Raises ValueError or RecursionError."""
    content = json.loads(text)
    if SURROGATE.search(text):
        json.dumps(content, ensure_ascii=False).encode()  # refuses a lone one
    return content


def _cell(text: str) -> Any:
    """JSON, or text as it stands: its format refuses that where it reads the column."""
    try:
        return _json(text)
    except (ValueError, RecursionError):
        return text


def _csv(path: Path) -> Iterator[Row]:
    """A header, then one record per row. An empty cell is an absent column."""
    csv.field_size_limit(LONGEST_CELL)
    with _open(path, "utf-8-sig") as file:
        reader = csv.DictReader(file, strict=True)
        for cells in reader:
            number = reader.line_num
            if None in cells or None in cells.values():
                wanted = len(reader.fieldnames or ())
                raise DataError(f"{path}:{number}: not the {wanted} cells of the header")
            yield (
                number,
                {
                    name: _cell(cell) if name in JSON_CELLS else cell
                    for name, cell in cells.items()
                    if cell != ""
                },
            )


def _parquet(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(1024):
            yield from map(_without_nulls, batch.to_pylist())
    except pyarrow.ArrowException as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


def _dataset(path: Path) -> Iterator[dict[str, Any]]:
    """A directory written by `save_to_disk` or holding data files, or a dataset of the hub."""
    import datasets

    place, split = _place(path)
    try:
        if (Path(place) / "state.json").is_file() or (Path(place) / "dataset_dict.json").is_file():
            found = datasets.load_from_disk(place)
            rows = found if isinstance(found, datasets.Dataset) else found[split]
        else:
            rows = datasets.load_dataset(place, split=split)
    except KeyError as error:
        raise DataError(f"{path}: has no split {split!r}; name one as {place}:SPLIT") from error
    except Exception as error:  # its errors share no base class
        raise DataError(f"{path}: datasets cannot read it: {error}") from error
    yield from map(_without_nulls, rows)


def _place(path: Path) -> tuple[str, str]:
    """(directory or hub name, split)."""
    text = str(path)
    hub = text.startswith(HUB)
    place, _, split = text.removeprefix(HUB).partition(":") if not path.is_dir() else (text, "", "")
    if not hub and not Path(place).is_dir():
        raise DataError(f"{path}: no such file or directory (a dataset of the hub is {HUB}NAME)")
    return place, split or "train"


def _without_nulls(row: Mapping[str, Any]) -> dict[str, Any]:
    """A table has no absent columns, only null ones."""
    return {name: value for name, value in row.items() if value is not None}
