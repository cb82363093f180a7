"""Reports as tables on a terminal. Knows the reports' fields; computes nothing."""

from typing import Any

from rich.console import Console
from rich.table import Table

Estimate = dict[str, Any]


def percent(estimate: Estimate | None) -> str:
    """An estimate as "55.5 % (53.4 to 57.6)"."""
    if estimate is None or estimate["value"] is None:
        return "-"
    text = f"{estimate['value']:.1%}".replace("%", " %")
    if estimate["low"] is None:
        return text
    return f"{text} ({100 * estimate['low']:.1f} to {100 * estimate['high']:.1f})"


def number(estimate: Estimate | None, digits: int = 3) -> str:
    """An estimate as "1.59 (1.52 to 1.65)"."""
    if estimate is None or estimate["value"] is None:
        return "-"
    known = [estimate[name] for name in ("value", "low", "high") if estimate[name] is not None]
    shown = [f"{value:.{digits}f}".replace("-", "−") for value in known]
    return shown[0] if len(shown) < 3 else f"{shown[0]} ({shown[1]} to {shown[2]})"


def check_rows(checks: dict[str, Any]) -> list[tuple[str, str]]:
    """(what, finding) of a data check, for the terminal and the report page alike."""
    again = checks["duplicates"]
    characters = {name: checks[f"{name}_characters"] for name in ("prompt", "response")}
    rows = [
        ("records", f"{checks['records']:,}"),
        ("prompts", f"{checks['prompts']:,}"),
        ("comparisons", f"{checks['comparisons']:,}, {checks['ties']:,} of them ties"),
        ("unique responses", f"{checks['completions']:,} over all prompts"),
        ("responses per prompt", _sizes(checks["responses_per_prompt"])),
        *(
            (f"{name} length", f"median {q['median']:.0f} characters, 95 % below {q['p95']:.0f}")
            for name, q in characters.items()
        ),
        ("repeated comparisons", f"{again['comparisons']:,}"),
        (
            "near-duplicate prompts",
            f"{again['near_prompts']:,} in {again['near_clusters']:,} clusters, the largest of "
            f"{again['largest_cluster']} (similarity {again['similarity']} or more)",
        ),
        ("prompts that begin others", f"{again['begun_prompts']:,}"),
        (
            "responses used under several prompts",
            percent({"value": again["reused_responses_share"], "low": None}),
        ),
        ("contradictory choices", f"{checks['contradictory']:,}"),
        ("prompts whose choices form a cycle", f"{checks['cyclic_prompts']:,}"),
        ("identical sides", f"{checks['identical']:,}"),
        ("sides with different prompts", f"{checks['different_prompts']:,}"),
        ("the longer response wins", percent(checks["longer_wins"])),
        ("the first response wins", _first(checks["first_wins"])),
    ]
    if cut := checks.get("truncation"):
        rows += [
            ("completions the token limits cut", f"{cut['completions_cut']:,}"),
            ("comparisons they make identical", f"{cut['comparisons_made_identical']:,}"),
        ]
    if leak := checks.get("leakage"):
        found = f"{leak['overlapping']:,} of {leak['prompts']:,}, {leak['exact']:,} of them exactly"
        rows.append((f"evaluation prompts also in here ({leak['ngram']}-grams)", found))
    return rows


def show_checks(checks: dict[str, Any], title: str, console: Console) -> None:
    table = Table(title=title, title_justify="left", show_header=False)
    for row in check_rows(checks):
        table.add_row(*row)
    console.print(table)


def show_issues(issues: dict[str, Any], console: Console) -> None:
    """What reading the data found odd: how often, what became of it, and where."""
    for kind, found in issues.items():
        lines = found["lines"]
        named = ", ".join(map(str, lines[:10])) + (", ..." if len(lines) > 10 else "")
        console.print(
            f"{kind}: {found['count']:,}, {found['dropped']:,} of them left out "
            f"({'lines' if len(lines) > 1 else 'line'} {named})"
        )


def show_evaluation(report: dict[str, Any], where: str, console: Console) -> None:
    low, high = report["accuracy_95"] or (None, None)
    accuracy = {"value": report["accuracy"], "low": low, "high": high}
    length = report["length"]
    console.print(
        f"accuracy {percent(accuracy)} on {report['choices']} choices of "
        f"{report['prompts']} prompts; intervals are 95 %, resampled by prompt\n"
        f"length-matched pairs {percent(length['matched'])}, "
        f"longer-wins baseline {percent(length['longer_wins'])}\n"
        f"loss {report['loss']:.4f}, Brier {number(report['brier'])}, "
        f"temperature {number(report['temperature'], 2)}"
    )
    for name, subset in report["subsets"].items():
        choices = f"{percent(subset['accuracy'])} of {subset['choices']}"
        console.print(f"  {name}: {choices if subset['choices'] else 'no choices'}")
    console.print(where)


def show_comparison(report: dict[str, Any], console: Console) -> None:
    test = report["mcnemar"]
    rows = [
        ("accuracy of the first", percent(report["accuracy"]["first"])),
        ("accuracy of the second", percent(report["accuracy"]["second"])),
        ("accuracy, second - first", percent(report["accuracy_difference"])),
        ("loss, second - first", number(report["loss_difference"], 4)),
        ("Brier score, second - first", number(report["brier_difference"], 4)),
        ("same favourite", percent(report["same_favourite"])),
        ("only the first is right", f"{test['only_first_right']} comparisons"),
        ("only the second is right", f"{test['only_second_right']} comparisons"),
        ("McNemar's test, exact", f"p = {test['p']:.3g}"),
        ("McNemar's test, by prompt", f"p = {test['p_by_prompt']:.3g}"),
    ]
    table = Table(title=f"{report['prompts']} prompts", title_justify="left", show_header=False)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    console.print(verdict(report))


def verdict(report: dict[str, Any]) -> str:
    """One sentence on who is better, as far as these data tell."""
    difference = report["accuracy_difference"]
    if difference["low"] is None:
        return "one prompt says nothing about which is better"
    if difference["low"] > 0:
        return "the second is better"
    return "the first is better" if difference["high"] < 0 else "no difference was shown"


def _sizes(sizes: dict[str, int]) -> str:
    parts = [f"{k} for {n:,}" for k, n in sizes.items()]
    return ", ".join(parts if len(parts) <= 6 else [*parts[:3], "...", parts[-1]])


def _first(estimate: Estimate | None) -> str:
    return percent(estimate) if estimate else "not told by this format"
