"""THE CONTRACT: what a bundle is, how it is written, verified and loaded.

A bundle is a directory: manifest.json, one graph per variant, tokenizer.json, golden.json and,
where there is one, chat_template.jinja. Knows files and digests; never opens a graph.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

from pydantic import ValidationError

from service.errors import BundleError
from service.manifest import (
    SCHEMA_VERSION,
    Architecture,
    FileDigest,
    GoldenRow,
    Manifest,
    Normalization,
    Provenance,
    Schema,
    TextRules,
    Variant,
)

MANIFEST, TOKENIZER, TEMPLATE, GOLDEN = (
    "manifest.json",
    "tokenizer.json",
    "chat_template.jinja",
    "golden.json",
)
REPORT_DIR = "report"


class Bundle(Schema):
    """A verified bundle: every byte has the digest that the manifest names."""

    path: Path
    manifest: Manifest

    def file(self, name: str) -> Path:
        return self.path / name

    def tokenizer_json(self) -> str:
        return self._text(TOKENIZER)

    def template(self) -> str | None:
        return self._text(TEMPLATE) if TEMPLATE in self.manifest.files else None

    def _text(self, name: str) -> str:
        try:
            return self.file(name).read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise BundleError(f"{name}: not UTF-8: {error}", field=name) from error

    def golden(self) -> list[GoldenRow]:
        rows = _read_json(self.file(GOLDEN))
        if not isinstance(rows, list):
            found = type(rows).__name__
            raise BundleError(f"{GOLDEN}: a list of rows is needed, not {found}", field=GOLDEN)
        return [_golden_row(row, i) for i, row in enumerate(rows)]


def determines(name: str) -> bool:
    """Whether a file counts for the id: all but golden scores and report, digested beside it."""
    return name != GOLDEN and not name.startswith(f"{REPORT_DIR}/")


DETERMINING = {"name", "graph", "data", "ragged", "precision"}
"fields of a variant that decide rewards; the others say what was measured of it"


def identity(
    files: dict[str, FileDigest],
    architecture: Architecture,
    text: TextRules,
    normalization: Normalization | None,
    variants: Iterable[Variant],
) -> str:
    """`sha256:...` over all that determines a reward, and over nothing else.

    Graphs, tokenizer, template, limits, special tokens and normalisation count.
    """
    subject = {
        "schema_version": SCHEMA_VERSION,
        "files": {name: files[name].sha256 for name in filter(determines, files)},
        "kind": architecture.kind,
        "text": text.model_dump(mode="json"),
        "normalization": normalization
        and normalization.model_dump(mode="json", include={"mean", "scale"}),
        "variants": [v.model_dump(mode="json", include=DETERMINING) for v in variants],
    }
    canonical = json.dumps(subject, sort_keys=True, separators=(",", ":"))
    return "sha256:" + hashlib.sha256(canonical.encode()).hexdigest()


def _checksum(manifest: Manifest) -> str:
    fields = manifest.model_dump(mode="json", exclude={"checksum"})
    canonical = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def digest(path: Path) -> FileDigest:
    with path.open("rb") as file:
        return FileDigest(
            sha256=hashlib.file_digest(file, "sha256").hexdigest(),
            bytes=os.fstat(file.fileno()).st_size,
        )


def write_manifest(
    path: Path,
    *,
    name: str,
    architecture: Architecture,
    text: TextRules,
    normalization: Normalization | None,
    variants: tuple[Variant, ...],
    evaluation: dict[str, object],
    provenance: Provenance,
) -> Bundle:
    """Digest every file below `path`, write manifest.json beside them, verify the result."""
    files = {file: digest(path / file) for file in _listing(path) if file != MANIFEST}
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        name=name,
        id=identity(files, architecture, text, normalization, variants),
        architecture=architecture,
        text=text,
        normalization=normalization,
        variants=variants,
        evaluation=evaluation,
        provenance=provenance,
        files=files,
        checksum="0" * 64,
    )
    fields = manifest.model_dump(mode="json") | {"checksum": _checksum(manifest)}
    content = json.dumps(fields, indent=2, allow_nan=False)
    (path / MANIFEST).write_text(content + "\n", encoding="utf-8")
    return load(path)


def load(path: str | Path) -> Bundle:
    """Verify every file of the bundle and return it; nothing is opened before its digest matched.

    A bundle in use must not be changed in place. The runtime maps the weights, so that replicas
    share them: other bytes in that file give other rewards under this id, with no error. Write
    another directory, as export does.
    Raises BundleError naming the file: missing, unlisted, changed, a link, or a manifest of an
    unknown schema version.
    """
    path = Path(path)
    manifest = _read_manifest(path)
    present = set(_listing(path)) - {MANIFEST}
    for name in sorted(manifest.files.keys() - present):
        raise BundleError(f"{name}: listed in {MANIFEST} but missing from {path}", field=name)
    for name in sorted(present - manifest.files.keys()):
        raise BundleError(f"{name}: lies in {path} but is not listed in {MANIFEST}", field=name)
    for name, expected in manifest.files.items():
        if digest(path / name) != expected:
            raise BundleError(
                f"{name}: its SHA-256 or size is not the one in {MANIFEST}; copy the bundle again",
                field=name,
            )
    _check_references(manifest)
    return Bundle(path=path.resolve(), manifest=manifest)


def _read_manifest(path: Path) -> Manifest:
    file = path / MANIFEST
    if not file.is_file() or file.is_symlink():
        raise BundleError(
            f"{path}: not a bundle, it has no regular file {MANIFEST}", field=MANIFEST
        )
    content = _read_json(file)
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version != SCHEMA_VERSION:
        raise BundleError(
            f"{MANIFEST}: schema_version is {version!r}, this build reads {SCHEMA_VERSION}; "
            "export the bundle again or use the matching release",
            field="schema_version",
        )
    try:
        return Manifest.model_validate_json(file.read_bytes())
    except ValidationError as error:
        where, why = first_reason(error)
        raise BundleError(f"{MANIFEST}: {where}: {why}", field=where) from error


def _golden_row(content: object, i: int) -> GoldenRow:
    try:
        return GoldenRow.model_validate(content)
    except ValidationError as error:
        where, why = first_reason(error)
        raise BundleError(f"{GOLDEN}: row {i}: {where}: {why}", field=GOLDEN) from error


def first_reason(error: ValidationError) -> tuple[str, str]:
    """The field that was refused first, as `variants.0.tolerance`, and why."""
    first = error.errors()[0]
    return ".".join(map(str, first["loc"])), first["msg"]


def _read_json(file: Path) -> object:
    try:
        return json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:  # RecursionError: nested some 1,000 deep
        raise BundleError(f"{file.name}: not JSON: {error}", field=file.name) from error


def _check_references(manifest: Manifest) -> None:
    graphs = {n for v in manifest.variants for n in (v.graph, v.ragged, *v.data) if n}
    needed = {TOKENIZER, GOLDEN} | graphs
    for name in sorted(needed - manifest.files.keys()):
        raise BundleError(
            f"{name}: needed by the bundle, but {MANIFEST} does not list it", field=name
        )
    for name in sorted(name for name in graphs if not determines(name)):
        raise BundleError(
            f"{name}: a variant needs it, but the id leaves out {GOLDEN} and {REPORT_DIR}/; "
            f"put it beside {MANIFEST}",
            field=name,
        )
    expected = identity(
        manifest.files,
        manifest.architecture,
        manifest.text,
        manifest.normalization,
        manifest.variants,
    )
    if manifest.checksum != _checksum(manifest):
        raise BundleError(
            f"{MANIFEST}: its checksum is not that of its content; it was edited or damaged",
            field="checksum",
        )
    if manifest.id != expected:
        raise BundleError(
            f"{MANIFEST}: id is {manifest.id}, its content gives {expected}; it was edited",
            field="id",
        )


def _listing(path: Path) -> list[str]:
    """Names of all regular files, relative to `path`. A link of any kind is refused."""
    if not path.is_dir():
        raise BundleError(f"{path}: not a directory")
    names = []
    for entry in sorted(path.rglob("*")):
        name = entry.relative_to(path).as_posix()
        if entry.is_symlink() or (entry.is_file() and entry.stat().st_nlink != 1):
            raise BundleError(f"{name}: is a link; a bundle holds regular files only", field=name)
        if entry.is_file():
            names.append(name)
        elif not entry.is_dir():
            raise BundleError(f"{name}: neither a file nor a directory", field=name)
    return names
