"""When to ask again and when to give up. Knows no connection.

`steps` is a generator that neither asks nor sleeps: every client carries out its steps and sends
back what became of them, so that there is one policy, and a test has a clock of its own.
"""

import random
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace

from reward_client.errors import Unavailable
from reward_client.wire import Again, Scores

FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 5.0


@dataclass(frozen=True)
class Ask:
    """Make one attempt, which may take `timeout_s`; send back Scores or Again."""

    timeout_s: float


@dataclass(frozen=True)
class Sleep:
    seconds: float


Steps = Generator[Ask | Sleep, tuple[float, Scores | Again | None], Scores]
"""yields steps; is sent (the time, what the step gave); returns the scores"""


def steps(now: float, deadline_s: float, attempt_s: float, what: str) -> Steps:
    """Attempts until one gives scores. Raises Unavailable when `deadline_s` is over.

    Pauses double from 0.1 to 5 s, each drawn from the upper half so that clients that failed
    together do not come back together; a longer Retry-After is waited out, and up to a quarter
    more.
    """
    end = now + deadline_s
    attempts = 0
    why = "no attempt was made"
    while end > now:
        attempts += 1
        now, outcome = yield Ask(min(attempt_s, end - now))
        if isinstance(outcome, Scores):
            return replace(outcome, attempts=attempts)
        assert isinstance(outcome, Again)
        why = outcome.why
        pause = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** min(attempts - 1, 10))
        pause *= random.uniform(0.5, 1)
        pause = max(pause, outcome.wait_s * random.uniform(1, 1.25))
        if now + pause >= end:
            break
        now, _ = yield Sleep(pause)
    raise Unavailable(
        f"{what}: no reward within {deadline_s:g} s and {attempts} attempts; the last: {why}",
        attempts,
    )


def drive(run: Steps, ask: Callable[[Ask], Scores | Again]) -> Scores:
    """Carry the steps out in this thread."""
    step = next(run)
    outcome: Scores | Again | None
    while True:
        if isinstance(step, Sleep):
            time.sleep(step.seconds)
            outcome = None
        else:
            outcome = ask(step)
        try:
            step = run.send((time.monotonic(), outcome))
        except StopIteration as done:
            scores: Scores = done.value
            return scores
