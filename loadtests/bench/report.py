"""Rows of measurements -> medians of ratios, goals, a printed table, a dated JSON, a plot."""

import json
import platform
import statistics
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from loadtests.bench.goals import goals
from loadtests.bench.plan import Row, rows_of
from loadtests.bench.plot import SYSTEMS, plot
from service.machine import instruction_set, usable_cpus

AVERAGED = (
    *("pairs_per_s", "useful_tokens_per_s", "tokens_per_s", "p50_ms", "p99_ms", "of_roofline"),
    "of_pruned_roofline",
    *("roofline_pairs_per_s", "client_cpu", "padding_share", "prefix_hit_rate", "rows_per_run"),
    "other_cpu",
)


def summary(rows: list[Row]) -> dict[str, dict[str, Row]]:
    """Medians over the rounds: workload -> system -> figures, with the ratio to every other one."""
    medians: dict[str, dict[str, Row]] = {}
    for row in rows:
        medians.setdefault(row["workload"], {}).setdefault(row["system"], {})
    for workload, systems in medians.items():
        for system in systems:
            own = rows_of(rows, workload, system)
            systems[system] = {
                name: statistics.median(values)
                for name in AVERAGED
                if (values := [row[name] for row in own if row.get(name) is not None])
            }
            systems[system]["over"] = {
                other: _ratio(own, rows_of(rows, workload, other))
                for other in systems
                if other != system
            }
    return medians


def _ratio(own: list[Row], other: list[Row]) -> float:
    return statistics.median(
        a["pairs_per_s"] / b["pairs_per_s"] for a, b in zip(own, other, strict=True)
    )


def write(prefix: Path, result: dict[str, Any]) -> None:
    """PREFIX.json and PREFIX.png, and the tables on standard output."""
    result["medians"] = summary(result["rows"])
    result["goals"] = [
        {"what": goal.what, "measured": goal.measured, "goal": goal.goal, "reached": goal.reached}
        for goal in goals(result)
    ]
    save(prefix.with_suffix(".json"), result)
    _print(result)
    if result["rows"]:
        plot(prefix.with_suffix(".png"), result)
    print(f"{prefix}.json, {prefix}.png; {result['seconds']:.0f} s")


def save(file: Path, result: dict[str, Any]) -> None:
    """As JSON, with the machine it was measured on."""
    machine = {
        "cpus": usable_cpus(),
        "instructions": instruction_set(),
        "processor": _processor(),
        "python": platform.python_version(),
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"machine": machine, **result}, indent=1) + "\n")


def _processor() -> str:
    info = Path("/proc/cpuinfo").read_text().splitlines()
    return next((x.partition(":")[2].strip() for x in info if x.startswith("model name")), "")


def _print(result: dict[str, Any]) -> None:
    console = Console(width=170)
    columns = {
        "pairs/s": ("pairs_per_s", "{:.1f}"),
        "useful tokens/s": ("useful_tokens_per_s", "{:,.0f}"),
        "of roofline": ("of_roofline", "{:.1%}"),
        "pruned": ("of_pruned_roofline", "{:.1%}"),
        "p50 ms": ("p50_ms", "{:.0f}"),
        "p99 ms": ("p99_ms", "{:.0f}"),
        "padding": ("padding_share", "{:.1%}"),
        "prefix hits": ("prefix_hit_rate", "{:.1%}"),
        "rows/run": ("rows_per_run", "{:.1f}"),
        "client CPU": ("client_cpu", "{:.1%}"),
        "others' CPU": ("other_cpu", "{:.1%}"),
    }
    table = Table(title="medians of the rounds")
    for name in ("workload", "system", *columns, "service is"):
        table.add_column(name, justify="left" if name in ("workload", "system") else "right")
    for workload, systems in result["medians"].items():
        for system in sorted(systems, key=SYSTEMS.index):
            row = systems[system]
            cells = [form.format(row[key]) if key in row else "" for key, form in columns.values()]
            ratio = systems["service"]["over"].get(system)
            table.add_row(workload, system, *cells, f"{ratio:.2f}x" if ratio else "")
        roofline = systems["service"]["roofline_pairs_per_s"]
        table.add_row(workload, "roofline", f"{roofline:.1f}", end_section=True)
    console.print(table)
    for name in ("one", "mixed", "no_op"):
        if name in result:
            console.print(f"{name}: {figures(result[name])}")
    largest = sorted(result["pss_by_process"].items(), key=lambda each: -each[1])[:4]
    parts = ", ".join(f"{name} {size / 2**20:.0f}" for name, size in largest)
    console.print(f"memory: {result['pss_bytes'] / 2**20:.0f} MiB, of which {parts}")
    for goal in result["goals"]:
        mark = "reached" if goal["reached"] else "MISSED "
        console.print(f"{mark}  {goal['what']}: {goal['measured']:.3f} (goal {goal['goal']})")


def figures(row: Row) -> str:
    return ", ".join(f"{k} {v:.2f}" for k, v in row.items() if isinstance(v, int | float))
