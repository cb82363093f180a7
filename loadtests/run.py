"""`make load`: serve a bundle, load it for a minute, and fail on a wrong reward or an error.

    python -m loadtests.run BUNDLE [--seconds 60] [--users 40]

Leaves a dated HTML report of Locust's and a table in loadtests/results/.
"""

import argparse
import csv
import datetime
import itertools
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from loadtests.workload import Group, write
from service.config import ServiceConfig
from service.pairs import Pair
from service.scorer import Scorer, score_offline
from training.demo.data import generate
from training.demo.walk import serving

RESULTS = Path(__file__).parent / "results"
PROMPTS = 300


def expected(bundle: Path, prompts: int = PROMPTS) -> list[Group]:
    """Groups of the demo's lengths, with the rewards that the bundle gives them offline."""
    records = list(generate(prompts, seed=11))
    scorer = Scorer.open(ServiceConfig(bundle=bundle))
    pairs = [Pair(r["prompt"], response) for r in records for response in r["responses"]]
    rewards = (result.reward for result in score_offline(scorer, pairs))
    groups = [
        Group(
            r["prompt"],
            tuple(r["responses"]),
            tuple(itertools.islice(rewards, len(r["responses"]))),
        )
        for r in records
    ]
    scorer.close()
    return groups


def load(bundle: Path, groups: Sequence[Group], seconds: int, users: int, prefix: Path) -> Path:
    """One run of Locust against a service of its own; returns the statistics it wrote."""
    with tempfile.TemporaryDirectory() as directory, serving(bundle) as service:
        workload = Path(directory) / "workload.jsonl"
        write(workload, groups)
        command = [
            *(sys.executable, "-m", "locust", "-f", "loadtests/locustfile.py", "--headless"),
            *("--host", service.url, "--users", str(users), "--spawn-rate", str(users)),
            *("--run-time", f"{seconds}s", "--stop-timeout", "20", "--only-summary"),
            *("--html", f"{prefix}.html", "--csv", f"{prefix}"),
        ]
        environment = {"WORKLOAD": str(workload), "GRPC": service.grpc, "PYTHONPATH": "."}
        subprocess.run(command, env=os.environ | environment, check=False)
    for other in ("failures", "exceptions", "stats_history"):
        Path(f"{prefix}_{other}.csv").unlink(missing_ok=True)
    return Path(f"{prefix}_stats.csv")


def report(statistics: Path) -> int:
    """Print the table; the number of requests that failed, a wrong reward included."""
    with statistics.open() as file:
        rows = list(csv.DictReader(file))
    print(f"\n{'':28}{'requests/s':>12}{'p50 ms':>9}{'p99 ms':>9}{'requests':>10}{'failed':>8}")
    for row in rows:
        print(
            f"{row['Name']:28}{float(row['Requests/s']):12.1f}{row['50%']:>9}{row['99%']:>9}"
            f"{row['Request Count']:>10}{row['Failure Count']:>8}"
        )
    total = rows[-1]
    if int(total["Request Count"]) == 0:
        raise SystemExit("no request was made")
    return int(total["Failure Count"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--users", type=int, default=40)
    arguments = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    stamp = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d-%H%M")
    prefix = RESULTS / f"load-{stamp}"
    groups = expected(arguments.bundle)
    failed = report(load(arguments.bundle, groups, arguments.seconds, arguments.users, prefix))
    print(
        f"\nwrong rewards and errors: {failed}; loadtests/results/{prefix.name}.html and _stats.csv"
    )
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
