"""How much of everything is measured, and what is running while it is."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from loadtests.bench.offline import Offline
from loadtests.bench.processes import paused, pss_by_name
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
    "a baseline gets as many pairs as it does in this time"
    batching: tuple[tuple[int, int], ...]
    "sizes and waits in ms that `@serve.batch` is tried with; the best of them is measured"
    one_requests: int
    mixed_rows: int
    mixed_per_s: float
    no_op_requests: int


FULL = Sizes(
    rounds=3,
    pairs={"singles": 640, "batches": 640, "groups": 320, "long": 128},
    baseline_s=6.0,
    batching=((4, 0), (4, 10), (8, 0), (8, 10), (32, 0), (32, 10)),
    one_requests=100,
    mixed_rows=5000,
    mixed_per_s=8.0,
    no_op_requests=6000,
)
"groups: 60 prompts in all three rounds"
QUICK = Sizes(
    rounds=1,
    pairs={"singles": 64, "batches": 128, "groups": 64, "long": 16},
    baseline_s=0.5,
    batching=((8, 0),),
    one_requests=10,
    mixed_rows=2000,
    mixed_per_s=50.0,
    no_op_requests=300,
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
    peak_pss: dict[str, int] = field(default_factory=dict)
    "bytes by the name of the service's processes, when they were most in all"

    def writer(self, *where: int) -> Writer:
        return Writer(self.words, self.seed, *where)

    @contextmanager
    def only(self, system: Server | None) -> Iterator[None]:
        """This server may run, None: none of them; the others stand still."""
        with paused(s.pid for s in (self.service, *self.baselines) if s is not system):
            yield

    def note_memory(self) -> None:
        now = pss_by_name(self.service.pid)
        if sum(now.values()) > sum(self.peak_pss.values()):
            self.peak_pss = now


def rows_of(rows: list[Row], workload: str, system: str) -> list[Row]:
    """Its rounds, in order."""
    return [row for row in rows if (row["workload"], row["system"]) == (workload, system)]
