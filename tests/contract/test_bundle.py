"""What a bundle promises, and how each broken one is refused."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from service import bundle as bundles
from service.bundle import Bundle, identity
from service.config import ServiceConfig
from service.errors import BundleError
from service.manifest import Normalization
from service.scorer import Scorer
from tests.conftest import rewrite_manifest

FILES = [
    "model.onnx",
    "model.onnx.data",
    "model.ragged.onnx",
    "tokenizer.json",
    "chat_template.jinja",
    "golden.json",
    "report/report.json",
    "report/report.html",
]
EVERY_FILE = [*FILES, bundles.MANIFEST]


def test_a_whole_copy_is_the_same_bundle(bundle: Bundle, copy: Path) -> None:
    assert bundles.load(copy).manifest == bundle.manifest
    assert sorted(bundle.manifest.files) == sorted(FILES)


@pytest.mark.parametrize("name", EVERY_FILE)
def test_a_flipped_bit_is_refused(copy: Path, name: str) -> None:
    whole = (copy / name).read_bytes()
    for place in np.linspace(0, len(whole) - 1, 40, dtype=int):
        content = bytearray(whole)
        content[place] ^= 1
        (copy / name).write_bytes(content)
        with pytest.raises(BundleError):
            bundles.load(copy)


@pytest.mark.parametrize("name", FILES)
def test_the_refusal_names_the_file(copy: Path, name: str) -> None:
    (copy / name).write_bytes(b"x" + (copy / name).read_bytes())
    with pytest.raises(BundleError, match=f"^{name}: its SHA-256 or size"):
        bundles.load(copy)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_refused(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(BundleError, match=f"{name}.*missing"):
        bundles.load(copy)


@pytest.mark.parametrize("name", ["extra.bin", "report/notes.txt", "model.onnx.bak"])
def test_an_unlisted_file_is_refused(copy: Path, name: str) -> None:
    (copy / name).write_text("hello")
    with pytest.raises(BundleError, match=f"{name}.*not listed"):
        bundles.load(copy)


@pytest.mark.parametrize("make_link", [os.symlink, os.link])
def test_a_link_is_refused_even_to_the_same_content(copy: Path, tmp_path: Path, make_link) -> None:
    outside = tmp_path / "outside.data"
    (copy / "model.onnx.data").rename(outside)
    make_link(outside, copy / "model.onnx.data")
    with pytest.raises(BundleError, match=r"model\.onnx\.data: is a link"):
        bundles.load(copy)


@pytest.mark.parametrize("version", [0, 2, None, "1"])
def test_an_unknown_schema_version_is_refused(copy: Path, version: object) -> None:
    rewrite_manifest(copy, schema_version=version)
    with pytest.raises(BundleError, match="schema_version"):
        bundles.load(copy)


def test_an_edited_limit_is_refused(bundle: Bundle, copy: Path) -> None:
    text = bundle.manifest.text.model_dump(mode="json") | {"max_prompt_tokens": 64}
    rewrite_manifest(copy, text=text)
    with pytest.raises(BundleError, match="it was edited or damaged"):
        bundles.load(copy)


def test_a_file_name_that_leads_outside_is_refused(bundle: Bundle, copy: Path) -> None:
    files = json.loads(bundle.manifest.model_dump_json())["files"]
    files["../outside"] = files["model.onnx"]
    rewrite_manifest(copy, files=files)
    with pytest.raises(BundleError, match=r"files\.\.\./outside"):
        bundles.load(copy)


def test_an_unknown_field_is_refused(copy: Path) -> None:
    rewrite_manifest(copy, comment="hello")
    with pytest.raises(BundleError, match="comment"):
        bundles.load(copy)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff\xfe", b"[" * 100_000])
def test_a_manifest_that_is_no_manifest_is_refused(copy: Path, content: bytes) -> None:
    (copy / bundles.MANIFEST).write_bytes(content)
    with pytest.raises(BundleError, match=bundles.MANIFEST):
        bundles.load(copy)


def with_golden(bundle: Bundle, copy: Path, change) -> None:
    """Damage golden.json and make the digests right again, as a careless exporter would."""
    rows = json.loads((copy / bundles.GOLDEN).read_bytes())
    change(rows)
    (copy / bundles.GOLDEN).write_text(json.dumps(rows))
    _resign(bundle, copy)


def _resign(bundle: Bundle, copy: Path, **of_variant: object) -> None:
    manifest = bundle.manifest
    bundles.write_manifest(
        copy,
        name=manifest.name,
        architecture=manifest.architecture,
        text=manifest.text,
        normalization=manifest.normalization,
        variants=tuple(v.model_copy(update=of_variant) for v in manifest.variants),
        evaluation=manifest.evaluation,
        provenance=manifest.provenance,
    )


def test_a_golden_reward_that_does_not_reproduce_is_refused(bundle: Bundle, copy: Path) -> None:
    def change(rows: list) -> None:
        rows[3]["reward"] += 2e-4  # the tolerance is 1e-4

    with_golden(bundle, copy, change)
    with pytest.raises(BundleError, match=r"golden\.json: row 3: the engine gives"):
        Scorer.open(ServiceConfig(bundle=copy))


def test_golden_ids_that_do_not_reproduce_are_refused(bundle: Bundle, copy: Path) -> None:
    def change(rows: list) -> None:
        rows[1]["ids"][-1] += 1

    with_golden(bundle, copy, change)
    with pytest.raises(BundleError, match=r"golden\.json: row 1: encodes to other token ids"):
        Scorer.open(ServiceConfig(bundle=copy))


def test_the_identity_is_of_what_determines_rewards_and_of_nothing_else(
    bundle: Bundle, copy: Path
) -> None:
    with_golden(bundle, copy, lambda rows: rows.pop())
    (copy / "report/report.json").write_text("{}")
    manifest = bundle.manifest
    subject = [
        dict(manifest.files),
        manifest.architecture,
        manifest.text,
        manifest.normalization,
        manifest.variants,
    ]
    assert identity(*subject) == manifest.id
    subject[0]["report/report.json"] = bundles.digest(copy / "report/report.json")
    subject[0][bundles.GOLDEN] = bundles.digest(copy / bundles.GOLDEN)
    assert identity(*subject) == manifest.id

    for i, other in (
        (0, manifest.files | {"tokenizer.json": bundles.digest(copy / "model.onnx")}),
        (0, manifest.files | {"unnamed.data": bundles.digest(copy / "model.onnx")}),
        (2, manifest.text.model_copy(update={"max_response_tokens": 1})),
        (2, manifest.text.model_copy(update={"ending_ids": (1,)})),
        (3, manifest.normalization.model_copy(update={"mean": 0.0})),
        (3, None),
    ):
        changed = [*subject]
        changed[i] = other
        assert identity(*changed) != manifest.id


@pytest.mark.parametrize(
    ("field", "name"),
    [
        ("graph", "report/model.onnx"),
        ("ragged", "report/model.ragged.onnx"),
        ("data", "report/model.onnx.data"),
        ("data", "golden.json"),
    ],
)
def test_a_variant_in_files_that_the_identity_leaves_out_is_refused(
    bundle: Bundle, copy: Path, field: str, name: str
) -> None:
    if name != bundles.GOLDEN:
        (copy / Path(name).name).rename(copy / name)
    with pytest.raises(BundleError, match=f"^{name}: .*the id leaves out"):
        _resign(bundle, copy, **{field: (name,) if field == "data" else name})


@pytest.mark.parametrize("location", ["report/model.onnx.data", "./model.onnx.data", "no.data"])
def test_a_graph_with_weights_beside_its_variants_data_is_refused(
    bundle: Bundle, copy: Path, location: str
) -> None:
    """Weights in the report would change rewards and not the id."""
    shutil.copyfile(copy / "model.onnx.data", copy / "report/model.onnx.data")
    file = copy / "model.ragged.onnx"
    model = onnx.load(file, load_external_data=False)
    for entry in (entry for tensor in model.graph.initializer for entry in tensor.external_data):
        entry.value = location if entry.key == "location" else entry.value
    file.write_bytes(model.SerializeToString())
    _resign(bundle, copy)
    with pytest.raises(BundleError, match=rf"model\.ragged\.onnx: has weights in '{location}'"):
        Scorer.open(ServiceConfig(bundle=copy))


def test_a_graph_is_read_as_onnx_whatever_its_name(
    bundle: Bundle, copy: Path, scorer: Scorer
) -> None:
    """Where its weights lie is looked up in that format."""
    (copy / "model.ragged.onnx").rename(copy / "model.ort")
    _resign(bundle, copy, ragged="model.ort")
    renamed, row = Scorer.open(ServiceConfig(bundle=copy)), [[5, 6, 7, 8]]
    assert renamed.engine.run(row).tobytes() == scorer.engine.run(row).tobytes()
    renamed.close()


def test_raw_reward_is_reward_plus_mean_in_float32(bundle: Bundle) -> None:
    normalization = bundle.manifest.normalization
    assert isinstance(normalization, Normalization)
    assert abs(normalization.measured_mean) <= 1e-3
    shifted = normalization.model_copy(update={"mean": 1.5})
    raw = shifted.raw(np.array([0.25, -1.5], np.float32))
    assert raw.dtype == np.float32 and raw.tolist() == [1.75, 0.0]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("model.ragged.onnx", b"{}"),
        ("tokenizer.json", b"{}"),
        ("tokenizer.json", b"\xff"),
        ("chat_template.jinja", b"caf\xe9"),
        ("golden.json", b"{}"),
        ("golden.json", b"\xff"),
        ("golden.json", b"[" * 100_000),
    ],
)
def test_a_file_with_the_right_digest_that_cannot_be_read_is_named(
    bundle: Bundle, copy: Path, name: str, content: bytes
) -> None:
    (copy / name).write_bytes(content)
    _resign(bundle, copy)
    with pytest.raises(BundleError, match=name):
        Scorer.open(ServiceConfig(bundle=copy))


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("prompt", [{"role": "bot", "content": "x"}], r"role: .* 'system'"),
        ("prompt", "", "the conversation is empty"),
        ("ids", ["x"], r"ids\.0: .* integer"),
        ("reward", None, "reward: .* number"),
    ],
)
def test_a_golden_row_that_is_none_is_named_by_its_number(
    bundle: Bundle, copy: Path, field: str, value: object, reason: str
) -> None:
    with_golden(bundle, copy, lambda rows: rows[2].update({field: value}))
    with pytest.raises(BundleError, match=rf"^golden\.json: row 2: {reason}") as refused:
        Scorer.open(ServiceConfig(bundle=copy))
    assert "\n" not in refused.value.message


def test_importing_the_contract_stays_light() -> None:
    program = (
        "import sys; import service.bundle, service.text, service.errors; "
        "heavy = {'ray', 'onnxruntime', 'torch', 'transformers', 'fastapi'} & set(sys.modules); "
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
