"""ONNX + golden scores -> bundle, replayed through service.scorer before it counts as written."""

import datetime
import json
import shutil
import tempfile
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from service import bundle as bundles
from service import golden
from service.buckets import Buckets
from service.bundle import Bundle
from service.config import ServiceConfig
from service.errors import TrainingError
from service.manifest import GoldenRow, Normalization, Provenance, TextRules, Variant
from service.padded_engine import PaddedEngine
from service.pairs import Pair
from service.scorer import Scorer, score_offline
from service.text import Encoder, Message
from training import int8, paged
from training.checkpoint import read
from training.data import Group, Prompt, completions_sha256, read_groups
from training.encoder_graph import encoder_sizes, export_encoder_graph
from training.graph import export_graph, sizes
from training.model import AnyRewardModel, EncoderRewardModel
from training.normalize import reference_mean
from training.predict import predict
from training.ragged_graph import export_ragged_graph
from training.run import Run, plain

Completions = Sequence[tuple[Prompt, str]]

GRAPH, RAGGED_GRAPH = "model.onnx", "model.ragged.onnx"
TOLERANCE = {"fp32": 1e-4}
"largest |ONNX - torch| of a golden score; fp32: the parity that the tests hold every family to"
MEAN_TOLERANCE = 1e-3
GOLDEN_ROWS, PAGED_ROWS = 16, 500
"completions that golden scores are made of; that 16 bits are measured on"


@dataclass(frozen=True, slots=True)
class Source:
    """What a bundle is made of."""

    name: str
    model: AnyRewardModel
    tokenizer_json: str
    template: str | None
    rules: TextRules
    normalization: Normalization | None
    evaluation: dict[str, Any]
    provenance: Provenance

    @property
    def mean(self) -> float:
        return self.normalization.mean if self.normalization else 0.0

    def encoder(self) -> Encoder:
        return Encoder(self.tokenizer_json, self.template, self.rules)


def export(run: Run, out: Path, variants: Collection[str] = ()) -> Bundle:
    """The bundle of a run, with its report; variants, beside fp32: int8, bf16-paged, fp16-paged."""
    reference = run.reference()
    held_out = read_groups(run.held_out)[0] if int8.NAME in variants else []
    return write_proved(_source(run, reference), reference, out, variants, run.report, held_out)


def write_proved(
    source: Source,
    completions: Completions,
    out: Path,
    variants: Collection[str] = (),
    report: Path | None = None,
    held_out: Sequence[Group] = (),
) -> Bundle:
    """Write a bundle, prove it, and only then give it its name.

    Proof: every file's digest, the golden scores, and, where the mean was measured, the mean over
    the completions again, through the finished graph and the code that serves.
    variants: beside fp32; held_out: groups that int8 is measured on.
    """
    if out.exists():
        raise TrainingError(f"{out}: exists already; remove it or choose another --out")
    packed = [name for name in paged.KINDS if name in variants]
    if packed:
        paged.refuse_paged(source.model)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".export-") as directory:
        unfinished = Path(directory) / out.name
        unfinished.mkdir()
        if report is not None:
            (unfinished / bundles.REPORT_DIR).mkdir()
            for file in filter(Path.is_file, (report, report.with_suffix(".html"))):
                shutil.copyfile(file, unfinished / bundles.REPORT_DIR / file.name)
        bundle = write_bundle(unfinished, source, completions)
        bundle = _record_measured(bundle, *_serve(unfinished, completions))
        if int8.NAME in variants:
            bundle = int8.add_int8(bundle, held_out)
        rows = _spread(source, completions) if packed else []
        for name in packed:
            bundle = paged.add_paged(bundle, name, source.model, source.mean, rows)
        unfinished.rename(out)
    return bundles.load(out)


def _spread(source: Source, completions: Completions) -> list[list[int]]:
    """Token ids of completions spread over the set, PAGED_ROWS at most."""
    encoder = source.encoder()
    chosen = completions[:: -(-len(completions) // PAGED_ROWS)]
    return [encoder.encode(prompt, response).ids for prompt, response in chosen]


def write_bundle(path: Path, source: Source, completions: Completions) -> Bundle:
    """Write every file of a bundle into the directory `path`; golden rows from `completions`."""
    _allow_windows(source.model, source.rules.max_tokens)
    if isinstance(source.model, EncoderRewardModel):
        export_encoder_graph(source.model, source.mean, path / GRAPH)
        architecture, ragged = encoder_sizes(source.model), None
    else:
        export_graph(source.model, source.mean, path / GRAPH)
        architecture, ragged = sizes(source.model), RAGGED_GRAPH
        export_ragged_graph(source.model, source.mean, path / ragged, path / GRAPH)
    (path / bundles.TOKENIZER).write_text(source.tokenizer_json, encoding="utf-8")
    if source.template is not None:
        (path / bundles.TEMPLATE).write_text(source.template, encoding="utf-8")
    rows = [row.model_dump() for row in golden_rows(source, completions)]
    (path / bundles.GOLDEN).write_text(json.dumps(rows) + "\n", encoding="utf-8")
    fp32 = Variant(
        name="fp32",
        graph=GRAPH,
        data=(f"{GRAPH}.data",),
        ragged=ragged,
        precision="fp32",
        devices=("cpu", "cuda"),
        tolerance=TOLERANCE["fp32"],
        bit_invariant=False,  # until it is measured
    )
    return bundles.write_manifest(
        path,
        name=source.name,
        architecture=architecture,
        text=source.rules,
        normalization=source.normalization,
        variants=(fp32,),
        evaluation=source.evaluation,
        provenance=source.provenance,
    )


def _allow_windows(model: AnyRewardModel, max_tokens: int) -> None:
    """A decoder's sliding window that no row reaches cuts nothing: take it away.

    A narrower one stays, and the graph refuses it. Where layers know their own window, the
    configuration keeps its: transformers makes their masks by it.
    """
    window = getattr(model.config, "sliding_window", None)
    if model.kind == "causal" and window is not None and window >= max_tokens:
        layers = [each for each in model.modules() if getattr(each, "sliding_window", None)]
        for owner in layers or [model.config]:
            owner.sliding_window = None


def golden_rows(source: Source, completions: Completions) -> list[GoldenRow]:
    """Conversations that exercise the text rules, with the ids and rewards of torch."""
    probes = list(_probes(completions, source.rules))
    encoder = source.encoder()
    ids = [encoder.encode(prompt, response).ids for prompt, response in probes]
    rewards = predict(source.model, ids) - np.float32(source.mean)
    return [
        GoldenRow(prompt=plain(prompt), response=response, ids=row, reward=float(reward))
        for (prompt, response), row, reward in zip(probes, ids, rewards, strict=True)
    ]


def _probes(completions: Completions, rules: TextRules) -> Iterator[tuple[Prompt, str]]:
    """Completions spread over the set, an empty response, odd text, one that is cut."""
    step = max(1, len(completions) // GOLDEN_ROWS)
    yield from completions[::step][:GOLDEN_ROWS]
    prompt, _ = completions[0]
    yield prompt, ""
    yield prompt, "Grüße, 世界! 👋\n\n\t<|im_end|> <s></s> [CLS]"
    yield prompt, "and so on, " * rules.max_response_tokens
    long = "and so on, " * rules.max_prompt_tokens
    yield long if isinstance(prompt, str) else (Message(role="user", content=long),), long


def _source(run: Run, reference: Completions) -> Source:
    report = run.read_report()
    measured = report["normalization"]
    if completions_sha256(reference) != measured["reference_sha256"]:
        raise TrainingError(f"{run.path}: reference.jsonl is not the one the mean was measured on")
    base = report["config"]["model"]["path"]
    return Source(
        name=report["name"],
        model=read(run.model),
        tokenizer_json=run.tokenizer_json(),
        template=run.template(),
        rules=run.rules(),
        normalization=Normalization(measured_mean=0.0, **measured),
        evaluation=report["evaluation"],
        provenance=Provenance(
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            service_version=version("reward-service"),
            base_model=Path(base).name if base else "from scratch",
            libraries=report["libraries"],
            training={"data": report["data"], "fit": report["config"]["fit"]},
        ),
    )


def _serve(path: Path, completions: Completions) -> tuple[np.ndarray, bool]:
    """(N,) rewards through the code that serves, and whether it reproduces bits.

    Opening it replays the golden scores; so does the padded graph of decoders, which GPUs run.
    """
    scorer = Scorer.open(ServiceConfig(bundle=path, device="cpu"))
    try:
        if scorer.variant.ragged:
            most = scorer.bundle.manifest.text.max_tokens
            padded = PaddedEngine(scorer.bundle, scorer.variant.name, "cpu", Buckets(most, most))
            golden.replay(scorer.bundle, scorer.variant, scorer.encoding.encoder, padded)
        pairs = [Pair(prompt, response) for prompt, response in completions]
        rewards = np.array([result.reward for result in score_offline(scorer, pairs)])
        return rewards, scorer.reproduces_bits()
    finally:
        scorer.close()


def _record_measured(bundle: Bundle, rewards: np.ndarray, bit_invariant: bool) -> Bundle:
    """Write the manifest again with what was measured; its identity does not depend on it."""
    manifest = bundle.manifest
    normalization = manifest.normalization
    if normalization is not None and normalization.completions:
        measured = reference_mean(rewards)
        if abs(measured) > MEAN_TOLERANCE:
            raise TrainingError(
                f"the reference completions average {measured} through the exported graph; "
                f"the limit is {MEAN_TOLERANCE}"
            )
        update = {"measured_mean": measured, "std": float(rewards.std())}
        normalization = normalization.model_copy(update=update)
    (fp32,) = manifest.variants
    return bundles.write_manifest(
        bundle.path,
        name=manifest.name,
        architecture=manifest.architecture,
        text=manifest.text,
        normalization=normalization,
        variants=(fp32.model_copy(update={"bit_invariant": bit_invariant}),),
        evaluation=manifest.evaluation,
        provenance=manifest.provenance,
    )
