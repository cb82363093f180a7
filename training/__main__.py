"""The `reward-train` command. Only translates arguments; the work is in the modules it calls."""

import json
import logging
import sys
import traceback
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from service.errors import RewardError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
console = Console(soft_wrap=True)

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


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

    wanted = read_config(config, settings or [])
    if num_workers > 1:
        from training.cluster import train_on_cluster

        run = train_on_cluster(wanted, num_workers)
    else:
        run = train(wanted)
    if processes().is_main_process:
        _show_evaluation(run.read_report()["evaluation"], f"report in {run.report}", as_json)


@app.command()
def evaluate(
    source: Annotated[Path, typer.Argument(help="A run directory or a bundle.")],
    data: Annotated[Path, typer.Option(help="Held-out preferences.")],
    format: Annotated[str, typer.Option(help="auto, trl, hh or kwise")] = "auto",
    drop: Annotated[
        list[str] | None, typer.Option(help="Kinds of odd records to leave out.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Accuracy and its 95 % interval on preferences; a bundle goes through the serving code."""
    from service.bundle import MANIFEST
    from training.data import read_groups
    from training.measure import evaluate_bundle, evaluate_run
    from training.run import Run

    groups, _ = read_groups(data, format, dict.fromkeys(drop or [], "drop"))
    if (source / MANIFEST).is_file():
        report = evaluate_bundle(source, groups)
    else:
        report = evaluate_run(Run.open(source), groups)
    _show_evaluation(report, f"{source} on {data}", as_json)


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
    max_prompt_tokens: Annotated[int | None, typer.Option(min=1)] = None,
    max_response_tokens: Annotated[int | None, typer.Option(min=1)] = None,
    ending: Annotated[str, typer.Option(help="auto, eos or none")] = "auto",
    template: Annotated[Path | None, typer.Option(help="A chat template of your own.")] = None,
    as_json: Json = False,
) -> None:
    """Export a run, or somebody else's reward model, as a bundle; prove it as it is served."""
    from training.export import export as export_run
    from training.run import Run

    if (Path(source) / "report.json").is_file():
        if calibrate or uncalibrated:
            raise RewardError(
                "a run has its own mean: --calibrate and --uncalibrated are for "
                "models from elsewhere"
            )
        bundle = export_run(Run.open(Path(source)), out)
    else:
        from training.foreign import export_foreign

        limits = {
            "max_prompt_tokens": max_prompt_tokens,
            "max_response_tokens": max_response_tokens,
        }
        given = {name: value for name, value in limits.items() if value is not None}
        text = given | {"ending": ending, "template": template}
        bundle = export_foreign(source, out, text, calibrate, uncalibrated)
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


def _show_evaluation(report: dict, where: str, as_json: bool) -> None:
    if as_json:
        print(json.dumps(report))
        return
    low, high = report["accuracy_95"]
    console.print(
        f"accuracy {report['accuracy']:.4f} (95 % interval {low:.4f} to {high:.4f}, resampled by "
        f"prompt) on {report['comparisons']} comparisons of {report['prompts']} prompts; "
        f"mean margin {report['margin']:.3f}, loss {report['loss']:.4f}\n{where}"
    )


def main() -> None:
    logging.basicConfig(level=logging.WARNING)
    """Exit codes: 0 done; 1 the input, the data or the settings are wrong, so trying again is no
    use; 2 wrong usage; 70 anything else, such as a full disk, after which a new try may do."""
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
