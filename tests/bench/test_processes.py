"""Memory and CPU time of a tree of processes that was really started."""

import os
import signal
import subprocess
import sys
import time

import pytest

from loadtests.bench.processes import cpu_seconds, pss_bytes, tree

MIB = 2**20
CHILD = f"held = bytearray(b'x') * {60 * MIB}; print(len(held), flush=True); input()"
PARENT = f"""
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {CHILD!r}], stdin=subprocess.PIPE)
input()
child.communicate(b"\\n")
"""
SLEEPING = CHILD.replace("input()", "import time; time.sleep(60)")
ORPHAN = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {SLEEPING!r}])"
BUSY = "import time\nwhile time.process_time() < 0.5: pass\nprint(0, flush=True); input()"


def _start(code: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout is not None
    process.stdout.readline()  # it, or its child, is ready
    return process


def test_memory_is_that_of_a_process_and_its_children() -> None:
    process = _start(PARENT)
    assert len(tree(process.pid)) == 2
    # 60 MiB of the child's own, and two interpreters of about 6 MiB that share their code
    assert 60 * MIB < pss_bytes(process.pid) < 90 * MIB
    process.communicate(b"\n")
    assert pss_bytes(process.pid) == 0


def test_a_child_whose_parent_ended_still_counts() -> None:
    """It belongs to init then; Ray's processes outlive each other like that."""
    process = _start(ORPHAN)
    (child,) = (p.pid for p in tree(process.pid) if p.pid != process.pid)
    time.sleep(0.3)  # the parent is a zombie of ours until it is waited for
    try:
        assert pss_bytes(process.pid) > 60 * MIB
    finally:
        os.kill(child, signal.SIGKILL)
        process.communicate()


def test_memory_that_two_processes_share_is_counted_once() -> None:
    code = f"""
import os, mmap
shared = mmap.mmap(-1, {60 * MIB})
shared.write(b"x" * {60 * MIB})
child = os.fork()
sum(shared[::4096])
print(0, flush=True)
input() if child else __import__("time").sleep(60)
os.kill(child, 9)
"""
    process = _start(code)
    time.sleep(0.3)
    assert pss_bytes(process.pid) == pytest.approx(70 * MIB, rel=0.15)
    process.communicate(b"\n")


def test_cpu_time_is_summed_by_name() -> None:
    process = _start(BUSY)
    spent = cpu_seconds(process.pid)
    process.communicate(b"\n")
    # half a second and the start of an interpreter, in ticks of 10 ms
    assert 0.45 <= sum(spent.values()) <= 1.0 and len(spent) == 1
