"""The report's plots, from the report's numbers. Knows its fields and `svg.Plot`."""

from typing import Any

from training.report.svg import WIDTH, Plot, Span, percent, plain, ticks
from training.tables import number
from training.tables import percent as estimate_text

Report = dict[str, Any]

MOST_SUBSETS = 25
LONGEST_LABEL = 19


def headline(report: Report) -> str:
    """Accuracy on one scale with what it has to be measured by."""
    evaluation = report["evaluation"]
    low, high = evaluation["accuracy_95"] or (None, None)
    own = {"value": evaluation["accuracy"], "low": low, "high": high}
    length = evaluation["length"]
    longer = length["longer_wins"]
    rows = [("this model", own, "main"), ("… on equal lengths", length["matched"], "main")]
    if longer["value"] is not None and longer["value"] < 0.5:
        rows.append(("“shorter wins”", _turned(longer), "other"))
    else:
        rows.append(("“longer wins”", longer, "other"))
    if "true_reward_accuracy" in evaluation:
        ceiling = {"value": evaluation["true_reward_accuracy"], "low": None, "high": None}
        rows.append(("the true reward", ceiling, "good"))
    rows = [row for row in rows if row[1]["value"] is not None]
    values = [v for _, e, _ in rows for v in e.values() if isinstance(v, float)]
    span = min(0.48, *values) - 0.02, min(1.0, max(values) + 0.04)
    name = "Accuracy beside its baselines"
    return _intervals(name, span, 0.5, "guessing", rows)


def subsets(report: Report) -> str | None:
    """Accuracy of each subset, best first, with the whole set's as a line."""
    found = {name: each["accuracy"] for name, each in report["evaluation"]["subsets"].items()}
    known = [item for item in found.items() if item[1]["value"] is not None]  # not of ties alone
    if not known:
        return None
    ordered = sorted(known, key=lambda item: -item[1]["value"])
    shown = ordered[: MOST_SUBSETS - 5] + ordered[-5:] if len(ordered) > MOST_SUBSETS else ordered
    rows = [(name, accuracy, "main") for name, accuracy in shown]
    values = [v for _, e, _ in rows for v in e.values() if v is not None]
    span = max(min(values) - 0.02, 0.0), min(1.0, max(values) + 0.02)
    whole = report["evaluation"]["accuracy"]
    return _intervals("Accuracy by subset", span, whole, "all", rows)


def loss(report: Report) -> str | None:
    return _curve(report, "loss", "eval_loss", "Loss while training", plain)


def accuracy(report: Report) -> str | None:
    return _curve(report, "accuracy", "eval_accuracy", "Accuracy while training", percent)


def margins(report: Report) -> str:
    found = report["figures"]["margins"]
    edges, counts = found["edges"], found["counts"]
    plot = Plot("Margins of the preferred response", (edges[0], edges[-1]), (0, max(counts) * 1.05))
    plot.y_axis("comparisons")
    plot.legend([("wrong", "fill-warm"), ("right", "fill-main")])
    for low, high, count in zip(edges, edges[1:], counts, strict=False):
        style = "fill-warm" if high <= 1e-9 else "fill-main"
        plot.bar((low, high), (0, count), style, f"{low:.2f} to {high:.2f}: {count:,} comparisons")
    plot.segment((0, 0), (0, plot.y[1]), "axis")
    plot.x_axis("margin, preferred minus other")
    return plot.svg()


def reliability(report: Report) -> str:
    bins = report["figures"]["reliability"]
    floor = min(0.4, *(b["low"] if b["low"] is not None else b["accuracy"] for b in bins))
    plot = Plot("Accuracy against confidence", (0.5, 1.0), (max(floor - 0.02, 0), 1.0))
    plot.y_axis("accuracy", show=percent)
    plot.segment((0.5, 0.5), (1, 1), "axis dashed")
    for b in bins:
        if b["low"] is not None:
            plot.segment((b["confidence"], b["low"]), (b["confidence"], b["high"]), "stroke-main")
        name = f"says {b['confidence']:.1%}, is right {b['accuracy']:.1%} of {b['comparisons']:,}"
        plot.dot(b["confidence"], b["accuracy"], "fill-main", 3.5, name)
    plot.x_axis("probability it gives to its favourite", show=percent)
    return plot.svg()


def length(report: Report) -> str:
    found = report["figures"]["length"]
    dots = sorted(found["dots"])
    beyond = dots[int(0.99 * (len(dots) - 1))][0]
    shown = [dot for dot in dots if dot[0] <= beyond]
    rewards = [reward for _, reward in shown]
    spread = (max(rewards) - min(rewards)) * 0.05
    span = min(rewards) - spread, max(rewards) + spread
    plot = Plot("Reward against length", (0, max(beyond, 1)), span)
    plot.y_axis("reward")
    for characters, reward in shown:
        plot.dot(characters, reward, "speck", 1.7)
    tenths = [t for t in found["tenths"] if t["characters"] <= beyond]
    plot.band(
        [(t["characters"], t["low"]) for t in tenths],
        [(t["characters"], t["high"]) for t in tenths],
        "band",
    )
    plot.line([(t["characters"], t["reward"]) for t in tenths], "stroke-warm")
    for t in tenths:
        name = f"about {t['characters']:.0f} characters: mean reward {t['reward']:.2f}"
        plot.dot(t["characters"], t["reward"], "fill-warm", 3, name)
    plot.x_axis("characters of the response")
    return plot.svg()


def best_of_n(report: Report) -> str | None:
    found = report["evaluation"].get("best_of_n")
    if not found or len(found["points"]) < 2:
        return None
    points = found["points"]
    gold = [(p["n"], p["gold"]["value"]) for p in points]
    lower, upper = ([(p["n"], _bound(p["gold"], side)) for p in points] for side in ("low", "high"))
    ceiling = [(p["n"], p["ceiling"]) for p in points]
    values = [y for _, y in [*lower, *upper, *ceiling]]
    spread = (max(values) - min(values)) * 0.05
    span = min(values) - spread, max(values) + spread
    plot = Plot("Best of N", (1, points[-1]["n"]), span, height=262, bottom=60)
    plot.y_axis("gold reward")
    plot.legend([("picked by the judge", "fill-good dashed"), ("by this model", "fill-main")])
    plot.band(lower, upper, "band-main")
    plot.line(ceiling, "stroke-good dashed")
    plot.line(gold, "stroke-main")
    for p in points:
        name = f"best of {p['n']}, KL {p['kl']:.2f}: {number(p['gold'], 2)}"
        plot.dot(p["n"], p["gold"]["value"], "fill-main", 3.5, name)
    every = max(1, len(points) // 8)
    for p in points[::every]:
        plot.text(plot.px(p["n"]), plot.height - plot.bottom + 31, f"{p['kl']:.2f}", "middle")
    shown = [p["n"] for p in points[::every]]
    plot.x_axis("N, and below it the KL divergence in nats", shown)
    return plot.svg()


def _intervals(
    title: str, span: Span, mark: float, mark_name: str, rows: list[tuple[str, Any, str]]
) -> str:
    """A row each: name, interval with its dot, figure; a dashed line through all of them."""
    height = 26 * len(rows) + 46
    plot = Plot(title, span, (0, len(rows)), height=height, left=122, right=54, top=16, bottom=28)
    at = [tick for tick in ticks(*span, 4) if abs(tick - mark) > 1e-9]
    for tick in at:
        plot.segment((tick, 0), (tick, len(rows)), "grid")
    plot.segment((mark, 0), (mark, len(rows)), "axis dashed")
    plot.text(plot.px(mark), 9, mark_name, "middle")
    for i, (name, estimate, style) in enumerate(rows):
        y = len(rows) - i - 0.5
        if estimate["low"] is not None:
            plot.segment((estimate["low"], y), (estimate["high"], y), f"stroke-{style} thick")
        plot.dot(estimate["value"], y, f"fill-{style}", 4.5, f"{name}: {estimate_text(estimate)}")
        label = name if len(name) <= LONGEST_LABEL else name[: LONGEST_LABEL - 1] + "…"
        plot.text(0, plot.py(y) + 4, label, "row")
        figure = estimate_text({"value": estimate["value"], "low": None})
        plot.text(WIDTH, plot.py(y) + 4, figure, "row end strong")
    plot.x_axis("", at, percent)
    return plot.svg()


def _bound(estimate: dict[str, Any], side: str) -> float:
    """One end of its interval; the value where it has none."""
    bound: float = estimate["value"] if estimate[side] is None else estimate[side]
    return bound


def _turned(estimate: dict[str, Any]) -> dict[str, Any]:
    """1 minus an estimate."""
    low, high = estimate["low"], estimate["high"]
    flip = (None, None) if low is None else (1 - high, 1 - low)
    return {"value": 1 - estimate["value"], "low": flip[0], "high": flip[1]}


def _curve(report: Report, train: str, held_out: str, title: str, show: Any) -> str | None:
    log = report.get("log") or []
    trained = [(e["step"], e[train]) for e in log if train in e and "step" in e]
    held = [(e["step"], e[held_out]) for e in log if held_out in e and "step" in e]
    if len(trained) + len(held) < 2:
        return None
    steps, values = zip(*trained, *held, strict=True)
    spread = (max(values) - min(values)) * 0.06 or 0.01
    plot = Plot(title, (0, max(steps)), (min(values) - spread, max(values) + spread))
    plot.y_axis(train, show=show)
    series = [("training batches", "fill-main", trained), ("held out", "fill-warm", held)]
    plot.legend([(name, style) for name, style, points in series if points])
    if trained:
        plot.line(trained, "stroke-main thin")
    if held:
        plot.line(held, "stroke-warm")
        for step, value in held:
            plot.dot(step, value, "fill-warm", 3.5, f"step {step}, held out: {value:.4f}")
    plot.x_axis("optimizer steps")
    return plot.svg()
