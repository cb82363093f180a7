"""Score a file without a server, through the scorer that serves: the same bits.

Reads JSON lines, gzipped or not, or Parquet: rows of {"prompt", "response"} or {"prompt",
"responses"}. Writes one JSON line per row, in order, and goes on where an earlier call stopped.
"""

import gzip
import hashlib
import json
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from service.errors import DataError, RewardError
from service.request import ScoreRequest, parse
from service.scorer import Result, Scorer, score_offline

CHUNK_PAIRS = 512


def score_file(scorer: Scorer, data: Path, out: Path) -> Iterator[int]:
    """Yields the number of rows that are done, beginning with those of an earlier call.

    Raises DataError naming the rows among which one cannot be scored; what came before is kept.
    """
    with _appending(out) as file:
        done = _finished_rows(scorer, data, out)
        yield done
        for rows in _chunks(islice(enumerate(read_rows(data), 1), done, None), data):
            pairs = [pair for row in rows for pair in row.as_pairs(len(row.responses or [0]))]
            try:
                results = score_offline(scorer, pairs)
                lines = [_line(scorer, row, results) for row in rows]
            except RewardError as error:
                where = f"{data}: rows {done + 1} to {done + len(rows)}"
                raise DataError(f"{where}: {error.message}") from error
            file.write("".join(lines))
            file.flush()
            done += len(rows)
            yield done


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a JSONL, gzipped JSONL or Parquet file."""
    with _reading(path):
        yield from _parquet(path) if path.suffix == ".parquet" else _json_lines(path)


def count_rows(path: Path) -> int | None:
    """How many rows there are, where the format says so without reading them."""
    if path.suffix != ".parquet":
        return None
    with _reading(path):
        return int(_pyarrow().ParquetFile(path).metadata.num_rows)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Whatever Python, gzip and pyarrow raise for a file becomes a DataError that names it."""
    try:
        yield
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


def _appending(path: Path) -> TextIO:
    try:
        return path.open("a", encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error}") from error


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                yield json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{path}:{number}: not JSON: {error}") from error


def _parquet(path: Path) -> Iterator[dict[str, Any]]:
    for batch in _pyarrow().ParquetFile(path).iter_batches(CHUNK_PAIRS):
        yield from batch.to_pylist()


def _pyarrow() -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise DataError("Parquet needs the package pyarrow: pip install pyarrow") from error
    return pyarrow.parquet


def _chunks(rows: Iterator[tuple[int, Any]], data: Path) -> Iterator[list[ScoreRequest]]:
    """Validated rows, about CHUNK_PAIRS pairs at a time."""
    chunk: list[ScoreRequest] = []
    pairs = 0
    for number, row in rows:
        chunk.append(_request(row, f"{data}: row {number}"))
        pairs += len(chunk[-1].responses or [0])
        if pairs >= CHUNK_PAIRS:
            yield chunk
            chunk, pairs = [], 0
    if chunk:
        yield chunk


def _request(row: Any, where: str) -> ScoreRequest:
    if not isinstance(row, dict) or "prompt" not in row:
        raise DataError(f"{where}: not an object with a prompt")
    responses = row["responses"] if "responses" in row else [row.get("response")]
    try:
        request = parse({"prompt": row["prompt"], "responses": responses})
        request.as_pairs(len(responses) or 1)
    except RewardError as error:
        raise DataError(f"{where}: {error.message}") from error
    return request


def _line(scorer: Scorer, row: ScoreRequest, results: Iterator[Result]) -> str:
    got = list(islice(results, len(row.responses or ())))
    return (
        json.dumps(
            {
                "rewards": [result.reward for result in got],
                "raw_rewards": [result.raw_reward for result in got],
                "tokens_cut": [result.tokens_cut for result in got],
                **_origin(scorer, row),
            }
        )
        + "\n"
    )


def _origin(scorer: Scorer, row: ScoreRequest) -> dict[str, str]:
    """What a line was made of and by."""
    return {
        "row_sha256": hashlib.sha256(row.model_dump_json().encode()).hexdigest(),
        "bundle": scorer.bundle.manifest.id,
        "variant": scorer.variant.name,
        "engine": scorer.engine.fingerprint,
    }


def _finished_rows(scorer: Scorer, data: Path, out: Path) -> int:
    """Whole lines already there. Each must be of its row of `data`, this bundle and this engine.

    A line that a crash cut short is removed.
    """
    if not out.stat().st_size:
        return 0
    done = whole = 0
    with out.open("rb") as file:
        for row, line in zip(read_rows(data), file, strict=False):
            if not line.endswith(b"\n"):
                break
            done, whole = done + 1, whole + len(line)
            expected = _origin(scorer, _request(row, f"{data}: row {done}"))
            _check_origin(line, expected, f"{out}:{done}")
        rest = file.read()
    if b"\n" in rest:
        raise DataError(f"{out}: has more lines than {data} has rows; move it away")
    os.truncate(out, whole)
    return done


def _check_origin(line: bytes, expected: dict[str, str], where: str) -> None:
    try:
        found = json.loads(line)
        differing = [name for name in expected if found.get(name) != expected[name]]
    except (ValueError, AttributeError) as error:
        raise DataError(f"{where}: not a line of this command; move the file away") from error
    if differing:
        name = differing[0]
        raise DataError(
            f"{where}: {name} is {found.get(name)!r}, now it is {expected[name]!r}; "
            "move the file away, or give what it was begun with"
        )
