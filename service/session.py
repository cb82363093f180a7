"""Opening an ONNX Runtime session on a device. Knows providers and options; knows no rows.

Whoever asks for CUDA gets CUDA or DeviceUnavailable. The runtime by itself does otherwise: where
its CUDA libraries are missing it logs a line, and where a node has no CUDA kernel it says nothing;
both then run on the CPU, a hundred times slower.
"""

import contextlib
import importlib.metadata
import io
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from service.bundle import Bundle
from service.errors import BundleError, DeviceUnavailable
from service.machine import accelerator, instruction_set, usable_cpus
from service.weights import refuse_other_weights

CUDA = "CUDAExecutionProvider"
CPU = "CPUExecutionProvider"
HEAVY = frozenset(
    {
        *("MatMul", "Gemm", "FusedMatMul", "MatMulNBits", "Einsum", "Conv"),
        *("Attention", "MultiHeadAttention", "GroupQueryAttention", "PagedAttention"),
        *("RMSNormalization", "LayerNormalization", "SimplifiedLayerNormalization"),
        *("SkipSimplifiedLayerNormalization", "SkipLayerNormalization", "RotaryEmbedding"),
        *("Softmax", "Gelu", "Sigmoid", "Swish"),
    }
)
"""Operators of a layer. The runtime keeps nodes on the CPU that compute shapes, and is right to:
`session.disable_cpu_ep_fallback` refuses those as well, so it is not set."""
SDPA_KERNELS = 1 | 2 | 16
"""Flash, memory-efficient and unfused attention: all but cuDNN's (8), which makes a plan for every
new shape. A bit mask, AttentionBackend in the runtime's attention_common.h."""


@dataclass(frozen=True, slots=True)
class Session:
    """An open graph."""

    ort: Any
    "onnxruntime.InferenceSession"
    device: str
    "cpu or cuda"
    fingerprint: str
    "runtime, version and device: with the bundle id, what decides the bits"


def open_session(
    bundle: Bundle,
    variant: str,
    device: str,
    threads: int = 0,
    *,
    graph: str = "",
    fixed_shapes: bool = False,
    spinning: bool = True,
    gpu_memory_bytes: int = 0,
    invariant: bool = False,
) -> Session:
    """Open a variant's graph on `device` (auto, cpu or cuda).

    threads: of the CPU; 0: as many as the process may use. graph: the file, where it is not the
    variant's main one. fixed_shapes: few shapes come again and again, so the runtime keeps a memory
    plan for each. spinning: a thread that waits for others of its run keeps its core, which is best
    where nothing else wants it. gpu_memory_bytes: limit of the activations on CUDA, weights apart;
    0: none. invariant: only deterministic kernels.
    Raises DeviceUnavailable, BundleError.
    """
    chosen = bundle.manifest.variant(variant)
    graph = graph or chosen.graph
    device = resolve_device(device, chosen.devices)
    refuse_other_weights(bundle, chosen, graph)
    ort = onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads or usable_cpus(), 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.enable_mem_pattern = fixed_shapes  # it keeps a plan for every shape it has seen
    options.use_deterministic_compute = invariant
    if not spinning:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # whatever its name: of a file called .ort it would read another format
    options.add_session_config_entry("session.load_model_format", "ONNX")
    options.log_severity_level = 3
    providers: list[Any] = [CPU]
    missing = ""
    if device == "cuda":
        missing = _preload(ort)
        options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        providers.insert(0, (CUDA, cuda_options(gpu_memory_bytes)))
    try:
        session = ort.InferenceSession(os.fspath(bundle.file(graph)), options, providers=providers)
    except Exception as error:  # onnxruntime has a dozen classes for it
        if device == "cuda" and "CUDA failure" in str(error):  # a driver that is too old, say
            raise DeviceUnavailable(
                f"device cuda was asked for, and failed: {error}; see `nvidia-smi` for the driver, "
                "which CUDA 13 needs at 580 or later, or use --device cpu"
            ) from error
        raise BundleError(f"{graph}: ONNX Runtime cannot open it: {error}", field=graph) from error
    if device == "cuda":
        _insist_on_cuda(session, missing)
    where = f"cuda {accelerator()}" if device == "cuda" else f"cpu {instruction_set()}"
    threading = f"threads={options.intra_op_num_threads}"
    fixed = " invariant" if invariant and device == "cuda" else ""
    return Session(session, device, f"onnxruntime-{ort.__version__} {where} {threading}{fixed}")


def cuda_options(gpu_memory_bytes: int = 0) -> dict[str, str]:
    """Of the CUDA provider. No TF32: it keeps 10 bits of fp32's 23. The arena takes what is asked
    for and not the next power of two: the shapes are few and the largest one comes first."""
    options = {
        "use_tf32": "0",
        "arena_extend_strategy": "kSameAsRequested",
        "sdpa_kernel": str(SDPA_KERNELS),
    }
    return options | ({"gpu_mem_limit": str(gpu_memory_bytes)} if gpu_memory_bytes else {})


def resolve_device(device: str, supported: Sequence[str]) -> str:
    """ "cpu" or "cuda" for a request of auto, cpu or cuda. Raises DeviceUnavailable."""
    if device == "cuda" and not _has_cuda():
        raise DeviceUnavailable(
            "device cuda was asked for, but this onnxruntime has no CUDA provider; "
            'install the "gpu" extra instead of "cpu", or use --device cpu'
        )
    if device == "auto":
        # last: it loads the runtime, into the process that only starts Ray as well
        usable = "cuda" in supported and Path("/dev/nvidiactl").exists() and _has_cuda()
        device = "cuda" if usable else "cpu"
    if device not in supported:
        raise DeviceUnavailable(f"device {device}: this variant supports {', '.join(supported)}")
    return device


def _has_cuda() -> bool:
    return CUDA in onnxruntime().get_available_providers()


def heavy_on_cpu(session: Any) -> list[str]:
    """Nodes of a layer that were placed on the CPU, as `MatMul node_linear`.

    session: an InferenceSession with session.record_ep_graph_assignment_info set.
    """
    return [
        f"{node.op_type} {node.name}"
        for part in session.get_provider_graph_assignment_info()
        if part.ep_name == CPU
        for node in part.get_nodes()
        if node.op_type in HEAVY
    ]


def out_of_memory(error: Exception) -> bool:
    """ONNX Runtime has no class for it: its arenas and CUDA say so in words."""
    said = str(error).lower()
    return isinstance(error, MemoryError) or any(
        words in said
        for words in (
            *("failed to allocate memory", "out of memory", "bad_alloc"),
            *("available memory of", "cublas_status_alloc_failed"),
        )
    )


@cache
def onnxruntime() -> Any:
    """The runtime, its telemetry off: the wheel would report model and graph names by default."""
    refuse_two_runtimes(importlib.metadata.distributions())
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # read when it is imported
    import onnxruntime

    return onnxruntime


def refuse_two_runtimes(installed: Iterable[importlib.metadata.Distribution]) -> None:
    """onnxruntime and onnxruntime-gpu install the same files: the later one wins, silently.

    Only where they lie in one directory; of two directories the first on the path is taken whole.
    """
    names: dict[str, set[str]] = defaultdict(set)
    for distribution in installed:
        if distribution.name:
            names[str(distribution.locate_file(""))].add(distribution.name.lower())
    if any({"onnxruntime", "onnxruntime-gpu"} <= here for here in names.values()):
        raise DeviceUnavailable(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other; "
            "pip uninstall both, then install one of the extras cpu and gpu"
        )


def _preload(ort: Any) -> str:
    """Load CUDA's libraries from pip's packages, where the loader does not look; which it missed.

    What is loaded already, by PyTorch say, is found as well.
    """
    said = io.StringIO()  # it prints
    with contextlib.redirect_stdout(said):
        ort.preload_dlls()
    lines = said.getvalue().splitlines()
    return "; ".join(line for line in lines if line.startswith("Failed to load"))


def _insist_on_cuda(session: Any, missing: str) -> None:
    if session.get_providers()[0] != CUDA:
        raise DeviceUnavailable(
            "device cuda was asked for, but ONNX Runtime could not start its CUDA provider"
            f"{': ' + missing if missing else ''}; "
            'install the "gpu" extra and a driver for CUDA 13, or use --device cpu'
        )
    if nodes := heavy_on_cpu(session):
        raise DeviceUnavailable(
            f"device cuda was asked for, but ONNX Runtime placed {len(nodes)} nodes of the layers "
            f"on the CPU: {', '.join(nodes[:5])}; their operators or types have no CUDA kernel in "
            "this build; use another variant, or --device cpu"
        )
