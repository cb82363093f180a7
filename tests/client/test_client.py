"""reward-client against the real HTTP edge, and against a server that fails as proxies do."""

import asyncio
import math
import multiprocessing
import pickle
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate

import pytest
import uvicorn

from reward_client import AsyncClient, BadAnswer, Client, Refused, Scores, Unavailable
from reward_client.retry import Ask, Sleep, steps
from reward_client.rpc import GrpcClient
from reward_client.wire import Again, retry_after_s
from service.http_api import build_http
from service.journal import Journal
from service.metrics import Recorder
from service.pairs import Pair, Templated
from service.scorer import Scorer, score_offline
from tests.client.scripted import (
    HAPROXY_500,
    RAY_404,
    RAY_500,
    answered,
    refused,
    scored,
    scripted,
)

PAIRS = [("What is 7 plus 5?", "The sum is 12."), ("What is 7 plus 5?", "It is red."), ("Hi", "")]
OK = scored([1.5])


@pytest.fixture(scope="module")
def url(scorer: Scorer, config) -> Iterator[str]:
    """The service's own ASGI application on a port."""
    app = build_http(scorer, config, Journal(Recorder()))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def expected(scorer: Scorer) -> list[float]:
    return [result.reward for result in score_offline(scorer, [Pair(*pair) for pair in PAIRS])]


def _sync(url: str, pairs=PAIRS[:1], **options) -> Scores:
    with Client(url, **options) as client:
        return client.score(pairs)


def _async(url: str, pairs=PAIRS[:1], **options) -> Scores:
    return asyncio.run(AsyncClient(url, **options).score(pairs))


@pytest.fixture(params=[_sync, _async], ids=["sync", "async"])
def score(request) -> Callable[..., Scores]:
    return request.param


def _texts_sync(url: str, texts: list[str]) -> Scores:
    with Client(url) as client:
        return client.score_texts(texts)


def _texts_async(url: str, texts: list[str]) -> Scores:
    return asyncio.run(AsyncClient(url).score_texts(texts))


@pytest.fixture(params=[_texts_sync, _texts_async], ids=["sync", "async"])
def score_texts(request) -> Callable[..., Scores]:
    return request.param


def test_both_clients_give_the_scorers_bits(url: str, score, expected, scorer: Scorer) -> None:
    scores = score(url, PAIRS)
    assert scores.rewards == expected
    assert (scores.bundle_id, scores.attempts) == (scorer.bundle.manifest.id, 1)
    assert score(url, PAIRS, bundle_id=scores.bundle_id).rewards == expected


def test_a_group_and_a_conversation(url: str, expected) -> None:
    with Client(url) as client:
        assert client.score_group(PAIRS[0][0], [PAIRS[0][1], PAIRS[1][1]]).rewards == expected[:2]
        conversation = [{"role": "user", "content": PAIRS[0][0]}]
        assert client.score([(conversation, PAIRS[0][1])]).rewards == expected[:1]
        assert client.bundle()["id"] == client.score(PAIRS).bundle_id


def test_a_templated_text_is_scored_as_it_comes(url: str, score_texts, scorer: Scorer) -> None:
    prompt, response = PAIRS[0]
    turns = f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n{response}<|im_end|>\n"
    offline = score_offline(scorer, [Templated(turns)])
    assert score_texts(url, [turns]).rewards == [result.reward for result in offline]
    assert score_texts(url, [turns]).rewards == _sync(url).rewards


def test_more_than_one_request_holds_keeps_the_order(url: str, score, scorer: Scorer) -> None:
    pairs = [("Count to ten.", f"{i} sheep") for i in range(1030)]
    some = [0, 1023, 1024, 1029]
    offline = score_offline(scorer, [Pair(*pairs[i]) for i in some])
    rewards = score(url, pairs).rewards
    assert len(rewards) == len(pairs)
    assert [rewards[i] for i in some] == [result.reward for result in offline]


def test_what_the_service_refuses_is_raised_at_once_with_its_field(url: str, score) -> None:
    with pytest.raises(Refused) as caught:
        score(url, [PAIRS[0], ("", "b")])
    assert (caught.value.status, caught.value.code) == (400, "invalid_request")
    assert caught.value.field == "pairs[1].prompt"
    with pytest.raises(Refused) as caught:
        score(f"{url}/no/such/path", deadline_s=5)
    assert (caught.value.status, caught.value.code) == (404, "not_found")
    with pytest.raises(ValueError, match="nothing to score"):
        score(url, [])


def _rpc(url: str, pairs=PAIRS[:1], **options) -> Scores:
    with GrpcClient(url.removeprefix("http://"), **options) as client:
        return client.score(pairs)


USER = {"role": "user", "content": "Q"}
NO_PAIRS = {
    "no response": (("Q", None), "pairs[1].response"),
    "a number": (("Q", 5), "pairs[1].response"),
    "half of a character": (("Q", "a\ud83d"), "pairs[1].response"),
    "no prompt": ((None, "b"), "pairs[1].prompt"),
    "no list of messages": ((USER, "b"), "pairs[1].prompt[0]"),
    "no content": (([USER | {"content": None}], "b"), "pairs[1].prompt[0].content"),
    "content in blocks": (
        ([USER, USER | {"content": [{"type": "text", "text": "Q"}]}], "b"),
        "pairs[1].prompt[1].content",
    ),
    "no role": (([{"content": "Q"}], "b"), "pairs[1].prompt[0].role"),
    "one key more": (([USER | {"name": "Ann"}], "b"), "pairs[1].prompt[0].name"),
}


@pytest.mark.parametrize("ask", [_sync, _async, _rpc], ids=["sync", "async", "grpc"])
@pytest.mark.parametrize("case", NO_PAIRS)
def test_what_is_no_pair_is_refused_before_anything_is_asked(ask, case: str) -> None:
    pair, field = NO_PAIRS[case]
    with scripted(OK) as server:
        with pytest.raises(Refused, match=re.escape(field)) as caught:
            ask(server.url, [PAIRS[0], pair], deadline_s=1)
        assert (caught.value.code, caught.value.field) == ("invalid_request", field)
        assert not server.asked


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422])
def test_a_refusal_of_the_service_is_not_asked_again(score, status: int) -> None:
    with scripted(refused(status, "some_code")) as server:
        with pytest.raises(Refused) as caught:
            score(server.url)
        assert (caught.value.status, len(server.asked)) == (status, 1)
        assert pickle.loads(pickle.dumps(caught.value)).code == "some_code"


def test_the_404_of_another_server_is_a_refusal_too(score) -> None:
    with scripted((404, {}, b'{"detail": "Not Found"}')) as server:
        with pytest.raises(Refused, match="Not Found") as caught:
            score(server.url)
        assert (caught.value.code, len(server.asked)) == ("", 1)


@pytest.mark.parametrize(
    "failure",
    [
        RAY_404,
        RAY_500,
        HAPROXY_500,
        refused(500, "internal"),
        refused(503, "overloaded"),
        refused(429, "too_many"),
        (408, {}, b"Request timed out"),
        (0, {}, 0.0),
    ],
    ids=["ray 404", "ray 500", "haproxy", "our 500", "503", "429", "408", "closed"],
)
def test_what_may_pass_is_asked_again(score, failure) -> None:
    with scripted(failure, failure, OK) as server:
        scores = score(server.url)
        assert (scores.rewards, scores.attempts, len(server.asked)) == ([1.5], 3, 3)
        for _, _, body in server.asked:
            assert 0 < body.pop("deadline_ms") <= 120_000
        assert len({str(body) for _, _, body in server.asked}) == 1


def test_an_attempt_that_hangs_is_given_up_and_repeated(score) -> None:
    with scripted((0, {}, 3.0), OK) as server:
        assert score(server.url, attempt_s=1.0).attempts == 2


def test_a_port_where_nobody_listens_is_asked_until_the_deadline(score) -> None:
    with scripted(OK) as server:
        url = server.url
    started = time.monotonic()
    with pytest.raises(Unavailable, match="Connect") as caught:
        score(url, deadline_s=1.0)
    assert caught.value.attempts >= 3
    assert time.monotonic() - started < 2.0  # the deadline, and a loaded machine


def test_retry_after_is_waited_out(score) -> None:
    with scripted(refused(503, "overloaded", **{"retry-after": "1"}), OK) as server:
        score(server.url)
        (first, _, _), (second, _, _) = server.asked
    assert second - first >= 1.0


def test_a_retry_after_beyond_the_deadline_is_not_waited_for(score) -> None:
    started = time.monotonic()
    with (
        scripted(refused(503, "overloaded", **{"retry-after": "60"})) as server,
        pytest.raises(Unavailable, match="503"),
    ):
        score(server.url, deadline_s=5.0)
    assert time.monotonic() - started < 5.0


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (scored([]), "0 came for 1"),
        (scored([1.0, 2.0]), "2 came for 1"),
        (scored([None]), "not a number"),
        (scored([True]), "not a number"),
        (scored(["1.0"]), "not a number"),
        (scored([math.nan]), "not finite"),
        (scored([math.inf]), "not finite"),
        (scored([1.0], bundle="sha256:b"), "sha256:b answered"),
        ((200, {}, b"<html>welcome</html>"), "no score response"),
        ((200, {}, b"[1.0]"), "no score response"),
        (answered(0.5, []), "no score response"),
        (answered([1.5], []), "0 came with 1 rewards"),
    ],
)
def test_a_reward_is_never_made_up(score, answer, why: str) -> None:
    with scripted(answer) as server, pytest.raises(BadAnswer, match=why):
        score(server.url, bundle_id="sha256:a")


def test_the_key_travels_as_a_bearer_token_and_is_not_printed(score, monkeypatch) -> None:
    with scripted(OK) as server:
        score(server.url, api_key="secret")
        monkeypatch.setenv("REWARD_SERVICE_API_KEY", "from-the-environment")
        score(server.url)
        sent = [headers["authorization"] for _, headers, _ in server.asked]
    assert sent == ["Bearer secret", "Bearer from-the-environment"]
    assert "secret" not in repr(Client("http://x", api_key="secret"))


def test_a_proxy_of_the_environment_counts_only_where_it_may(score, monkeypatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    with scripted(OK) as server:
        assert score(server.url, trust_env=False).rewards == [1.5]
        with pytest.raises(Unavailable):
            score(server.url, deadline_s=0.5)


def test_one_client_serves_many_threads_and_keeps_its_connections(url: str, expected) -> None:
    with scripted(OK) as server, Client(server.url) as client:
        for _ in range(20):
            client.score(PAIRS[:1])
        assert server.connections == 1
    with Client(url) as client, ThreadPoolExecutor(16) as threads:
        for scores in threads.map(lambda _: client.score(PAIRS), range(100)):
            assert scores.rewards == expected


def test_one_async_client_serves_one_event_loop_after_another(url: str, expected) -> None:
    client = AsyncClient(url)

    async def many() -> list[Scores]:
        return await asyncio.gather(*[client.score(PAIRS) for _ in range(50)])

    for _ in range(5):
        assert all(scores.rewards == expected for scores in asyncio.run(many()))
    with ThreadPoolExecutor(4) as threads:
        for part in threads.map(lambda _: asyncio.run(many()), range(4)):
            assert all(scores.rewards == expected for scores in part)


def test_threads_with_an_event_loop_each_share_one_async_client() -> None:
    """Loops end while others begin, many are known, and threads change as often as they can."""
    interval = sys.getswitchinterval()
    with scripted(OK) as server, ThreadPoolExecutor(8) as threads:
        client = AsyncClient(server.url)
        held = [_scored_in_a_loop(client) for _ in range(60)]
        sys.setswitchinterval(1e-5)
        try:
            asked = [threads.submit(_loops, client, 20) for _ in range(8)]
            assert [one.result() for one in asked] == [20] * 8
        finally:
            sys.setswitchinterval(interval)
        for loop in held:
            _end(loop)


def _loops(client: AsyncClient, count: int) -> int:
    for _ in range(count):
        _end(_scored_in_a_loop(client))
    return count


def _scored_in_a_loop(client: AsyncClient) -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    assert loop.run_until_complete(client.score(PAIRS[:1])).rewards == [1.5]
    return loop


def _end(loop: asyncio.AbstractEventLoop) -> None:
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()


@pytest.mark.filterwarnings("error::ResourceWarning")
def test_the_end_of_an_event_loop_closes_its_connections() -> None:
    with scripted(OK) as server:
        client = AsyncClient(server.url)
        for _ in range(3):
            asyncio.run(client.score(PAIRS[:1]))
        assert server.connections == 3


@pytest.mark.parametrize("how", ["spawn", "fork"])
def test_a_client_goes_to_another_process(url: str, expected, how: str) -> None:
    client = Client(url)
    client.score(PAIRS)  # with a connection open that must not be shared
    with multiprocessing.get_context(how).Pool(2) as pool:
        for scores in pool.map(client.score, [PAIRS] * 4):
            assert scores.rewards == expected


def test_settings_that_cannot_work_are_refused() -> None:
    with pytest.raises(ValueError, match="begins with neither"):
        Client("127.0.0.1:8000")
    with pytest.raises(ValueError, match="deadline_s"):
        Client("http://x", deadline_s=0)


def test_pauses_grow_within_their_bounds_and_end_at_the_deadline() -> None:
    """The policy on a clock of its own: nothing after the deadline, pauses double to 5 s."""
    now = 0.0
    run = steps(now, deadline_s=60.0, attempt_s=7.0, what="x")
    pauses = []
    step: Ask | Sleep | None = next(run)
    while step is not None:
        if isinstance(step, Sleep):
            pauses.append(step.seconds)
            now, outcome = now + step.seconds, None
        else:
            assert now < 60 and step.timeout_s <= min(7.0, 60 - now)
            now, outcome = now + 0.5, Again("boom")
        try:
            step = run.send((now, outcome))
        except Unavailable as error:
            step, last = None, str(error)
    assert last.endswith("the last: boom")
    for i, pause in enumerate(pauses):
        longest = min(5.0, 0.1 * 2**i)
        assert longest / 2 <= pause <= longest
    assert len(set(pauses)) == len(pauses)


def test_retry_after_is_a_number_or_a_date() -> None:
    assert retry_after_s("7") == 7.0
    assert retry_after_s(formatdate(1000.0, usegmt=True), now=997.0) == 3.0
    assert retry_after_s(formatdate(1000.0, usegmt=True), now=2000.0) == 0.0
    assert [retry_after_s(value) for value in (None, "soon", "-3", "inf")] == [0.0] * 4
