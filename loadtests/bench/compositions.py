"""Rows in random company: does a reward keep its bits, through JSON, in every batch it meets?

Requests are random: one pair or up to 64, of one prompt or of many, in any order, several at a
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
from loadtests.bench.servers import Server
from loadtests.bench.workloads import Request, Writer
from service.pairs import Pair

Groups = list[list[Pair]]
"pairs by prompt"

FAMILIES, PROMPTS, RESPONSES = 40, 4, 6
AT_ONCE, PART = 32, 600
"requests in flight; requests between two looks at the counters"
MIN_ROWS, MAX_PADDING = 8.0, 0.30
LENGTHS = 60
"tokens of a prompt's own part and of a response at most: 10,000 runs shall take minutes"
CACHE_BYTES = 8 * 2**20
"of kept prefixes: about a tenth of what the pool has, so that they come and go"


def pool(words: list[str], seed: int) -> Groups:
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


def compose(groups: Groups, random: np.random.Generator) -> Request:
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
    order = random.permutation(len(some))[: random.integers(1, 65)]
    return tuple(some[i] for i in order)


def compositions(bundle: Path, runs: int, say: Callable[[str], None]) -> dict[str, Any]:
    """On a service of its own, every answer compared with rows that were scored alone."""
    groups = pool(model.words(bundle), seed=6)
    alone = score_alone(bundle, groups)
    with servers.service(bundle, "--set", f"prefix_cache_bytes={CACHE_BYTES}") as service:
        return mix(service, groups, alone, runs, say)


def score_alone(bundle: Path, groups: Groups) -> dict[Pair, np.ndarray]:
    """Each pair's reward from an engine run of its own."""
    everything = tuple(pair for group in groups for pair in group)
    offline = Offline(bundle)
    scored = offline.alone((everything,))
    offline.close()
    return dict(zip(everything, (reward for _, reward in scored), strict=True))


def mix(
    service: Server,
    groups: Groups,
    alone: dict[Pair, np.ndarray],
    runs: int,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Until the engine has run that often: how full its runs were, and how many bits differ."""
    random = np.random.default_rng(6)
    before, counted = service.settled(), dict[str, float]()
    differing = rows = 0
    while counted.get("reward_batch_rows_count", 0) < runs:
        requests = [compose(groups, random) for _ in range(PART)]
        bodies = [body(request) for request in requests]
        answers = uvloop.run(closed_loop(service.score, bodies, AT_ONCE))
        for request, answer in zip(requests, answers, strict=True):
            expected = np.concatenate([alone[pair] for pair in request])
            differing += int((rewards(answer).view(np.uint32) != expected.view(np.uint32)).sum())
            rows += len(request)
        counted = {name: v - before.get(name, 0.0) for name, v in service.settled().items()}
        say(f"{counted['reward_batch_rows_count']:.0f} runs, {rows} rows, {differing} differ")
    return _judge(counted, rows, differing)


def _judge(counted: dict[str, float], rows: int, differing: int) -> dict[str, Any]:
    tokens, saved, padding = (
        counted.get(f"reward_{name}_total", 0.0)
        for name in ("tokens", "shared_tokens", "padding_tokens")
    )
    # rows that were answered by another one's run are none; a Ray histogram's sum is approximate
    ran = rows - counted.get("reward_reused_rows_total", 0.0)
    rows_per_run = ran / counted["reward_batch_rows_count"]
    padding_share = padding / (tokens - saved + padding)
    return {
        "runs": counted["reward_batch_rows_count"],
        "rows": rows,
        "rows_per_run": rows_per_run,
        "padding_share": padding_share,
        "shared_tokens": saved / tokens,
        "differing": differing,
        "reached": differing == 0 and rows_per_run >= MIN_ROWS and padding_share <= MAX_PADDING,
    }
