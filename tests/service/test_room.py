"""Admission: who enters, who is refused, who waits, and that nothing stays taken."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.errors import DeadlineExceeded, Overloaded
from service.room import Room


def room(limit: int = 10) -> Room:
    return Room(limit, "tokens", "max_queued_tokens")


def test_what_fits_enters_and_what_does_not_is_refused_with_the_limit() -> None:
    async def go() -> None:
        tokens = room()
        await tokens.enter(7)
        with pytest.raises(Overloaded, match=r"7 tokens .* has 4; .* max_queued_tokens=10"):
            await tokens.enter(4)
        await tokens.enter(3)
        tokens.leave(10)
        await tokens.enter(99)  # more than the limit, but alone
        assert tokens.used == 99

    asyncio.run(go())


def test_first_come_first_served_even_where_a_later_one_would_fit() -> None:
    entered: list[str] = []

    async def go() -> None:
        tokens = room()
        await tokens.enter(8)

        async def wait(name: str, amount: int) -> None:
            await tokens.enter(amount, patient=True)
            entered.append(name)

        waiting = [asyncio.create_task(wait("large", 6))]
        await asyncio.sleep(0)
        waiting.append(asyncio.create_task(wait("small", 1)))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):  # there is room for it, but not before those who wait
            await tokens.enter(1)
        assert entered == []
        tokens.leave(8)
        await asyncio.gather(*waiting)

    asyncio.run(go())
    assert entered == ["large", "small"]


def test_who_waits_too_long_is_told_and_lets_the_next_one_in() -> None:
    async def go() -> None:
        tokens = room()
        await tokens.enter(8)
        due = asyncio.get_running_loop().time() + 0.05
        large = asyncio.create_task(tokens.enter(9, due, patient=True))
        await asyncio.sleep(0)
        small = asyncio.create_task(tokens.enter(2, patient=True))
        with pytest.raises(DeadlineExceeded):
            await large
        await small
        assert tokens.used == 10

    asyncio.run(go())


@given(st.lists(st.tuples(st.integers(1, 14), st.integers(0, 3)), max_size=30), st.randoms())
@settings(max_examples=60, deadline=None)
def test_whatever_comes_waits_and_leaves_nothing_stays_taken(visits, random) -> None:
    """Visitors stay for some turns of the loop; some are cancelled while they wait or are inside.

    Never more inside than the limit, but for one alone; at the end nobody is.
    """

    async def go() -> None:
        tokens = room()

        async def visit(amount: int, turns: int) -> None:
            await tokens.enter(amount, patient=True)
            try:
                assert tokens.used <= max(10, amount)
                for _ in range(turns):
                    await asyncio.sleep(0)
            finally:
                tokens.leave(amount)

        tasks = []
        for amount, turns in visits:
            tasks.append(asyncio.create_task(visit(amount, turns)))
            await asyncio.sleep(0)
            if random.random() < 0.4:
                random.choice(tasks).cancel()
        async with asyncio.timeout(5):
            await asyncio.gather(*tasks, return_exceptions=True)
        assert tokens.used == 0 and not tokens._line
        assert not any(task.exception() for task in tasks if not task.cancelled())

    asyncio.run(go())
