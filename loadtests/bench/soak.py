"""A long stream of requests of random lengths: does memory stay flat, does every bit?

What an allocator keeps, it may keep for every shape it has met; so lengths are spread evenly over
their logarithm, from one token to the longest, and every request has other company than before.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import uvloop

from loadtests.bench import model, servers
from loadtests.bench.clients import closed_loop
from loadtests.bench.measure import body, check, rewards
from loadtests.bench.offline import Offline
from loadtests.bench.processes import pss_bytes
from loadtests.bench.servers import Server
from loadtests.bench.workloads import Request, Writer
from service.pairs import Pair

POOL, SAMPLES, IN_FLIGHT = 3000, 100, 32
PROMPT_TOKENS, RESPONSE_TOKENS = 1000, 500
CACHE_BYTES = 4 * 2**20
"""of kept prefixes: full before the second tenth, so that what grows after it is left over. Towards
the service's default of 128 MiB they grow for all of 200,000 requests of these few prompts"""
GROWTH = 0.03
"the last tenth of the samples may be this much above the second one"


def pool(words: list[str], seed: int) -> list[Request]:
    """Requests of one pair each; half of them share their prompt with the one before."""
    write = Writer(words, seed)
    requests: list[Request] = []
    prompt = ""
    for i in range(POOL):
        prompt = prompt if i % 2 else write.text(write.log_uniform(PROMPT_TOKENS))
        requests.append((Pair(prompt, write.text(write.log_uniform(RESPONSE_TOKENS))),))
    return requests


def soak(bundle: Path, requests: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Raises WrongReward. Memory of a service of its own, after every hundredth of the requests."""
    texts = pool(model.words(bundle), seed=5)
    offline = Offline(bundle)
    expected = offline.run(texts).rewards
    offline.close()
    with servers.service(bundle, f"--set=prefix_cache_bytes={CACHE_BYTES}") as service:
        return stream(service, texts, expected, requests, say)


def stream(
    service: Server,
    texts: Sequence[Request],
    expected: Sequence[np.ndarray],
    requests: int,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Texts in random order, as many requests as are asked for; raises WrongReward."""
    bodies = [body(request) for request in texts]
    random = np.random.default_rng(5)
    pss, started = [], time.perf_counter()
    for sample in range(SAMPLES):
        chosen = random.integers(0, len(texts), requests // SAMPLES)
        answers = uvloop.run(closed_loop(service.score, [bodies[i] for i in chosen], IN_FLIGHT))
        check([rewards(answer) for answer in answers], [expected[i] for i in chosen], exact=True)
        pss.append(pss_bytes(service.pid))
        if sample % 10 == 9:
            say(f"soak: {(sample + 1) * len(chosen)} requests, {pss[-1] / 2**20:.0f} MiB")
    tenth = SAMPLES // 10
    growth = statistics.mean(pss[-tenth:]) / statistics.mean(pss[tenth : 2 * tenth]) - 1
    return {
        "requests": requests,
        "requests_per_s": requests / (time.perf_counter() - started),
        "pss_bytes": pss,
        "growth": growth,
        "goal": GROWTH,
        "reached": growth <= GROWTH,
    }
