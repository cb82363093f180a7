"""The two graphs that a CPU can run a decoder with, in turns: the time of one over the other's.

python -m loadtests.ragged        about two minutes on 2 cores, nothing else running

`make bench`'s model; the padded graph runs as it does in int8, each batch as its planner would have
it. Every reward must be the same bits.
"""

import statistics
import time
from pathlib import Path

import numpy as np

from loadtests.bench.model import BENCH, build
from service import bundle as bundles
from service.engine import OnnxEngine
from service.ragged_engine import RaggedEngine

TURNS = 9
REST_S = 0.06
"the threads of a session spin for some milliseconds after its run and would slow the next one"
Rows = list[list[int]]
Runs = list[tuple[Rows, int]]
"batches, each with the prefix that it shares"


def main() -> None:
    bundle = bundles.load(build(BENCH, Path("runs/bench")))
    engines = OnnxEngine(bundle, "fp32", "cpu"), RaggedEngine(bundle, "fp32")
    for name, cold, padded, ragged in _cases():
        seconds = _in_turns(*engines, cold, padded, ragged)
        medians = [statistics.median(each) for each in seconds]
        print(
            f"{name:58} padded {medians[0] * 1e3:6.1f} ms, ragged {medians[1] * 1e3:6.1f} ms: "
            f"{medians[1] / medians[0]:.2f}; of the fastest {min(seconds[1]) / min(seconds[0]):.2f}"
        )


def _cases() -> list[tuple[str, bool, Runs, Runs]]:
    """Name, whether kept states are dropped before each turn, and what either engine runs."""
    random = np.random.default_rng(0)

    def tokens(count: int) -> list[int]:
        ids: list[int] = random.integers(0, BENCH.vocabulary, count).tolist()
        return ids

    prompts = [tokens(count) for count in (120, 200, 90)]
    pairs = [
        [*prompt, *tokens(count)]
        for prompt, ends in zip(prompts, ((60, 90), (30, 150), (100, 40)), strict=True)
        for count in ends
    ]
    two = [(pairs[:3], 0), (pairs[3:], 0)]
    three = [(pairs[2 * i : 2 * i + 2], len(prompt)) for i, prompt in enumerate(prompts)]
    cases = [
        ("chosen and rejected of 3 prompts, padded in two runs", True, two, [(pairs, 0)]),
        ("the same, padded in three runs that share a prompt each", True, three, [(pairs, 0)]),
        ("one row of 180 tokens", True, [(pairs[:1], 0)], [(pairs[:1], 0)]),
    ]
    for length, cold in ((512, True), (512, False), (2048, False)):
        prompt = tokens(length)
        group = [([[*prompt, *tokens(128)] for _ in range(8)], length)]
        name = f"8 responses of 128 tokens, a prompt of {length} {'computed' if cold else 'kept'}"
        cases.append((name, cold, group, group))
    return cases


def _in_turns(
    padded: OnnxEngine, ragged: RaggedEngine, cold: bool, first: Runs, second: Runs
) -> tuple[list[float], list[float]]:
    """Seconds of every turn but the first, which warms up. Raises AssertionError at another bit."""
    seconds: tuple[list[float], list[float]] = [], []
    for _ in range(TURNS + 1):
        rewards = []
        for engine, runs, times in ((padded, first, seconds[0]), (ragged, second, seconds[1])):
            if cold:
                engine._states.shrink(0)
            started = time.perf_counter()
            rewards.append([engine.run(rows, prefix) for rows, prefix in runs])
            times.append(time.perf_counter() - started)
            time.sleep(REST_S)
        np.testing.assert_array_equal(*map(np.concatenate, rewards))
    return seconds[0][1:], seconds[1][1:]


if __name__ == "__main__":
    main()
