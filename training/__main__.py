"""The `reward-train` command. Only translates arguments; the work is in the modules it calls."""

import json
import logging
import sys
import traceback
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from service.errors import RewardError
from training.issues import Action, IssueKind

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
console = Console(soft_wrap=True)

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Of a checkpoint: what it shall be.")]
Format = Annotated[str, typer.Option(help="auto, trl, hh or kwise")]


class OddRecord(StrEnum):
    """What --drop takes: the kinds that are found when records are read (training/issues.py)."""

    DIFFERENT_PROMPTS = "different_prompts"
    IDENTICAL = "identical"
    CONTRADICTORY = "contradictory"


Drop = Annotated[list[OddRecord] | None, typer.Option(help="Kinds of odd records to leave out.")]


class VariantName(StrEnum):
    """What --variant takes; typer reads no list of literals."""

    FP32 = "fp32"
    INT8 = "int8"
    BF16_PAGED = "bf16-paged"
    FP16_PAGED = "fp16-paged"


@app.command("demo-data")
def demo_data(
    out: Annotated[Path, typer.Argument(help="JSON lines to write.")],
    prompts: Annotated[int, typer.Option(min=10)] = 22_000,
    seed: int = 0,
) -> None:
    """Preference data with a known true reward."""
    from training.demo.data import write

    comparisons = write(out, prompts, seed)
    console.print(f"{prompts} prompts with {comparisons} comparisons in {out}")


@app.command()
def fit(
    config: Annotated[Path, typer.Argument(help="A TOML file; see training/configs/.")],
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="section.key=value, over the file's value")
    ] = None,
    num_workers: Annotated[
        int, typer.Option(min=1, help="Processes, started by Ray Train; 1: this one, without Ray.")
    ] = 1,
    as_json: Json = False,
) -> None:
    """Train, normalise and evaluate a reward model; leaves a run directory."""
    from training.config import read_config
    from training.pipeline import train
    from training.processes import processes
    from training.report.page import HTML
    from training.tables import show_evaluation

    wanted = read_config(config, settings or [])
    if num_workers > 1:
        from training.cluster import train_on_cluster

        run = train_on_cluster(wanted, num_workers)
    else:
        run = train(wanted)
    if not processes().is_main_process:
        return
    report = run.read_report()["evaluation"]
    if as_json:
        print(json.dumps(report))
    else:
        show_evaluation(report, f"report in {run.path / HTML}", console)


@app.command()
def check(
    data: Annotated[Path, typer.Argument(help="Preferences; see training/formats/source.py.")],
    held_out: Annotated[
        Path | None, typer.Option("--eval", help="Held-out preferences, to look for in DATA.")
    ] = None,
    tokens: Annotated[
        Path | None, typer.Option(help="A bundle, run or checkpoint whose limits are tried.")
    ] = None,
    max_prompt_tokens: Limit = None,
    max_response_tokens: Limit = None,
    format: Format = "auto",
    as_json: Json = False,
) -> None:
    """Look preference data over before anybody trains on it."""
    from training.checks import check as check_data
    from training.checks import truncation
    from training.data import group_records, read_groups, read_records
    from training.measure import open_encoder
    from training.tables import show_checks

    limits = _given(max_prompt_tokens=max_prompt_tokens, max_response_tokens=max_response_tokens)
    if limits and tokens is None:
        raise RewardError(f"{', '.join(limits)}: nothing is cut without --tokens CHECKPOINT")
    records = list(read_records(data, format))
    drop: dict = {"different_prompts": "drop"}
    groups, issues = group_records(records, str(data), drop)
    evaluation = read_groups(held_out, format, drop)[0] if held_out else []
    report = check_data(records, groups, issues, evaluation)
    if tokens:
        encoder = open_encoder(tokens, limits)
        encoded = [encoder.encode_group(group.prompt, group.responses) for group in groups]
        report["truncation"] = truncation(groups, encoded)
    report["issues"] = issues.report()
    if as_json:
        print(json.dumps(report))
    else:
        show_checks(report, str(data), console)


@app.command()
def evaluate(
    source: Annotated[Path, typer.Argument(help="A run directory or a bundle.")],
    data: Annotated[Path, typer.Option(help="Held-out preferences.")],
    judge: Annotated[
        Path | None, typer.Option(help="A second bundle or run: what best-of-n is measured by.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="A directory for report.json and report.html.")
    ] = None,
    format: Format = "auto",
    drop: Drop = None,
    as_json: Json = False,
) -> None:
    """Accuracy, calibration, length bias, with 95 % intervals; a bundle is scored as it serves."""
    from training.data import read_groups
    from training.evaluate import evaluate as evaluate_rewards
    from training.formats.source import sha256
    from training.measure import origin, score
    from training.report.figures import figures
    from training.report.page import HTML, write
    from training.tables import show_evaluation, show_issues

    groups, issues = read_groups(data, format, _dropping(drop))
    rewards = score(source, groups)
    report = evaluate_rewards(groups, rewards, gold=score(judge, groups) if judge else None)
    report["issues"] = issues.report()
    where = f"{source} on {data}"
    if out:
        judged = {"judge": origin(judge)["scored_by"]} if judge else {}
        files = {"evaluation_data": {"file": data.name, "sha256": sha256(data)}}
        shown = {"evaluation": report, "figures": figures(groups, rewards)}
        write(origin(source) | judged | files | shown, out)
        where += f"; report in {out / HTML}"
    if as_json:
        print(json.dumps(report))
    else:
        show_evaluation(report, where, console)
        show_issues(report["issues"], console)


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(help="A run directory or a bundle.")],
    second: Annotated[Path, typer.Argument(help="Another one.")],
    data: Annotated[Path, typer.Option(help="Held-out preferences.")],
    format: Format = "auto",
    drop: Drop = None,
    as_json: Json = False,
) -> None:
    """Whether the second is better than the first on the same comparisons, or was it luck."""
    from training.compare import compare as compare_rewards
    from training.data import read_groups
    from training.measure import score
    from training.tables import show_comparison, show_issues, verdict

    groups, issues = read_groups(data, format, _dropping(drop))
    report = compare_rewards(groups, score(first, groups), score(second, groups))
    report["issues"] = issues.report()
    if as_json:
        print(json.dumps(report | {"verdict": verdict(report)}))
    else:
        show_comparison(report, console)
        show_issues(report["issues"], console)


@app.command()
def export(
    source: Annotated[str, typer.Argument(help="A run directory, a reward model or a Hub id.")],
    out: Annotated[Path, typer.Option(help="The bundle to write.")],
    calibrate: Annotated[
        Path | None, typer.Option(help="Preferences or completions that shall average 0.")
    ] = None,
    uncalibrated: Annotated[
        bool, typer.Option("--uncalibrated", help="Serve raw rewards, marked as such.")
    ] = False,
    drop: Drop = None,
    max_prompt_tokens: Limit = None,
    max_response_tokens: Limit = None,
    ending: Annotated[str | None, typer.Option(help="auto (the default), eos or none")] = None,
    template: Annotated[Path | None, typer.Option(help="A chat template of your own.")] = None,
    variants: Annotated[
        list[VariantName] | None,
        typer.Option(
            "--variant",
            help="Beside fp32, which is always there: int8 for CPUs; fp16-paged for GPUs, or "
            "bf16-paged, whose numbers may be larger.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Export a run, or somebody else's reward model, as a bundle; prove it as it is served."""
    from training.export import export as export_run
    from training.run import Run

    text = _given(
        max_prompt_tokens=max_prompt_tokens,
        max_response_tokens=max_response_tokens,
        ending=ending,
        template=template,
    )
    centre = _given(calibrate=calibrate, uncalibrated=uncalibrated or None, drop=drop)
    if (Path(source) / "report.json").is_file():
        if text or centre:
            options = ", ".join(f"--{name.replace('_', '-')}" for name in [*centre, *text])
            raise RewardError(
                f"{options}: for models from elsewhere; a run has its own mean and text rules"
            )
        bundle = export_run(Run.open(Path(source)), out, variants or ())
    else:
        if calibrate and uncalibrated:
            raise RewardError(
                "--calibrate centres rewards, --uncalibrated does not; give one of them"
            )
        if drop and not calibrate:
            raise RewardError("--drop is for the records of --calibrate FILE, which is not given")
        if "int8" in (variants or ()):
            raise RewardError(
                "--variant int8 is measured on a run's held-out prompts; "
                f"{source} is a model from elsewhere and has none"
            )
        from training.foreign import export_foreign

        bundle = export_foreign(
            source, out, text, calibrate, uncalibrated, variants or (), _dropping(drop)
        )
    manifest = bundle.manifest
    if as_json:
        print(json.dumps({"bundle": str(out), "id": manifest.id, "name": manifest.name}))
    else:
        console.print(f"bundle {manifest.name} in {out}\n{manifest.id}")


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Run directory to make.")] = Path("runs/demo"),
    prompts: Annotated[int, typer.Option(min=1000)] = 22_000,
) -> None:
    """The whole way: data, training, export, serving, scores over HTTP."""
    from training.demo.walk import walk

    walk(out, prompts, console)


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _dropping(kinds: list[OddRecord] | None) -> dict[IssueKind, Action]:
    return {kind.value: "drop" for kind in kinds or []}


def main() -> None:
    """Exit codes: 0 done; 1 the input, the data or the settings are wrong, so trying again is no
    use; 2 wrong usage; 70 anything else, such as a full disk, after which a new try may do."""
    logging.basicConfig(level=logging.WARNING)
    try:
        app()
    except RewardError as error:
        print(f"reward-train: {error.message}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        print(f"reward-train: {error}", file=sys.stderr)
        sys.exit(70)
    except Exception:
        traceback.print_exc()
        sys.exit(70)


if __name__ == "__main__":
    main()
