"""`make load` in small: a right service passes, a single wrong bit does not."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from loadtests import run, storm
from service.bundle import Bundle


@pytest.mark.parametrize("wrong", [False, True])
def test_a_reward_that_is_off_by_one_bit_fails_the_load(
    bundle: Bundle, tmp_path: Path, wrong: bool
) -> None:
    groups = run.expected(bundle.path)[:2]
    if wrong:
        first, *others = groups[0].rewards
        off = float(np.nextafter(np.float32(first), np.float32(9)))
        groups[0] = replace(groups[0], rewards=(off, *others))
    failed = run.report(run.load(bundle.path, groups, 4, 10, tmp_path / "load"))
    assert (failed > 0) == wrong
    assert (tmp_path / "load.html").stat().st_size > 10_000


def test_callers_that_leave_take_nothing_with_them_and_leave_nothing(bundle: Bundle) -> None:
    """`python -m loadtests.storm` in small: one round of 400 requests."""
    assert storm.run(bundle.path, requests=400, rounds=1) == []


HELD = storm.Left(
    tasks=17,
    threads=Counter({"ray::IDLE": 11, "event_engine": 7}),
    connections=1,
    queued_rows=0,
    queued_tokens=0,
    memory_mb=300,
)


@pytest.mark.parametrize(
    ("more", "leak"),
    [
        ({}, False),
        ({"ray::IDLE": 1}, True),
        ({"a new one": 1}, True),
        ({"tasks": 1}, True),
        ({"queued_rows": 1}, True),
        ({"queued_tokens": 1}, True),
        ({"event_engine": 3}, False),
        ({"event_engine": 5, "timer_manager": 5}, True),
    ],
)
def test_one_thing_that_stays_is_a_leak_and_a_pool_of_grpc_that_grows_is_not(
    more: dict[str, int], leak: bool
) -> None:
    """Ten threads of gRPC's are one for every ten callers that left."""
    counts = {name: getattr(HELD, name) + more[name] for name in more if hasattr(HELD, name)}
    threads = HELD.threads + Counter({name: more[name] for name in more.keys() - counts.keys()})
    after = replace(HELD, threads=threads, **counts)
    assert bool(storm.leftovers([HELD, after], requests=400)) == leak


@pytest.mark.parametrize(("memory_mb", "leak"), [((435, 539, 541), True), ((435, 450, 456), False)])
def test_memory_that_grows_after_the_first_round_is_a_leak(
    memory_mb: tuple[int, ...], leak: bool
) -> None:
    states = [HELD, *(replace(HELD, memory_mb=each) for each in memory_mb)]
    assert bool(storm.leftovers(states, requests=2000)) == leak
