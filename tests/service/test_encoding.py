"""What waits for the tokenizers, for how long it counts, and who waits beside it."""

import asyncio
import time
from contextlib import ExitStack

import pytest

from service.bundle import Bundle
from service.config import ServiceConfig
from service.encoding import Encoding
from service.errors import Overloaded
from service.pairs import Asked, Pair, TokenIds, characters
from service.scorer import Scorer
from service.text import Message

GROUP = [Pair("Which apples are red? " * 20, f"The {i} in the basket.") for i in range(64)]


@pytest.mark.parametrize("company", [[], [TokenIds((5,) * 90)] * 50], ids=["texts", "and ids"])
def test_what_waits_is_counted_in_the_tokens_it_will_have(
    bundle: Bundle, company: list[Asked]
) -> None:
    """A prompt once for each of its responses, as the scheduler counts it; ids wait for nobody."""
    encoding, room = Encoding(bundle, 1_000_000), ExitStack()
    rows = asyncio.run(encoding.within([*GROUP, *company], "prompt", None, False, room))
    tokens = sum(len(row.ids) for row in rows[: len(GROUP)])
    assert encoding.waiting_tokens == pytest.approx(tokens)  # a sum of floats
    room.close()
    assert encoding.waiting_tokens == 0
    encoding.close()


def test_texts_count_until_the_scheduler_has_room(config: ServiceConfig) -> None:
    """Who waits patiently for it is still within the limit on characters."""
    limits = {"max_queued_tokens": 200, "max_encoding_characters": 4000}
    scorer = Scorer.open(config.model_copy(update=limits))

    async def go() -> None:
        pairs = [Pair("What is 2 plus 2? " * 10, f"It is {i}.") for i in range(100)]
        asked = [asyncio.create_task(scorer.score([pair], patient=True)) for pair in pairs]
        await asyncio.sleep(0)  # short texts are encoded at once: none waits for a tokenizer
        assert scorer.encoding.waiting_tokens > 1000
        with pytest.raises(Overloaded, match="characters are waiting"):
            await scorer.score([Pair("x" * 1000, "y")])
        scores = await asyncio.gather(*asked)
        assert scorer.encoding.waiting_tokens == 0
        alone = await scorer.score(pairs[:1])
        assert scores[0].results == alone.results

    asyncio.run(go())
    scorer.close()


def test_a_long_text_does_not_hold_up_the_event_loop(bundle: Bundle) -> None:
    """Its tokenizer runs beside Python, which has some lists to make of the tokens afterwards."""
    encoding, longest = Encoding(bundle, 10_000_000), 0.0

    async def watch() -> None:
        nonlocal longest
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0.001)
            longest = max(longest, time.perf_counter() - before)

    async def go() -> float:
        watching = asyncio.create_task(watch())
        before = time.perf_counter()
        with ExitStack() as room:
            await encoding.within([Pair("Q", "x" * 2_000_000)], "prompt", None, False, room)
        watching.cancel()
        return time.perf_counter() - before

    assert asyncio.run(go()) > 3 * longest
    encoding.close()


def test_turns_without_content_count_too() -> None:
    """A template writes something around each, and that takes its time."""
    turns = tuple(Message(role="user", content="") for _ in range(1000))
    assert characters([Pair(turns, "")]) >= 20 * len(turns)
