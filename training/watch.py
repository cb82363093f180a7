"""When training should stop: a collapsed model, exploding gradients, a diverging loss. Pure."""

import math
import statistics
from dataclasses import dataclass, field

from service.errors import TrainingError

IN_A_ROW = 3
"logged steps that must agree: a single odd batch stops nothing"
TIE = 1e-3
"root mean square of the margins below which all comparisons are ties and the loss is ln 2"
EXPLODING, USUAL = 100.0, 10
"times the median gradient norm so far, of so many logged steps at least: warm-up begins small"
FALLEN = 30.0
"times smaller than they once were, margins are those of a model that has collapsed"
DIVERGING = 3.0
"times the first logged loss"


@dataclass
class Watch:
    """Looks at every logged step. Raises TrainingError with the way out."""

    learning_rate: float
    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    margins: list[float] = field(default_factory=list)

    def observe(
        self, step: int, loss: float, grad_norm: float, margin_rms: float, last_good: str | None
    ) -> None:
        """loss: mean over the steps since the last call; margin_rms: of their comparisons.

        A model that has just begun has small margins too: collapse means that they were larger
        once, or stay below TIE for twice as long.
        """
        trouble = self._trouble(loss, grad_norm, margin_rms)
        if trouble is not None:
            kept = f"the last good checkpoint is {last_good}" if last_good else "no checkpoint yet"
            raise TrainingError(
                f"step {step}: {trouble}; stopped, {kept}. Lower fit.learning_rate (it is "
                f"{self.learning_rate:g}) and begin again with another --set out=DIR"
            )

    def _trouble(self, loss: float, grad_norm: float, margin_rms: float) -> str | None:
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            return f"the loss is {loss} and the gradient norm {grad_norm}"
        self.losses.append(loss)
        self.norms.append(grad_norm)
        self.margins.append(margin_rms)
        recent = slice(-IN_A_ROW, None)
        needed = IN_A_ROW if max(self.margins) > 10 * TIE else 2 * IN_A_ROW
        if len(self.margins) >= needed and max(self.margins[-needed:]) < TIE:
            return (
                f"the loss is {loss:.4f} and all margins are below {TIE:g}: the model gives every "
                "response to a prompt the same reward (it collapsed; a loss of ln 2 = 0.6931)"
            )
        if max(self.margins[-2 * IN_A_ROW :]) * FALLEN < max(self.margins):
            return (
                f"the loss is {loss:.4f} and the margins have fallen from {max(self.margins):.2g} "
                f"to {margin_rms:.2g}: the model collapsed (guessing has a loss of ln 2 = 0.6931)"
            )
        if len(self.losses) <= IN_A_ROW:
            return None
        if min(self.losses[recent]) > DIVERGING * max(self.losses[0], math.log(2)):
            return f"the loss diverges: {loss:.4g}, it began with {self.losses[0]:.4g}"
        earlier = self.norms[:-IN_A_ROW]
        usual = statistics.median(earlier)
        if len(earlier) >= USUAL and min(self.norms[recent]) > EXPLODING * max(usual, 1e-6):
            return f"the gradients explode: norm {grad_norm:.4g}, usually {usual:.4g}"
        return None
