"""How large a batch may be while memory is short. Knows counts; knows no memory."""

import logging

from service.planner import Limits

log = logging.getLogger("reward.scheduler")

RECOVERY_RUNS = 64
"runs without a shortage of memory after which the budget is doubled again"
MAX_DIVISOR = 64


class Shortage:
    """A budget that is halved by every run that was short of memory, and recovers."""

    def __init__(self, whole: Limits) -> None:
        self._whole = self.budget = whole
        self.divisor = 1
        self._clean_runs = 0

    def note(self, shortages: int) -> None:
        """After each run: how often it was short."""
        self._clean_runs = 0 if shortages else self._clean_runs + 1
        if shortages:
            self._divide(min(MAX_DIVISOR, 2 * self.divisor))
            log.warning("memory was short; a batch is 1/%d of the budget now", self.divisor)
        elif self.divisor > 1 and self._clean_runs >= RECOVERY_RUNS:
            self._divide(self.divisor // 2)
            self._clean_runs = 0

    def _divide(self, by: int) -> None:
        self.divisor, self.budget = by, self._whole.divided(by)
