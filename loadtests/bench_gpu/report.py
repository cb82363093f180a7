"""Rows of measurements -> a table, a dated JSON, a plot. Knows a result; measures nothing."""

import json
import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import matplotlib
import torch
from rich.console import Console
from rich.table import Table

matplotlib.use("Agg")
from matplotlib import pyplot

NO_GPU = "CPU self-test of the benchmark's code: no figure of a GPU"
LIBRARIES = ("onnxruntime-gpu", "onnxruntime", "torch", "transformers", "ray")
COLOURS = ("#2a6fbb", "#8db8e0", "#c8a15a", "#b0b0b0", "#7a9e6b")
COLUMNS = {
    "pairs/s": ("pairs_per_s", "{:,.1f}"),
    "tokens/s": ("tokens_per_s", "{:,.0f}"),
    "TFLOP/s": ("useful_flop_per_s", "{:.3g}"),
    "of ceiling": ("of_ceiling", "{:.1%}"),
    "pruned": ("of_ceiling_pruned", "{:.1%}"),
    "padding": ("padding_share", "{:.1%}"),
    "prefix saving": ("prefix_saving", "{:.1%}"),
    "loop gap": ("loop_gap", "{:.1%}"),
    "device idle": ("device_idle", "{:.1%}"),
    "p50 ms": ("p50_ms", "{:.1f}"),
    "p99 ms": ("p99_ms", "{:.1f}"),
}


def machine(device: str) -> dict[str, Any]:
    """What the figures were measured on."""
    found = {
        "python": platform.python_version(),
        "libraries": {name: known for name in LIBRARIES if (known := _version(name))},
    }
    if device != "cuda":
        return found | {"device": "cpu"}
    driver = ""
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = subprocess.run(query, capture_output=True, text=True).stdout.split("\n")[0]
    return found | {
        "device": torch.cuda.get_device_name(),
        "driver": driver,
        "cuda": torch.version.cuda,
        "memory_bytes": torch.cuda.get_device_properties(0).total_memory,
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def save(prefix: Path, result: dict[str, Any]) -> None:
    """PREFIX.json; after every part, so that a run which is stopped leaves what it has."""
    prefix.parent.mkdir(parents=True, exist_ok=True)
    prefix.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")


def write(prefix: Path, result: dict[str, Any]) -> None:
    """PREFIX.json and PREFIX.png, and the table on standard output."""
    save(prefix, result)
    _print(result)
    if result["rows"]:
        _plot(prefix.with_suffix(".png"), result)
    print(f"{prefix}.json, {prefix}.png; {result['seconds']:.0f} s")


def title(result: dict[str, Any]) -> str:
    known, ceilings = result["machine"], result["ceilings"]
    rates = (
        f"{ceilings['flop_per_s'] / 1e12:.3g} TFLOP/s in a {ceilings['cube']} cube of "
        f"{ceilings['dtype']}, copies {ceilings['bytes_per_s'] / 1e9:,.0f} GB/s"
    )
    where = NO_GPU if known["device"] == "cpu" else f"{known['device']}, driver {known['driver']}"
    return f"{where}; {rates}; {result['date']}"


def _print(result: dict[str, Any]) -> None:
    console = Console(width=190)
    table = Table(title=title(result))
    for name in ("model", "workload", "system"):
        table.add_column(name)
    for name in COLUMNS:
        table.add_column(name, justify="right")
    for row in result["rows"]:
        shown = row | {"useful_flop_per_s": row["useful_flop_per_s"] / 1e12}
        cells = [
            form.format(shown[key]) if shown.get(key) is not None else ""
            for key, form in COLUMNS.values()
        ]
        table.add_row(row["model"], row["workload"], row["system"], *cells)
    console.print(table)
    for measured in result["invariance"]:
        console.print(
            f"{measured['model']} {measured['system']}: {measured['same_bits']:.2%} of "
            f"{measured['rows']} rewards in {measured['runs']} random batches have the bits they "
            f"have alone, the furthest is {measured['largest_ulp']} ULP and "
            f"{measured['largest_distance'] / measured['reward_std']:.2g} of their standard "
            f"deviation away; {measured['ulp']}"
        )
    for measured in result["parity"]:
        console.print(
            f"{measured['model']} {measured['system']}: {measured['rows']} rewards within "
            f"{measured['largest_of_std']:.2g} of PyTorch's in fp32 in units of their standard "
            f"deviation, root mean square {measured['rms_of_std']:.2g}, rank correlation "
            f"{measured['spearman']:.5f}"
        )
    for note in (*result["notes"], *(f"FAILED {each}" for each in result["failed"])):
        console.print(note)


def _plot(file: Path, result: dict[str, Any]) -> None:
    """Every system's share of the ceiling, workload by workload."""
    rows = result["rows"]
    places = list(dict.fromkeys((row["model"], row["workload"]) for row in rows))
    systems = list(dict.fromkeys(row["system"] for row in rows))
    width = 0.8 / len(systems)
    figure, axes = pyplot.subplots(figsize=(3 + 1.2 * len(places), 4.2), layout="constrained")
    for i, system in enumerate(systems):
        own = [row for row in rows if row["system"] == system]
        at = [places.index((row["model"], row["workload"])) for row in own]
        left = [place + (i - (len(systems) - 1) / 2) * width for place in at]
        shares = [row["of_ceiling"] for row in own]
        bars = axes.bar(left, shares, width * 0.95, label=system, color=COLOURS[i % len(COLOURS)])
        axes.bar_label(bars, [_rate(row["pairs_per_s"]) for row in own], fontsize=6, padding=2)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_xticks(range(len(places)), [f"{model}\n{workload}" for model, workload in places])
    axes.set_ylabel("useful FLOP over the measured ceiling,\nevery distinct prefix computed once")
    axes.set_title(title(result), fontsize=7)
    axes.legend(fontsize=7, frameon=False)
    figure.savefig(file, dpi=150)
    pyplot.close(figure)


def _rate(pairs_per_s: float) -> str:
    return f"{pairs_per_s:.{0 if pairs_per_s >= 100 else 1}f}/s"
