"""A process and everything it started: memory, CPU time, standing still. Linux's /proc only."""

import os
import signal
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
TICK_S = 1 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Process:
    pid: int
    name: str
    parent: int
    session: int
    cpu_s: float
    "user and system time of its threads"


def processes() -> list[Process]:
    """Every process whose /proc entry can be read; the others ended meanwhile."""
    return [found for entry in PROC.glob("[0-9]*") if (found := _read(int(entry.name)))]


def _read(pid: int) -> Process | None:
    try:
        text = (PROC / str(pid) / "stat").read_text()
    except OSError:
        return None
    name = text[text.index("(") + 1 : text.rindex(")")]  # it may hold spaces and brackets
    fields = text[text.rindex(")") + 2 :].split()
    ticks = int(fields[11]) + int(fields[12])
    return Process(pid, name, int(fields[1]), int(fields[3]), ticks * TICK_S)


def tree(root: int) -> list[Process]:
    """`root`, its descendants, and whoever else is in their sessions: a child whose parent died
    belongs to init, but keeps its session."""
    alive = processes()
    children = defaultdict(list)
    for process in alive:
        children[process.parent].append(process)
    found = {process.pid: process for process in alive if process.pid == root}
    line = list(found.values())
    while line:
        for child in children[line.pop().pid]:
            if child.pid not in found:
                found[child.pid] = child
                line.append(child)
    own = os.getsid(0)
    sessions = {process.session for process in found.values()} - {own}
    return [p for p in alive if p.pid in found or p.session in sessions]


def pss_by_name(root: int) -> dict[str, int]:
    """Proportional set size of the tree in bytes: what several processes share counts once in all.

    Summed over processes of the same name.
    """
    sizes: dict[str, int] = defaultdict(int)
    for process in tree(root):
        sizes[process.name] += _pss(process.pid)
    return dict(sizes)


def pss_bytes(root: int) -> int:
    return sum(pss_by_name(root).values())


def cpu_seconds(root: int) -> dict[str, float]:
    """CPU time of the tree's processes by their name, summed over those of the same name."""
    spent: dict[str, float] = defaultdict(float)
    for process in tree(root):
        spent[process.name] += process.cpu_s
    return dict(spent)


def busy_seconds() -> float:
    """CPU time that all processes of the machine have spent so far, all cores together."""
    user, nice, system, _idle, _wait, interrupts, soft = map(
        int, (PROC / "stat").read_text().splitlines()[0].split()[1:8]
    )
    return (user + nice + system + interrupts + soft) * TICK_S


@contextmanager
def paused(roots: Iterable[int]) -> Iterator[None]:
    """These trees stand still: a server that waits would take time from the one that is measured.

    Ray's cluster bears it, since all its processes stop and go on together.
    """
    stopped = [process.pid for root in roots for process in tree(root)]
    try:
        _signal(stopped, signal.SIGSTOP)
        yield
    finally:
        _signal(stopped, signal.SIGCONT)


def _signal(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def _pss(pid: int) -> int:
    try:
        lines = (PROC / str(pid) / "smaps_rollup").read_text().splitlines()
    except OSError:  # it ended, or is a zombie
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
