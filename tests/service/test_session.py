"""Whoever asks for CUDA gets it or a clear error; this machine has none."""

import importlib.metadata
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnxruntime
import pytest

from service import bundle as bundles
from service.bundle import Bundle
from service.config import ServiceConfig
from service.errors import BundleError, DeviceUnavailable
from service.machine import accelerator
from service.scorer import Scorer
from service.session import (
    cuda_options,
    heavy_on_cpu,
    open_session,
    out_of_memory,
    refuse_two_runtimes,
)


def test_cuda_on_a_runtime_without_it_is_an_error_with_the_way_out(bundle: Bundle) -> None:
    with pytest.raises(DeviceUnavailable, match='no CUDA provider; install the "gpu" extra'):
        open_session(bundle, "fp32", "cuda")
    with pytest.raises(DeviceUnavailable, match="use --device cpu"):
        Scorer.open(ServiceConfig(bundle=bundle.path, device="cuda"))
    assert open_session(bundle, "fp32", "auto").device == "cpu"


@pytest.mark.parametrize(
    "arguments", [("verify",), ("run", "--port=0"), ("score", "--data=none.jsonl", "--out=none")]
)
def test_every_command_refuses_a_device_that_is_not_there(bundle: Bundle, arguments) -> None:
    command, *options = arguments
    done = subprocess.run(
        [sys.executable, "-m", "service", command, str(bundle.path), "--device=cuda", *options],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("reward-serve: device cuda was asked for")
    assert len(done.stderr.splitlines()) == 1


def test_nodes_of_layers_on_the_cpu_are_found_and_named(bundle: Bundle) -> None:
    """On this machine all of them are there; shapes and positions are not counted."""
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    graph = bundle.file(bundle.manifest.variant("fp32").graph)
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    found = [node.split()[0] for node in heavy_on_cpu(session)]
    layers = bundle.manifest.architecture.layers
    assert found.count("Attention") == layers
    # per layer query, key, value, output, gate, up, down; and the head
    assert found.count("MatMul") + found.count("Gemm") == 7 * layers + 1
    assert not {"Shape", "Range", "Gather", "Concat", "Slice"} & set(found)


def test_a_limit_of_memory_is_given_only_where_there_is_one() -> None:
    assert "gpu_mem_limit" not in cuda_options()
    assert cuda_options(1 << 30)["gpu_mem_limit"] == str(1 << 30)
    assert cuda_options()["use_tf32"] == "0"


@pytest.mark.parametrize(
    "message",
    [
        "Available memory of 4096 is smaller than requested bytes of 8192",  # the arena's limit
        "Failed to allocate memory for requested buffer of size 8192",
        "CUDA failure 2: out of memory ; GPU=0",
    ],
)
def test_a_shortage_of_gpu_memory_is_told_from_other_failures(message: str) -> None:
    assert out_of_memory(RuntimeError(f"[ONNXRuntimeError] : 6 : {message}"))
    assert not out_of_memory(RuntimeError("[ONNXRuntimeError] : 2 : Invalid rank for input"))


def _installed(path: Path, name: str) -> importlib.metadata.Distribution:
    metadata = path / f"{name.replace('-', '_')}-1.31.1.dist-info" / "METADATA"
    metadata.parent.mkdir(parents=True)
    metadata.write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.31.1\n")
    return importlib.metadata.Distribution.at(metadata.parent)


def test_two_runtimes_in_one_directory_are_refused_in_two_they_are_not(tmp_path: Path) -> None:
    cpu = _installed(tmp_path / "a", "onnxruntime")
    refuse_two_runtimes([cpu, _installed(tmp_path / "b", "onnxruntime-gpu")])
    with pytest.raises(DeviceUnavailable, match="pip uninstall both"):
        refuse_two_runtimes([cpu, _installed(tmp_path / "a", "onnxruntime-gpu")])


def rewrite(copy: Path, bundle: Bundle, **changed: Any) -> None:
    """The bundle's copy gets its manifest with something else in it."""
    names = ("name", "architecture", "text", "normalization", "variants", "evaluation")
    parts = {name: getattr(bundle.manifest, name) for name in (*names, "provenance")}
    bundles.write_manifest(copy, **parts | changed)


def test_invariant_on_a_cpu_needs_a_variant_that_promises_it(bundle: Bundle, copy: Path) -> None:
    Scorer.open(ServiceConfig(bundle=bundle.path, device="cpu", invariant=True)).close()
    (fp32,) = bundle.manifest.variants
    rewrite(copy, bundle, variants=(fp32.model_copy(update={"bit_invariant": False}),))
    with pytest.raises(BundleError, match="use variant fp32, or leave invariant out"):
        Scorer.open(ServiceConfig(bundle=copy, device="cpu", invariant=True))


def test_a_gpu_that_runs_one_batch_at_a_time_refuses_more(bundle: Bundle, monkeypatch) -> None:
    monkeypatch.setattr("service.engines.resolve_device", lambda *_: "cuda")
    with pytest.raises(BundleError, match="runs_at_once: 2, but a GPU runs one batch at a time"):
        Scorer.open(ServiceConfig(bundle=bundle.path, runs_at_once=2))


def test_the_gpu_is_named_as_its_driver_does(tmp_path: Path) -> None:
    assert accelerator(tmp_path) == "gpu"
    file = tmp_path / "gpus" / "0000:01:00.0" / "information"
    file.parent.mkdir(parents=True)
    file.write_text("Model: \t\t NVIDIA H200\nIRQ:   \t\t 68\n")
    assert accelerator(tmp_path) == "NVIDIA-H200"
