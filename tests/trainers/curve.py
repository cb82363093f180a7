"""The picture of the GRPO runs: `python -m tests.trainers.curve RUNS [PICTURE.png]`.

Without a second argument it is loadtests/results/trl-grpo-DATE.png.
"""

import datetime
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import numpy as np
from matplotlib import pyplot as plt

from tests.trainers.grpo import BETA, curves, fifths

COLOURS = ["#0072b2", "#d55e00", "#009e73"]  # told apart with any colour vision (Okabe and Ito)
WINDOW = 12
"steps that a line averages; the dots are single steps"

PANELS = [
    ("reward", "Reward of the service", "what TRL logs, and what /score gives"),
    ("true_reward", "True reward of the demo", "never seen by the policy"),
    ("kl", "KL to the policy before RL", "nats per completion; single steps may lie above"),
    ("objective", f"E[r − {BETA} · KL]", "the objective of InstructGPT"),
]


def smooth(values: np.ndarray) -> np.ndarray:
    """Mean of the last WINDOW steps; of fewer at the beginning, where no line is drawn."""
    sums = np.cumsum(np.insert(values, 0, 0.0))
    end = np.arange(1, len(values) + 1)
    start = np.maximum(end - WINDOW, 0)
    return (sums[end] - sums[start]) / (end - start)


def draw(runs: Path, picture: Path) -> None:
    plt.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False})
    figure, axes = plt.subplots(2, 2, figsize=(10, 6.4), sharex=True, layout="constrained")
    for seed, out in enumerate(sorted(runs.glob("seed-*"))):
        run = curves(out)
        for (name, _, _), axis in zip(PANELS, axes.flat, strict=True):
            values = getattr(run, name)
            steps = np.arange(1, len(values) + 1)
            first, last = fifths(values)
            label = f"seed {seed}: {first:.2f} → {last:.2f}"
            axis.plot(steps, values, ".", color=COLOURS[seed], alpha=0.22, markersize=4)
            whole = slice(WINDOW - 1, None)
            line = smooth(values)[whole]
            axis.plot(steps[whole], line, color=COLOURS[seed], linewidth=2, label=label)
    for (_, title, unit), axis in zip(PANELS, axes.flat, strict=True):
        axis.set_title(f"{title}\n", loc="left", fontweight="bold", pad=6)
        axis.text(0, 1.03, unit, transform=axis.transAxes, color="#555555")
        axis.grid(axis="y", color="#dddddd", linewidth=0.7)
        place = "upper left" if title.startswith("KL") else "lower right"
        axis.legend(frameon=False, fontsize=8.5, loc=place, title="first → last fifth")
        axis.get_legend().get_title().set_fontsize(8.5)
    kl = axes[1][0]
    kl.set_ylim(0, 1.6 * max(line.get_ydata().max() for line in kl.get_lines()[1::2]))
    for axis in axes[1]:
        axis.set_xlabel("step of GRPO (128 completions, 8 per prompt)")
    figure.suptitle(
        "TRL 1.16.0, GRPO with a KL penalty, rewards from the live service",
        x=0.01,
        ha="left",
        fontsize=13,
        fontweight="bold",
    )
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=130)
    print(picture)


def main() -> None:
    today = datetime.datetime.now(datetime.UTC).date()
    default = Path("loadtests/results") / f"trl-grpo-{today}.png"
    draw(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else default)


if __name__ == "__main__":
    main()
