"""Rows of measurements -> medians of ratios, goals, a printed table, a dated JSON, a plot."""

import json
import platform
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from service.machine import instruction_set, usable_cpus

Row = dict[str, Any]
VLLM_BYTES = 6.1 * 1024**3
"memory of vLLM on CPU with the same model (2 cores of an AMD EPYC, 20 Nov 2026)"
SYSTEMS = ("service", "offline", "serve_batch", "one_by_one")
AVERAGED = (
    *("pairs_per_s", "useful_tokens_per_s", "tokens_per_s", "p50_ms", "p99_ms", "of_roofline"),
    *("roofline_pairs_per_s", "client_cpu", "padding_share", "prefix_hit_rate", "rows_per_run"),
)


def summary(rows: list[Row]) -> dict[str, dict[str, Row]]:
    """Medians over the rounds: workload -> system -> figures, with the ratio to every other one."""
    medians: dict[str, dict[str, Row]] = {}
    for row in rows:
        medians.setdefault(row["workload"], {}).setdefault(row["system"], {})
    for workload, systems in medians.items():
        for system in systems:
            own = _rounds(rows, workload, system)
            systems[system] = {
                name: statistics.median(values)
                for name in AVERAGED
                if (values := [row[name] for row in own if row.get(name) is not None])
            }
            systems[system]["over"] = {
                other: _ratio(own, _rounds(rows, workload, other))
                for other in systems
                if other != system
            }
    return medians


def _rounds(rows: list[Row], workload: str, system: str) -> list[Row]:
    return [row for row in rows if (row["workload"], row["system"]) == (workload, system)]


def _ratio(own: list[Row], other: list[Row]) -> float:
    return statistics.median(
        a["pairs_per_s"] / b["pairs_per_s"] for a, b in zip(own, other, strict=True)
    )


def goals(result: dict[str, Any]) -> list[tuple[str, float, float, bool]]:
    """(what, measured, goal, reached) of everything that this run measured."""
    medians = summary(result["rows"])
    found: list[tuple[str, float, float, bool]] = []

    def at_least(what: str, goal: float, value: Callable[[], float]) -> None:
        try:
            found.append((what, value(), goal, value() >= goal))
        except KeyError:  # this run left it out
            pass

    def at_most(what: str, goal: float, value: Callable[[], float]) -> None:
        try:
            found.append((what, value(), goal, value() <= goal))
        except KeyError:
            pass

    for workload, goal in (("groups", 0.83), ("groups", 0.75), ("singles", 0.70), ("long", 0.75)):
        at_least(
            f"{workload}: service / roofline",
            goal,
            lambda w=workload: medians[w]["service"]["of_roofline"],
        )
    for workload in ("singles", "batches", "groups"):
        at_least(
            f"{workload}: service / offline limit",
            0.92,
            lambda w=workload: medians[w]["service"]["over"]["offline"],
        )
    at_least(
        "groups: service / best @serve.batch",
        4.0,
        lambda: medians["groups"]["service"]["over"]["serve_batch"],
    )
    at_most(
        "one: p50 beyond the engine, ms", 2.0, lambda: result["one"]["beyond_engine_p50_ms"]
    )
    at_most(
        "mixed: p99 of singles, with / without",
        3.0,
        lambda: result["mixed"]["during_p99_ms"] / result["mixed"]["alone_p99_ms"],
    )
    at_least("no-op: service / empty application", 0.6, lambda: result["no_op"]["ratio"])
    at_most("memory of the service / vLLM's", 0.25, lambda: result["pss_bytes"] / VLLM_BYTES)
    return found


def write(prefix: Path, result: dict[str, Any]) -> None:
    """PREFIX.json and PREFIX.png, and the tables on standard output."""
    result["machine"] = {
        "cpus": usable_cpus(),
        "instructions": instruction_set(),
        "processor": _processor(),
        "python": platform.python_version(),
    }
    result["medians"] = summary(result["rows"])
    result["goals"] = [
        {"what": what, "measured": value, "goal": goal, "reached": reached}
        for what, value, goal, reached in goals(result)
    ]
    prefix.parent.mkdir(parents=True, exist_ok=True)
    prefix.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    _print(result)
    if result["rows"]:
        plot(prefix.with_suffix(".png"), result)
    print(f"{prefix}.json, {prefix}.png; {result['seconds']:.0f} s")


def _processor() -> str:
    info = Path("/proc/cpuinfo").read_text().splitlines()
    return next((x.partition(":")[2].strip() for x in info if x.startswith("model name")), "")


def _print(result: dict[str, Any]) -> None:
    console = Console(width=150)
    columns = {
        "pairs/s": ("pairs_per_s", "{:.1f}"),
        "useful tokens/s": ("useful_tokens_per_s", "{:,.0f}"),
        "of roofline": ("of_roofline", "{:.1%}"),
        "p50 ms": ("p50_ms", "{:.0f}"),
        "p99 ms": ("p99_ms", "{:.0f}"),
        "padding": ("padding_share", "{:.1%}"),
        "prefix hits": ("prefix_hit_rate", "{:.1%}"),
        "rows/run": ("rows_per_run", "{:.1f}"),
        "client CPU": ("client_cpu", "{:.1%}"),
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
            console.print(f"{name}: {_figures(result[name])}")
    for goal in result["goals"]:
        mark = "reached" if goal["reached"] else "MISSED "
        console.print(f"{mark}  {goal['what']}: {goal['measured']:.3f} (goal {goal['goal']})")


def _figures(row: Row) -> str:
    return ", ".join(f"{k} {v:.2f}" for k, v in row.items() if isinstance(v, int | float))


COLOURS = {
    "service": "#2a6fbb",
    "offline": "#8db8e0",
    "serve_batch": "#c8a15a",
    "one_by_one": "#b0b0b0",
}


def plot(file: Path, result: dict[str, Any]) -> None:
    """Every system's share of the roofline, workload by workload; a dot per round."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    workloads = list(result["medians"])
    figure, axes = pyplot.subplots(figsize=(8, 4.2), layout="constrained")
    for i, system in enumerate(SYSTEMS):
        shares = [result["medians"][w].get(system, {}).get("of_roofline", 0) for w in workloads]
        places = [at + (i - 1.5) * 0.2 for at in range(len(workloads))]
        bars = axes.bar(places, shares, 0.19, color=COLOURS[system], label=system)
        rates = [result["medians"][w].get(system, {}).get("pairs_per_s") for w in workloads]
        axes.bar_label(bars, [f"{r:.0f}/s" if r else "" for r in rates], fontsize=7, padding=2)
        for at, workload in zip(places, workloads, strict=True):
            rounds = [row["of_roofline"] for row in _rounds(result["rows"], workload, system)]
            axes.plot([at] * len(rounds), rounds, ".", color="black", markersize=3)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_xticks(range(len(workloads)), workloads)
    axes.set_ylabel("share of the fp32 roofline,\nevery distinct prefix computed once")
    axes.set_ylim(0, 1.05)
    axes.legend(ncols=4, loc="upper center", bbox_to_anchor=(0.5, 1.12), frameon=False)
    figure.savefig(file, dpi=150)
    pyplot.close(figure)
