"""Which engine runs a variant on a device. Knows engines; knows nothing of text."""

from service import warmup
from service.buckets import Buckets
from service.bundle import Bundle
from service.config import ServiceConfig
from service.encoder_engine import EncoderEngine
from service.engine import Engine, OnnxEngine
from service.errors import BundleError
from service.padded_engine import PaddedEngine
from service.prefix import TYPICAL, Costs
from service.session import resolve_device


def open_engine(bundle: Bundle, config: ServiceConfig) -> tuple[Engine, Costs]:
    """An engine that has run, and what its runs cost. Raises BundleError, DeviceUnavailable."""
    variant = bundle.manifest.variant(config.variant)
    device = resolve_device(config.device, variant.devices)
    if device == "cuda":
        return _on_cuda(bundle, config)
    if config.invariant and not variant.bit_invariant:
        raise BundleError(
            f"invariant was asked for, but variant {variant.name} does not reproduce its bits on "
            "this CPU in every batch; use variant fp32, or leave invariant out"
        )
    common = bundle, config.variant, device, config.threads
    if bundle.manifest.architecture.kind == "bidirectional":
        return EncoderEngine(*common), TYPICAL
    engine = OnnxEngine(*common, config.prefix_cache_bytes, config.max_state_bytes)
    return engine, warmup.measure_costs(engine, bundle.manifest.text.max_tokens)


def _on_cuda(bundle: Bundle, config: ServiceConfig) -> tuple[Engine, Costs]:
    buckets = Buckets(bundle.manifest.text.max_tokens, config.max_batch_tokens, config.invariant)
    engine = PaddedEngine(
        bundle, config.variant, "cuda", buckets, config.threads, config.gpu_memory_bytes
    )
    return engine, engine.warm()
