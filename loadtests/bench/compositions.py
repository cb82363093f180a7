"""Rows in random company: does a reward keep its bits, through JSON, in every batch it meets?

Requests are random: one pair or up to 40, of one prompt or of many, in any order, several at a
time. Prompts come in families whose members share a random part of their beginning, so that
prefixes of several depths are shared; few prompts are in use at a time and all return, so that
states come from the cache and have been dropped from it. The engine runs are counted by the
service's own series, and must be full enough to prove something.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import uvloop

from loadtests.bench import model, servers
from loadtests.bench.clients import closed_loop
from loadtests.bench.measure import body, rewards
from loadtests.bench.offline import Offline
from loadtests.bench.workloads import Request, Writer
from service.pairs import Pair

FAMILIES, PROMPTS, RESPONSES = 40, 4, 6
AT_ONCE, PART = 12, 600
"requests in flight; requests between two looks at the counters"
MIN_ROWS, MAX_PADDING = 8.0, 0.30
LENGTHS = 60
"tokens of a prompt's own part and of a response at most: 10,000 runs shall take minutes"
CACHE_BYTES = 8 * 2**20
"of kept prefixes: about a tenth of what the pool has, so that they come and go"


def pool(words: list[str], seed: int) -> list[list[Pair]]:
    """Pairs by prompt; FAMILIES x PROMPTS prompts, those of a family begin alike."""
    write = Writer(words, seed)
    groups = []
    for _ in range(FAMILIES):
        opening = write.text(write.log_uniform(4 * LENGTHS))
        for _ in range(PROMPTS):
            prompt = opening + write.text(write.log_uniform(LENGTHS))
            responses = [write.text(write.log_uniform(LENGTHS)) for _ in range(RESPONSES)]
            groups.append([Pair(prompt, response) for response in responses])
    return groups


def compose(groups: list[list[Pair]], random: np.random.Generator) -> Request:
    """Pairs at random, one pair, or some of one prompt's several times over."""
    kind = random.integers(4)
    if kind == 0:
        group = groups[random.integers(len(groups))]
        return (group[random.integers(len(group))],)
    if kind == 1:
        near = random.integers(len(groups))  # a family and its neighbour
        some = [pair for group in groups[near : near + 2 * PROMPTS] for pair in group]
    elif kind == 2:
        some = groups[random.integers(len(groups))] * int(random.integers(1, 5))
    else:
        some = [pair for group in groups for pair in group]
    order = random.permutation(len(some))[: random.integers(1, 41)]
    return tuple(some[i] for i in order)


def compositions(bundle: Path, runs: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Engine runs with how many rows, how much padding, how many shared, and how many bits differ.

    Every answer is compared with rows that were scored alone, each in an engine run of its own.
    """
    groups = pool(model.words(bundle), seed=6)
    everything = tuple(pair for group in groups for pair in group)
    offline = Offline(bundle)
    alone = dict(zip(everything, (r for _, r in offline.alone((everything,))), strict=True))
    offline.close()
    random = np.random.default_rng(6)
    differing = rows = 0
    with servers.service(bundle, "--set", f"prefix_cache_bytes={CACHE_BYTES}") as service:
        while (counted := service.settled()).get("reward_batch_rows_count", 0) < runs:
            requests = [compose(groups, random) for _ in range(PART)]
            bodies = [body(request) for request in requests]
            for request, answer in zip(
                requests, uvloop.run(closed_loop(service.score, bodies, AT_ONCE)), strict=True
            ):
                expected = np.concatenate([alone[pair] for pair in request])
                differing += int(
                    (rewards(answer).view(np.uint32) != expected.view(np.uint32)).sum()
                )
                rows += len(request)
            say(
                f"compositions: {counted.get('reward_batch_rows_count', 0):.0f} runs, "
                f"{rows} rows, {differing} differ"
            )
    tokens, saved, padding = (
        counted[f"reward_{name}_total"] for name in ("tokens", "shared_tokens", "padding_tokens")
    )
    # rows that were answered by another one's run are none; a Ray histogram's sum is approximate
    ran = rows - counted.get("reward_reused_rows_total", 0.0)
    result = {
        "runs": counted["reward_batch_rows_count"],
        "rows": rows,
        "rows_per_run": ran / counted["reward_batch_rows_count"],
        "padding_share": padding / (tokens - saved + padding),
        "shared_tokens": saved / tokens,
        "differing": differing,
    }
    full = result["rows_per_run"] >= MIN_ROWS and result["padding_share"] <= MAX_PADDING
    return result | {"reached": differing == 0 and full}
