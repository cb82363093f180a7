"""One small reader per public preference format: a JSON object in, a Record out."""

from collections.abc import Callable
from typing import Any

from service.errors import DataError
from training.formats import hh, kwise, trl
from training.formats.record import Record

Reader = Callable[[dict[str, Any]], Record]
READERS: dict[str, Reader] = {"hh": hh.read, "kwise": kwise.read, "trl": trl.read}


def reader_for(content: dict[str, Any], format: str) -> Reader:
    """The reader of a format by name, or for "auto" the one that fits the first record."""
    if format == "auto":
        if "responses" in content:
            format = "kwise"
        else:
            format = "hh" if hh.is_transcript(content.get("chosen")) else "trl"
    if format not in READERS:
        raise DataError(f"data.format is {format!r}; known: auto, {', '.join(READERS)}")
    return READERS[format]
