"""The manifest's schema: what a bundle says about itself. Knows shapes and meanings, no files."""

from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from service.errors import BundleError

SCHEMA_VERSION = 1

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
FileName = Annotated[str, StringConstraints(pattern=r"^[\w][\w.\-]*(/[\w][\w.\-]*)?$")]
Positive = Annotated[int, Field(gt=0)]


class Schema(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FileDigest(Schema):
    sha256: Sha256
    bytes: Annotated[int, Field(ge=0)]


class Architecture(Schema):
    """The sizes an engine needs to plan its memory."""

    kind: Literal["causal", "bidirectional"]
    family: str
    "model_type of the transformers configuration, such as qwen3"
    layers: Positive
    hidden_size: Positive
    heads: Positive
    kv_heads: Positive
    head_dim: Positive
    vocab_size: Positive
    parameters: Positive

    def state_bytes_per_token(self, itemsize: int = 4) -> int:
        """Bytes of key and value states that one token has, over all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim * itemsize


class TextRules(Schema):
    """How a conversation becomes token ids; the same in training and in serving."""

    bos_id: int | None
    "put first exactly once, when the text does not begin with it already; None: never"
    ending_ids: tuple[int, ...]
    "token ids after the response, exactly as trained; empty where the template writes the ending"
    max_prompt_tokens: Positive
    max_response_tokens: Positive
    template_date: Annotated[str, StringConstraints(pattern=r"^\d{4}-\d\d-\d\d$")]
    "ISO date given to templates that ask for the current one"
    template_variables: dict[str, str] = {}
    "named special tokens a template may write, such as bos_token"

    @property
    def max_tokens(self) -> int:
        return self.max_prompt_tokens + self.max_response_tokens


class Normalization(Schema):
    """reward = raw_reward - mean, so that the reference completions average 0.

    As in "Learning to summarize" (arXiv 2009.01325) and InstructGPT (arXiv 2203.02155, section
    3.5). The mean is already folded into the graph's head: the graph gives the reward.
    """

    mean: float
    measured_mean: float | None
    "mean reward of the reference completions through the finished graph, close to 0; None: no data"
    std: float
    "standard deviation of their rewards; information only"
    scale: float | None = None
    "stored, never applied by default: dividing breaks P(a beats b) = sigmoid(r_a - r_b)"
    completions: Annotated[int, Field(ge=0)]
    "0: the mean came with a checkpoint, nothing was measured"
    reference: str
    reference_sha256: Sha256

    def raw(self, rewards: np.ndarray) -> np.ndarray:
        """(N,) float32 rewards -> (N,) float32 raw rewards."""
        return rewards + np.float32(self.mean)


class Variant(Schema):
    """One graph of the same model."""

    name: str
    graph: FileName
    data: tuple[FileName, ...] = ()
    "the files that weights lie in: no graph may have some in another"
    ragged: FileName | None = None
    """of decoders, the graph that CPUs run: rows of any length on one axis, with the weights and
    the bits of `graph`, which it is itself where only CPUs run the variant"""
    precision: Literal["fp32", "bf16", "fp16", "int8"]
    devices: tuple[Literal["cpu", "cuda"], ...]
    tolerance: Annotated[float, Field(gt=0)]
    "largest allowed distance of a golden score from the one torch computed in fp32"
    bit_invariant: bool
    "on CPU, the same row gets the same bits whatever shares its batch; measured at export"
    spearman: float | None = None
    """rank correlation of its rewards with fp32's, on the evaluation set or, of bf16 and fp16, on
    reference completions; None: fp32 itself"""
    accuracy_change: float | None = None
    "accuracy on the evaluation set less that of fp32"


class Provenance(Schema):
    """Where the bundle comes from; not part of its identity."""

    created: str
    service_version: str
    base_model: str
    libraries: dict[str, str]
    training: dict[str, object] = {}


class Manifest(Schema):
    schema_version: Literal[1]
    name: Annotated[str, StringConstraints(pattern=r"^[\w.\-]{1,100}$")]
    id: Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]
    architecture: Architecture
    text: TextRules
    normalization: Normalization | None
    "None: exported without calibration; every response then says normalized: false"
    variants: Annotated[tuple[Variant, ...], Field(min_length=1)]
    evaluation: dict[str, object]
    provenance: Provenance
    files: dict[FileName, FileDigest]
    checksum: Sha256
    "SHA-256 of this manifest without this field: it catches damage, the id says what it is"

    def variant(self, name: str) -> Variant:
        for variant in self.variants:
            if variant.name == name:
                return variant
        known = ", ".join(v.name for v in self.variants)
        raise BundleError(f"variant {name!r} is not in bundle {self.name!r}; it has: {known}")


class GoldenRow(Schema):
    """A conversation, the ids it must encode to, the reward that torch computed for it."""

    prompt: str | list[dict[str, str]]
    response: str
    ids: list[int]
    reward: float
