"""How much of everything is measured, and what is running while it is."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from loadtests.bench.offline import Offline
from loadtests.bench.processes import pss_bytes
from loadtests.bench.servers import Server
from loadtests.bench.workloads import Writer
from service.manifest import Architecture

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of everything; a full run and a quick one."""

    rounds: int
    pairs: dict[str, int]
    "of every workload, in a round"
    baseline_s: float
    one_requests: int
    mixed_rows: int
    mixed_per_s: float
    no_op_requests: int


FULL = Sizes(
    rounds=3,
    pairs={"singles": 480, "batches": 512, "groups": 320, "long": 96},
    baseline_s=6.0,
    one_requests=100,
    mixed_rows=5000,
    mixed_per_s=8.0,
    no_op_requests=6000,
)
"groups: 60 prompts in all three rounds"
QUICK = Sizes(
    1, {"singles": 64, "batches": 128, "groups": 64, "long": 16}, 0.5, 10, 2000, 50.0, 300
)


@dataclass(slots=True)
class Bench:
    """Everything that is running."""

    words: list[str]
    architecture: Architecture
    sizes: Sizes
    offline: Offline
    service: Server
    baselines: list[Server]
    seed: int
    say: Callable[[str], None]
    peak_pss: int = 0

    def writer(self, *where: int) -> Writer:
        return Writer(self.words, hash((self.seed, *where)) % 2**32)

    def note_memory(self) -> None:
        self.peak_pss = max(self.peak_pss, pss_bytes(self.service.pid))


def rows_of(rows: list[Row], workload: str, system: str) -> list[Row]:
    """Its rounds, in order."""
    return [row for row in rows if (row["workload"], row["system"]) == (workload, system)]
