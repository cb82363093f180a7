"""The `reward-serve` command. Only translates arguments; the work is in the modules it calls."""

import json
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from service.config import ServiceConfig
from service.errors import RewardError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
console = Console(soft_wrap=True)

BundlePath = Annotated[Path, typer.Argument(help="A bundle directory.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def _default(name: str) -> Any:
    return ServiceConfig.model_fields[name].default


DEVICE: str = _default("device")


@app.command()
def verify(
    bundle: BundlePath,
    variant: str = _default("variant"),
    device: Device = DEVICE,
    as_json: Json = False,
) -> None:
    """Check every digest and replay the golden scores."""
    from service.scorer import Scorer

    started = time.perf_counter()
    scorer = Scorer.open(_config({}, {"bundle": bundle, "variant": variant, "device": device}))
    distance, seconds = scorer.verify(), time.perf_counter() - started
    manifest = scorer.bundle.manifest
    scorer.close()
    if as_json:
        print(json.dumps({"id": manifest.id, "variant": variant, "max_distance": distance}))
        return
    console.print(
        f"{manifest.name} {manifest.id}\n{len(manifest.files)} files have their digests; "
        f"{len(scorer.bundle.golden())} golden scores reproduced within {distance:.2g} "
        f"(tolerance {scorer.variant.tolerance}) by {scorer.engine.fingerprint} in {seconds:.1f} s"
    )


@app.command()
def run(
    bundle: BundlePath,
    host: str = _default("host"),
    port: int = _default("port"),
    grpc_port: int = _default("grpc_port"),
    device: Device = DEVICE,
    variant: str = _default("variant"),
    threads: Annotated[
        int, typer.Option(help="of one engine run; 0: all, divided between two")
    ] = _default("threads"),
    ingress: Annotated[str, typer.Option(help="auto, haproxy or python")] = _default("ingress"),
    replicas: int = _default("replicas"),
    invariant: Annotated[
        bool, typer.Option("--invariant", help="on a GPU, one shape per length of a row")
    ] = _default("invariant"),
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="key=value, a field of ServiceConfig without a flag"),
    ] = None,
) -> None:
    """Serve a bundle over HTTP and gRPC until SIGTERM, then drain."""
    from service import app as serving
    from service.bundle import load
    from service.keys import Keys
    from service.session import resolve_device

    flags = {
        "bundle": bundle.resolve(),
        "host": host,
        "port": port,
        "grpc_port": grpc_port,
        "device": device,
        "variant": variant,
        "threads": threads,
        "ingress": ingress,
        "replicas": replicas,
        "invariant": invariant,
    }
    config = _config(dict(setting.partition("=")[::2] for setting in settings or []), flags)
    # what can be refused before Ray starts is refused in a second, not in ten
    Keys.read(config.api_key_file)
    chosen = load(config.bundle).manifest.variant(variant)
    resolved = {"device": resolve_device(config.device, chosen.devices)}  # Ray gives it its GPU
    config = config.model_copy(update=resolved)
    serving.run(config, announce=lambda line: print(line, flush=True))


@app.command()
def score(
    bundle: BundlePath,
    data: Annotated[Path, typer.Option(help="JSONL, gzipped or not, or Parquet.")],
    out: Annotated[Path, typer.Option(help="JSON lines to write, one per row of the data.")],
    device: Device = DEVICE,
    variant: str = _default("variant"),
) -> None:
    """Score a file without a server; goes on where an earlier call stopped."""
    from rich.progress import Progress

    from service.offline import count_rows, score_file
    from service.scorer import Scorer

    flags = {"bundle": bundle, "device": device, "variant": variant}
    scorer = Scorer.open(_config({}, flags))
    done = 0
    try:
        with Progress(console=Console(stderr=True)) as progress:
            task = progress.add_task("rows", total=count_rows(data))
            for done in score_file(scorer, data, out):
                progress.update(task, completed=done)
    finally:
        scorer.close()
    console.print(f"{done} rows in {out}")


def _config(settings: dict[str, str], flags: dict[str, Any]) -> ServiceConfig:
    from pydantic import ValidationError

    if both := sorted(settings.keys() & flags.keys()):
        raise RewardError(f"--set {both[0]}: it has a flag of its own, --{both[0]}")
    try:
        return ServiceConfig(**settings, **flags)
    except ValidationError as error:
        first = error.errors()[0]
        raise RewardError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def main() -> None:
    try:
        app()
    except RewardError as error:
        print(f"reward-serve: {error.message}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
