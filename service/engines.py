"""Which engine runs a variant on a device, and how much at once. Knows engines; no text."""

from dataclasses import replace

from service import warmup
from service.buckets import Buckets
from service.bundle import Bundle
from service.config import ServiceConfig
from service.encoder_engine import EncoderEngine
from service.engine import Engine, OnnxEngine
from service.errors import BundleError
from service.packing import PackedBudget
from service.padded_engine import PaddedEngine
from service.paged_engine import VARIANTS as PAGED
from service.paged_engine import PagedEngine
from service.planner import Budget, Limits
from service.prefix import TYPICAL, Costs
from service.ragged_budget import RaggedBudget
from service.ragged_engine import RaggedEngine
from service.session import resolve_device

BATCH_TOKENS = {"cpu": 1024, "cuda": 16_384}
"of a run, where the configuration leaves it to the device"


def open_engine(bundle: Bundle, config: ServiceConfig) -> tuple[Engine, Costs]:
    """An engine that has run, and what its runs cost. Raises BundleError, DeviceUnavailable."""
    variant = bundle.manifest.variant(config.variant)
    if config.invariant and variant.name in PAGED:
        raise BundleError(
            f"invariant was asked for, but variant {variant.name} computes each row in one run "
            "with whatever shares its batch; use another variant, or leave invariant out"
        )
    device = resolve_device(config.device, variant.devices)
    causal = bundle.manifest.architecture.kind == "causal"
    if config.runs_at_once > 1 and not (causal and device == "cpu"):
        raise BundleError(
            f"runs_at_once: {config.runs_at_once}, but on {device} this "
            f"{bundle.manifest.architecture.kind} model runs one batch at a time; leave it out"
        )
    if device == "cuda":
        return _on_cuda(bundle, config)
    if config.invariant and not variant.bit_invariant:
        raise BundleError(
            f"invariant was asked for, but variant {variant.name} does not reproduce its bits on "
            "this CPU in every batch; use variant fp32, or leave invariant out"
        )
    common = bundle, config.variant, device, config.threads
    if not causal:
        return EncoderEngine(*common), TYPICAL
    memory = config.prefix_cache_bytes, config.max_state_bytes, config.runs_at_once
    if variant.ragged:
        return RaggedEngine(bundle, config.variant, config.threads, *memory), TYPICAL
    engine = OnnxEngine(*common, *memory)
    return engine, warmup.measure_costs(engine, bundle.manifest.text.max_tokens)


def limits(engine: Engine, bundle: Bundle, config: ServiceConfig) -> Limits:
    """What a batch may hold on this engine."""
    tokens = _batch_tokens(config, engine.device)
    if engine.pool:
        return PackedBudget(tokens, engine.pool.blocks, engine.pool.block_tokens)
    token_bytes = 2 * bundle.manifest.architecture.state_bytes_per_token()
    state_tokens = max(1, config.max_state_bytes // config.runs_at_once // token_bytes)
    if isinstance(engine, RaggedEngine):
        return RaggedBudget(tokens, state_tokens)
    padded = Budget(tokens, config.max_padding, buckets=engine.buckets)
    if not engine.shares_prefixes:  # then it holds no states
        return replace(padded, share_prefixes=False)
    return replace(padded, state_tokens=state_tokens)


def _batch_tokens(config: ServiceConfig, device: str) -> int:
    return config.max_batch_tokens or BATCH_TOKENS[device]


def _on_cuda(bundle: Bundle, config: ServiceConfig) -> tuple[Engine, Costs]:
    if config.variant in PAGED:
        return _paged(bundle, config), TYPICAL
    tokens = _batch_tokens(config, "cuda")
    buckets = Buckets(bundle.manifest.text.max_tokens, tokens, config.invariant)
    padded = PaddedEngine(
        bundle, config.variant, "cuda", buckets, config.threads, config.gpu_memory_bytes
    )
    return padded, padded.warm()


def _paged(bundle: Bundle, config: ServiceConfig) -> PagedEngine:
    paged = PagedEngine.open(
        bundle,
        config.variant,
        "cuda",
        config.max_state_bytes,
        config.threads,
        config.gpu_memory_bytes,
    )
    paged.warm(_batch_tokens(config, "cuda"))
    return paged
