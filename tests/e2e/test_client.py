"""reward-client in its three forms against the served bundle: the same bits, the same refusals."""

import asyncio
from collections.abc import Iterator

import pytest

from reward_client import AsyncClient, Client, Refused, Scores
from reward_client.rpc import GrpcClient
from service.bundle import Bundle
from service.pairs import Pair
from service.scorer import Scorer, score_offline
from training.demo.walk import Service, serving

TURNS = ({"role": "system", "content": ""}, {"role": "user", "content": "What is 2 plus 2?"})
PAIRS = [("What is 2 plus 2?", "The sum is 4."), (TURNS, "Grüße, 世界 👋"), ("a", "b" * 3000)]
TEXT = (
    "<|im_start|>user\nWhat is 2 plus 2?<|im_end|>\n"
    "<|im_start|>assistant\nThe sum is 4.<|im_end|>\n"
)


@pytest.fixture(scope="module")
def service(bundle: Bundle) -> Iterator[Service]:
    with serving(bundle.path) as service:
        yield service


def test_every_form_of_the_client_gives_the_same_bits(service: Service, scorer: Scorer) -> None:
    async def asked() -> list[Scores]:
        async with AsyncClient(service.url) as client:
            return [await client.score(PAIRS), await client.score_texts([TEXT])]

    with Client(service.url) as http, GrpcClient(service.grpc) as rpc:
        forms = [[client.score(PAIRS), client.score_texts([TEXT])] for client in (http, rpc)]
    forms.append(asyncio.run(asked()))
    (first,) = score_offline(scorer, [Pair(*PAIRS[0])])
    for pairs, text in forms:
        assert pairs == forms[0][0]
        assert text == forms[0][1]
        assert pairs.rewards[0] == text.rewards[0] == first.reward


def test_a_refusal_has_the_same_code_and_field(service: Service) -> None:
    found = []
    with Client(service.url) as http, GrpcClient(service.grpc) as rpc:
        for client in (http, rpc):
            with pytest.raises(Refused) as caught:
                client.score([PAIRS[0], ("", "b")])
            found.append((caught.value.code, caught.value.field))
    assert found == [("invalid_request", "pairs[1].prompt")] * 2
