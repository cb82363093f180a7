"""The report as one HTML file: no script, no font, no image, no address to fetch anything from.

Texts of the data are escaped by the template engine, never marked safe; only our own drawings are.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from training.report import findings, plots
from training.run import write_whole
from training.tables import check_rows, number, percent

TEMPLATE = "page.html.jinja"
JSON, HTML = "report.json", "report.html"


def write(report: dict[str, Any], directory: Path) -> None:
    """report.html and report.json, each whole or not at all; the second says that all is done."""
    content = json.dumps(report, indent=2, allow_nan=False) + "\n"
    directory.mkdir(parents=True, exist_ok=True)
    write_whole(directory / HTML, render(report))
    write_whole(directory / JSON, content)


def render(report: dict[str, Any]) -> str:
    """The page of a report that has `name`, `evaluation` and `figures`; the rest may be absent."""
    checks = (report.get("data") or {}).get("checks")
    return _template().render(
        report=report,
        evaluation=report["evaluation"],
        headline=Markup(plots.headline(report)),
        figures=list(_figures(report)),
        meaning=findings.meaning(report),
        weaknesses=findings.weaknesses(report),
        numbers=list(_numbers(report["evaluation"])),
        checks=check_rows(checks) if checks else [],
        provenance=list(_provenance(report)),
        wrong=report["figures"]["wrong"],
    )


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("training.report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["thousands"] = lambda n: f"{n:,}"
    return environment.get_template(TEMPLATE)


CAPTIONS = {
    "subsets": (
        "Accuracy by subset",
        "Share of comparisons in which the preferred response has the higher reward, with 95 % "
        "intervals. The dashed line is the whole set.",
    ),
    "margins": (
        "Margins",
        "How far the preferred response lies above the other. Left of 0 the model disagrees with "
        "the choice. The outermost bars hold what lies beyond.",
    ),
    "reliability": (
        "Does its confidence hold?",
        "Each dot is a fifteenth of the comparisons: how sure the model was, and how often right "
        "(soft targets and ties by their share). "
        "On the dashed line probabilities can be taken at their word; below, they claim too much.",
    ),
    "length": (
        "Reward against length",
        "A sample of single responses, and the mean reward of each tenth by length with its "
        "interval. A rising line pays for length.",
    ),
    "loss": (
        "Loss while training",
        "The loss that is trained, per comparison. Line: training batches; dots: the held-out "
        "prompts. Guessing gives ln 2 = 0.693 in the Bradley-Terry likelihood.",
    ),
    "accuracy": (
        "Accuracy while training",
        "Of the held-out prompts, and of training batches where it was logged.",
    ),
    "best_of_n": (
        "Best of N",
        "Mean true or judged reward of the response this model picks among N; dashed, the pick of "
        "the judge itself. What a policy can gain before it over-optimises.",
    ),
}


def _figures(report: dict[str, Any]) -> Any:
    """(title, caption, drawing) of every plot that the report has numbers for."""
    for name, (title, caption) in CAPTIONS.items():
        if drawing := getattr(plots, name)(report):
            yield title, caption, Markup(drawing)


def _numbers(evaluation: dict[str, Any]) -> Any:
    """(what, figure, what it says) of every estimate."""
    length, error = evaluation["length"], evaluation["ece"]
    low, high = evaluation["accuracy_95"] or (None, None)
    accuracy = {"value": evaluation["accuracy"], "low": low, "high": high}
    yield "Accuracy", percent(accuracy), "ties of rewards count one half"
    yield "… on length-matched pairs", percent(length["matched"]), "lengths within 10 %"
    yield "… where the longer was preferred", percent(length["longer_preferred"]), ""
    yield "… where the shorter was preferred", percent(length["shorter_preferred"]), ""
    if clean := evaluation.get("accuracy_without_leaked"):
        yield "… on prompts that did not leak", percent(clean), f"{clean['prompts']:,} prompts"
    yield "Longer-wins baseline", percent(length["longer_wins"]), "no model needed"
    text = "Bradley-Terry, whatever was trained; nats per comparison, ln 2 = 0.6931 is guessing"
    yield "Loss", f"{evaluation['loss']:.4f}", text
    yield "Brier score", number(evaluation["brier"]), "0.25 is guessing, 0 is certainty"
    text = f"a calibrated model would show {error['if_calibrated']:.3f}"
    yield "Expected calibration error", f"{error['value']:.3f}", text
    yield "Temperature", number(evaluation["temperature"], 2), "above 1: overconfident"
    yield "Mean margin", f"{evaluation['margin']:.3f}", ""
    yield "Reward and length, Spearman", number(length["spearman"], 2), "over all responses"
    yield "Reward and length, within prompt", number(length["within_prompt"], 2), "Pearson"
    prefers = percent(length["model_prefers_longer"])
    yield "Prefers the longer", prefers, "whatever people chose"
    if (rank := evaluation.get("spearman_within_prompt")) is not None:
        yield "Rank correlation with the true reward", f"{rank:.3f}", "within prompt"


def _provenance(report: dict[str, Any]) -> Any:
    """(what, value): where the model and the numbers come from."""
    if bundle := report.get("bundle"):
        yield "bundle", bundle
    for name in ("created", "scored_by", "judge"):
        if value := report.get(name):
            yield name.replace("_", " "), value
    for part in ("data", "evaluation_data"):
        if found := report.get(part):
            yield part.replace("_", " "), found["file"]
            yield f"{part.replace('_', ' ')}, SHA-256", found["sha256"]
    if mean := report.get("normalization"):
        yield "mean taken off", f"{mean['mean']:.6f}, over {mean['completions']:,} completions"
        yield "those completions, SHA-256", mean["reference_sha256"]
    if config := report.get("config"):
        yield "configuration", json.dumps(config, indent=1)
    libraries = report.get("libraries") or {}
    yield "libraries", ", ".join(f"{name} {version}" for name, version in libraries.items())
