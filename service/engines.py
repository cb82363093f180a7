"""Which engine runs a variant on a device, and how much at once. Knows engines; no text."""

from service.buckets import Buckets
from service.bundle import Bundle
from service.config import ServiceConfig
from service.encoder_engine import EncoderEngine
from service.engine import Engine
from service.errors import BundleError
from service.machine import usable_cpus
from service.packing import PackedBudget
from service.padded_engine import PaddedEngine
from service.paged_engine import VARIANTS as PAGED
from service.paged_engine import PagedEngine
from service.planner import Limits, PaddedBudget
from service.ragged_budget import RaggedBudget
from service.ragged_engine import RaggedEngine
from service.session import resolve_device

BATCH_TOKENS = {"cpu": 768, "cuda": 16_384}
"of a run, where the configuration leaves it to the device"
RUNS_AT_ONCE = 2
"on a CPU, where the configuration leaves it to the machine"
PREFIX_CACHE_BYTES, KEPT_PROMPTS = 128 * 1024 * 1024, 2
"at least, where the configuration leaves it to the model; that many of its longest prompts"


def open_engine(bundle: Bundle, config: ServiceConfig) -> tuple[Engine, Limits]:
    """An engine that has run, and what a batch may hold on it.

    Raises BundleError, DeviceUnavailable.
    """
    variant = bundle.manifest.variant(config.variant)
    if config.invariant and variant.name in PAGED:
        raise BundleError(
            f"invariant was asked for, but variant {variant.name} computes each row in one run "
            "with whatever shares its batch; use another variant, or leave invariant out"
        )
    device = resolve_device(config.device, variant.devices)
    causal = bundle.manifest.architecture.kind == "causal"
    if config.runs_at_once > 1 and device == "cuda":
        raise BundleError(
            f"runs_at_once: {config.runs_at_once}, but a GPU runs one batch at a time; leave it out"
        )
    tokens = config.max_batch_tokens or BATCH_TOKENS[device]
    if device == "cuda":
        on_cuda = _paged if variant.name in PAGED else _padded
        return on_cuda(bundle, config, tokens)
    if config.invariant and not variant.bit_invariant:
        raise BundleError(
            f"invariant was asked for, but variant {variant.name} does not reproduce its bits on "
            "this CPU in every batch; use variant fp32, or leave invariant out"
        )
    at_once = config.runs_at_once or _runs_at_once(config.threads)
    threads = config.threads or -(-usable_cpus() // at_once)
    if not causal:
        encoder = EncoderEngine(bundle, config.variant, threads, at_once)
        return encoder, PaddedBudget(tokens, config.max_padding)
    token_bytes = bundle.manifest.architecture.state_bytes_per_token()
    kept = config.prefix_cache_bytes
    if kept is None:
        prompts = KEPT_PROMPTS * bundle.manifest.text.max_prompt_tokens * token_bytes
        kept = max(PREFIX_CACHE_BYTES, prompts)
    decoder = RaggedEngine(bundle, config.variant, threads, kept, config.max_state_bytes, at_once)
    states = config.max_state_bytes // at_once // (2 * token_bytes)
    return decoder, RaggedBudget(tokens, max(1, states))


def _runs_at_once(threads: int) -> int:
    return 1 if threads or usable_cpus() == 1 else RUNS_AT_ONCE


def _padded(bundle: Bundle, config: ServiceConfig, tokens: int) -> tuple[Engine, Limits]:
    buckets = Buckets(bundle.manifest.text.max_tokens, tokens, config.invariant)
    engine = PaddedEngine(
        bundle, config.variant, "cuda", buckets, config.threads, config.gpu_memory_bytes
    )
    return engine, PaddedBudget(tokens, config.max_padding, engine.warm(), buckets)


def _paged(bundle: Bundle, config: ServiceConfig, tokens: int) -> tuple[Engine, Limits]:
    engine = PagedEngine.open(
        bundle,
        config.variant,
        "cuda",
        config.max_state_bytes,
        config.threads,
        config.gpu_memory_bytes,
    )
    engine.warm(tokens)
    return engine, PackedBudget(tokens, engine.pool.blocks, engine.pool.block_tokens)
