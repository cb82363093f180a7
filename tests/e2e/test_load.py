"""`make load` in small: a right service passes, a single wrong bit does not."""

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
