"""The files that a graph's weights lie in. Knows protobuf's wire format; needs no ONNX package."""

import posixpath
from collections.abc import Iterator

from service.bundle import Bundle
from service.errors import BundleError
from service.manifest import Variant

# Field numbers of onnx.proto, on every way from a model to a tensor's external_data.
INSIDE: dict[str, dict[int, str]] = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse tensor"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {
        5: "tensor",
        10: "tensor",
        6: "graph",
        11: "graph",
        22: "sparse tensor",
        23: "sparse tensor",
    },
    "sparse tensor": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}
KEY, VALUE = 1, 2
"of an entry"


def refuse_other_weights(bundle: Bundle, variant: Variant, graph: str) -> None:
    """Raise BundleError where the graph's weights lie in a file that is not of the variant's data.

    Those count for the bundle's id; a graph by itself may name any file, one of the report, say.
    """
    beside = {posixpath.relpath(name, posixpath.dirname(graph) or ".") for name in variant.data}
    try:
        others = locations(bundle.file(graph).read_bytes()) - beside
    except ValueError as error:
        raise BundleError(f"{graph}: not an ONNX graph: {error}", field=graph) from error
    for location in sorted(others):
        raise BundleError(
            f"{graph}: has weights in {location!r}, which is not among the data of variant "
            f"{variant.name} ({', '.join(variant.data) or 'none'}); export the bundle again",
            field=graph,
        )


def locations(model: bytes) -> set[str]:
    """Every `location` of external data in a serialized ModelProto, as it is written there.

    Raises ValueError where it is not protobuf.
    """
    found = set()
    waiting = [("model", memoryview(model))]
    while waiting:
        kind, message = waiting.pop()
        if kind == "entry":
            # of a field that comes twice the last counts
            entry = {KEY: b"", VALUE: b""} | {n: bytes(part) for n, part in _fields(message)}
            if entry[KEY] == b"location":
                found.add(entry[VALUE].decode(errors="replace"))
        else:
            inside = INSIDE[kind]
            waiting += [(inside[n], part) for n, part in _fields(message) if n in inside]
    return found


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Number and content of its fields that are strings, bytes or messages."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        match tag & 7:
            case 0:  # a number
                _, at = _varint(message, at)
            case 1:  # 64 bits
                at += 8
            case 2:  # a string, bytes or a message
                length, at = _varint(message, at)
                yield (tag & 0xFFFFFFFF) >> 3, message[at : at + length]
                at += length
            case 5:  # 32 bits
                at += 4
            case wire_type:
                raise ValueError(f"a field of wire type {wire_type}")
    if at > len(message):
        raise ValueError("it ends within a field")


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """The number that begins at `at`, and where it ends."""
    number = 0
    for shift in range(0, 70, 7):
        if at == len(message):
            break
        byte = message[at]
        number |= (byte & 127) << shift
        at += 1
        if byte < 128:
            return number, at
    raise ValueError("it ends within a number")
