"""The plot of a run. Knows a result; knows nothing of how it was measured."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

from loadtests.bench.plan import rows_of

SYSTEMS = ("service", "one_run", "offline", "serve_batch", "one_by_one")
COLOURS = {
    "service": "#2a6fbb",
    "one_run": "#5a9a68",
    "offline": "#8db8e0",
    "serve_batch": "#c8a15a",
    "one_by_one": "#b0b0b0",
}


def plot(file: Path, result: dict[str, Any]) -> None:
    """Every system's share of the roofline, workload by workload; a dot per round."""
    medians = result["medians"]
    figure, axes = pyplot.subplots(figsize=(8, 4.2), layout="constrained")
    shown = [s for s in SYSTEMS if any(s in medians[workload] for workload in medians)]
    for i, system in enumerate(shown):
        aside = (i - (len(shown) - 1) / 2) * 0.8 / len(shown)
        here = {at + aside: w for at, w in enumerate(medians) if system in medians[w]}
        shares = [medians[workload][system]["of_roofline"] for workload in here.values()]
        bars = axes.bar(list(here), shares, 0.76 / len(shown), color=COLOURS[system], label=system)
        rates = [f"{medians[workload][system]['pairs_per_s']:.0f}/s" for workload in here.values()]
        axes.bar_label(bars, rates, fontsize=7, padding=2)
        for at, workload in here.items():
            rounds = [r["of_roofline"] for r in rows_of(result["rows"], workload, system)]
            axes.plot([at] * len(rounds), rounds, ".", color="black", markersize=3)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_xticks(range(len(medians)), list(medians))
    axes.set_ylabel("share of the fp32 roofline,\nevery distinct prefix computed once")
    axes.set_ylim(0, 1.05)
    axes.legend(ncols=5, loc="upper center", bbox_to_anchor=(0.5, 1.12), frameon=False)
    figure.savefig(file, dpi=150)
    pyplot.close(figure)
