"""The HTTP edge on the real scorer: shapes, bad input, and the same bits in any company."""

import asyncio
import gzip
import json
import re
from collections.abc import AsyncIterator

import httpx
import numpy as np
import pytest

from service.bundle import Bundle
from service.config import ServiceConfig
from service.http_api import build_http
from service.journal import Journal
from service.keys import Keys
from service.metrics import Recorder
from service.ragged_budget import RaggedBudget
from service.ragged_engine import RaggedEngine
from service.scorer import Scorer
from tests.e2e.cases import REFUSED
from training.demo.data import generate


class Counting(RaggedEngine):
    """The real engine; counts what it runs."""

    def __init__(self, bundle: Bundle) -> None:
        super().__init__(bundle, "fp32", 2)
        self.runs = self.rows = self.shared = self.cached = 0

    def run(self, rows, prefix_tokens=0):
        self.runs += 1
        self.rows += len(rows)
        self.shared += prefix_tokens > 0
        self.cached += 0 < prefix_tokens <= self.cached_tokens(rows[0])
        return super().run(rows, prefix_tokens)


@pytest.fixture(scope="module")
def counting(bundle: Bundle, config: ServiceConfig):
    scorer = Scorer(bundle, Counting(bundle), RaggedBudget(1024), config)
    yield scorer
    scorer.close()


def client(scorer: Scorer, config: ServiceConfig, keys: Keys | None = None) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(
        build_http(scorer, config, Journal(Recorder()), keys), raise_app_exceptions=False
    )
    return httpx.AsyncClient(transport=transport, base_url="http://service", timeout=60)


def ask(
    scorer: Scorer,
    config: ServiceConfig,
    method: str,
    path: str,
    keys: Keys | None = None,
    **options,
) -> httpx.Response:
    async def go() -> httpx.Response:
        async with client(scorer, config, keys) as http:
            return await http.request(method, path, **options)

    return asyncio.run(go())


def test_the_answer_has_the_documented_shape(scorer: Scorer, config, bundle: Bundle) -> None:
    body = {"prompt": "What is 2 plus 2?", "responses": ["4.", ""]}
    answer = ask(scorer, config, "POST", "/score", json=body).json()
    assert list(answer) == ["rewards", "results", "bundle", "engine", "timing", "request_id"]
    assert answer["rewards"] == [result["reward"] for result in answer["results"]]
    first = answer["results"][0]
    assert list(first) == ["reward", "raw_reward", "tokens", "truncated", "tokens_cut"]
    mean = bundle.manifest.normalization.mean
    assert first["raw_reward"] == pytest.approx(first["reward"] + mean, abs=1e-6)
    assert answer["bundle"] == {
        "id": bundle.manifest.id, "name": "tiny", "variant": "fp32", "normalized": True,
        "bit_invariant": True,
    }  # fmt: skip
    assert list(answer["timing"]) == ["tokenize_ms", "queue_ms", "engine_ms"]


def test_both_forms_and_both_prompts_give_the_same_bits(scorer, config) -> None:
    message = [{"role": "user", "content": "Hi"}]
    bodies = [
        {"prompt": "Hi", "responses": ["a", "b"]},
        {"prompt": message, "responses": ["a", "b"]},
        {"pairs": [{"prompt": "Hi", "response": "a"}, {"prompt": message, "response": "b"}]},
    ]
    rewards = [ask(scorer, config, "POST", "/score", json=b).json()["rewards"] for b in bodies]
    assert rewards[0] == rewards[1] == rewards[2]


def test_what_the_limits_cut_is_said(scorer, config) -> None:
    body = {"prompt": "red kite " * 400, "responses": ["x"]}
    result = ask(scorer, config, "POST", "/score", json=body).json()["results"][0]
    assert result["truncated"] and result["tokens_cut"] > 0 and result["tokens"] <= 256


PAIR = {"prompt": "a", "response": "b"}
MALFORMED = {
    "not json": (b"nope", 400, "body"),
    "nothing": (b"", 400, "body"),
    "a list": (b"[]", 400, "body"),
    "invalid utf-8": (b'{"prompt": "\xff", "responses": ["x"]}', 400, "body"),
    "a lone surrogate": (rb'{"prompt": "\ud800", "responses": ["x"]}', 400, "body"),
    "an unknown field": ({"pairs": [PAIR], "model": "x"}, 400, "model"),
    "an unknown field in a pair": ({"pairs": [PAIR | {"k": 1}]}, 400, "pairs[0].k"),
    "a number as response": (
        {"pairs": [PAIR, {"prompt": "a", "response": 1}]}, 400, "pairs[1].response",
    ),
    "a number as prompt": ({"pairs": [{"prompt": 1, "response": "b"}]}, 400, "pairs[0].prompt"),
    "messages for a pair": (
        {"pairs": [PAIR | {"messages": []}]}, 400, "pairs[0].messages",
    ),
    "an unknown truncation": (
        {"pairs": [PAIR], "truncation": "left"}, 400, "truncation",
    ),
    "a deadline beyond all numbers": (
        b'{"pairs": [{"prompt": "a", "response": "b"}], "deadline_ms": 1%s}' % (b"0" * 309),
        400, "deadline_ms",
    ),
    "a truth as deadline": ({"pairs": [PAIR], "deadline_ms": True}, 400, "deadline_ms"),
    "a text as deadline": ({"pairs": [PAIR], "deadline_ms": "1500"}, 400, "deadline_ms"),
    "a deadline in parts": ({"pairs": [PAIR], "deadline_ms": 1500.5}, 400, "deadline_ms"),
    "a prompt alone": ({"prompt": "a"}, 400, "body"),
    "a message without content": (
        {"prompt": [{"role": "user"}], "responses": ["x"]}, 400, "prompt[0].content",
    ),
    "a body over the limit": (b'"' + b"a" * 200_001 + b'"', 413, "body"),
}  # fmt: skip
BAD = MALFORMED | {case.name: (case.request, case.http, case.field) for case in REFUSED}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_and_named_and_nothing_is_queued(counting, config, case: str) -> None:
    body, status, field = BAD[case]
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    before = counting.engine.rows
    answer = ask(counting, config, "POST", "/score", content=content)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert list(error) == ["code", "message", "field"] and error["field"] == field
    assert field in error["message"]
    assert counting.engine.rows == before


@pytest.mark.parametrize("deadline_ms", [60_000, 60_000.0, 2**53 - 1])
def test_a_deadline_is_a_whole_number_however_it_is_written(scorer, config, deadline_ms) -> None:
    body = {"pairs": [PAIR], "deadline_ms": deadline_ms}
    assert ask(scorer, config, "POST", "/score", json=body).status_code == 200


def test_a_chunked_body_over_the_limit_is_refused_while_it_comes(scorer, config) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(50):
            yield b" " * 10_000

    answer = ask(scorer, config, "POST", "/score", content=chunks())
    assert answer.status_code == 413 and answer.json()["error"]["field"] == "body"


def test_compressed_bodies_and_huge_headers_are_refused(scorer, config) -> None:
    body = gzip.compress(json.dumps({"pairs": [PAIR]}).encode())
    packed = ask(
        scorer, config, "POST", "/score", content=body, headers={"content-encoding": "gzip"}
    )
    assert packed.status_code == 400 and packed.json()["error"]["field"] == "content-encoding"
    huge = ask(scorer, config, "GET", "/healthz", headers={"x-huge": "a" * 20_000})
    assert huge.status_code == 413 and huge.json()["error"]["field"] == "headers"


def test_a_body_said_to_be_as_it_is_may_be_said_so_in_capitals(scorer, config) -> None:
    """RFC 9110, 8.4.1: content codings are case-insensitive."""
    headers = {"content-encoding": "Identity"}
    answer = ask(scorer, config, "POST", "/score", json={"pairs": [PAIR]}, headers=headers)
    assert answer.status_code == 200


def test_who_is_refused_learns_where_a_key_may_stand(scorer, config) -> None:
    """`/score` takes none from its URL; trainers' endpoints do, and the message says which do."""
    key = "k3y-of-today.0123456789abcdef"
    answer = ask(scorer, config, "POST", f"/score?key={key}", Keys([key]), json={"pairs": [PAIR]})
    assert answer.status_code == 401
    assert "in the URL it is taken by trainers' endpoints only" in answer.json()["error"]["message"]


def test_an_unknown_path_or_method_is_answered_as_any_refusal(scorer, config) -> None:
    path = ask(scorer, config, "POST", "/key=a-secret/scores", json={"pairs": [PAIR]})
    assert path.status_code == 404
    assert list(path.json()["error"]) == ["code", "message", "field"]
    assert (path.json()["error"]["code"], path.json()["error"]["field"]) == ("not_found", "path")
    assert "a-secret" not in path.text
    for url, allowed in (("/score", "POST"), ("/get_reward", "POST"), ("/healthz", "GET")):
        method = ask(scorer, config, "DELETE", url)
        assert (method.status_code, method.headers["allow"]) == (405, allowed)
        error = method.json()["error"]
        assert (error["code"], error["field"]) == ("method_not_allowed", "method")
        assert f"takes {allowed}" in error["message"]


def test_a_pair_that_breaks_the_engine_is_an_error_without_a_trace(bundle, config) -> None:
    class Broken(RaggedEngine):
        def run(self, rows, prefix_tokens=0):
            raise RuntimeError("secret path")

    scorer = Scorer(bundle, Broken(bundle, "fp32"), RaggedBudget(1024), config)
    group = ask(scorer, config, "POST", "/score", json={"prompt": "a", "responses": ["b"]})
    answer = ask(scorer, config, "POST", "/score", json={"pairs": [PAIR]})
    scorer.close()
    assert answer.status_code == 500 and answer.json()["error"]["field"] == "pairs[0]"
    assert group.status_code == 500 and group.json()["error"]["field"] == "responses[0]"
    assert "secret path" not in answer.text and "Traceback" not in answer.text


def test_openapi_describes_the_request_and_every_reference_resolves(scorer, config) -> None:
    schema = ask(scorer, config, "GET", "/openapi.json").json()
    references = re.findall(r'"\$ref": "#/components/schemas/(\w+)"', json.dumps(schema))
    assert {"ScoreRequest", "ScorePair", "Message", "ScoreResponse"} <= set(references)
    assert set(references) <= set(schema["components"]["schemas"])
    request = schema["components"]["schemas"]["ScoreRequest"]
    assert set(request["properties"]) == {
        "pairs", "prompt", "responses", "truncation", "deadline_ms",
    }  # fmt: skip
    assert {"200", "400", "413", "422", "503"} <= set(
        schema["paths"]["/score"]["post"]["responses"]
    )


def test_the_same_bits_in_any_company(counting: Scorer, config: ServiceConfig) -> None:
    """1,000 engine runs over random compositions, several requests at a time: bits after JSON.

    At least 8 rows per engine run on average, or the test proves little.
    """
    rng = np.random.default_rng(0)
    groups: list[list[int]] = []
    pool: list[dict] = []
    for record in generate(60, seed=5):
        prompt = record["prompt"] * int(rng.integers(1, 4))
        groups.append([len(pool) + i for i in range(len(record["responses"]))])
        pool += [{"prompt": prompt, "response": response} for response in record["responses"]]

    def compose() -> np.ndarray:
        """Pairs at random, some of them twice, or all responses to some prompts."""
        if rng.random() < 0.5:
            return rng.integers(0, len(pool), rng.integers(1, 40))
        prompts = rng.choice(len(groups), rng.integers(1, 5), replace=False)
        return np.concatenate([groups[i] for i in prompts])

    engine = counting.engine

    async def go() -> None:
        async with client(counting, config) as http:

            async def score(chosen: np.ndarray) -> np.ndarray:
                answer = await http.post("/score", json={"pairs": [pool[i] for i in chosen]})
                return np.array(answer.json()["rewards"], np.float32).view(np.uint32)

            alone = np.concatenate([await score(np.array([i])) for i in range(len(pool))])
            assert engine.runs == engine.rows == len(pool) and not engine.shared
            engine.runs = engine.rows = 0
            while engine.runs < 1000:
                chosen = [compose() for _ in range(8)]
                for indices, got in zip(
                    chosen, await asyncio.gather(*map(score, chosen)), strict=True
                ):
                    assert (got == alone[indices]).all()

    engine.runs = engine.rows = 0
    asyncio.run(go())
    assert engine.runs >= 1000
    assert engine.rows / engine.runs >= 8
    assert engine.shared > 100 and engine.cached > 30  # prefixes shared, and taken from the cache
