"""A limit on what waits, and the line before it. Knows amounts; knows nothing of what they are."""

import asyncio
from collections import deque

from service.errors import DeadlineExceeded, Overloaded


class Room:
    """So much at a time. Who finds no room is refused, or waits in line: first come, first served.

    What is larger than the whole limit enters when there is nothing else.
    """

    def __init__(self, limit: int, unit: str, setting: str) -> None:
        self.limit = limit
        self.used = 0
        self._unit = unit
        self._setting = setting
        self._line: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def enter(self, amount: int, due: float | None = None, patient: bool = False) -> None:
        """Take `amount`. `due` is a time of the running loop, None: any.

        Raises Overloaded when there is no room, or, where the caller is patient, DeadlineExceeded
        when there was none until then.
        """
        if not self._line and self._fits(amount):
            self.used += amount
        elif patient:
            await self._wait(amount, due)
        else:
            raise Overloaded(
                f"{self.used} {self._unit} are waiting and the request has {amount}; the limit is "
                f"{self._setting}={self.limit}; retry later"
            )

    def leave(self, amount: int) -> None:
        """Give `amount` back; who waited longest enters."""
        self.used -= amount
        self._admit()

    def clear(self) -> None:
        """Everybody inside has left at once."""
        self.leave(self.used)

    def _fits(self, amount: int) -> bool:
        return not self.used or self.used + amount <= self.limit

    def _admit(self) -> None:
        while self._line and self._fits(self._line[0][0]):
            amount, turn = self._line.popleft()
            self.used += amount
            turn.set_result(None)

    async def _wait(self, amount: int, due: float | None) -> None:
        place = (amount, asyncio.get_running_loop().create_future())
        self._line.append(place)
        try:
            async with asyncio.timeout_at(due):
                await asyncio.shield(place[1])  # only _admit ends it
        except TimeoutError:
            self._give_up(place)
            raise DeadlineExceeded(
                f"no room for {amount} {self._unit} until the deadline; the limit is "
                f"{self._setting}={self.limit}; retry, or send less at a time"
            ) from None
        except asyncio.CancelledError:
            self._give_up(place)
            raise

    def _give_up(self, place: tuple[int, asyncio.Future[None]]) -> None:
        amount, turn = place
        if turn.done():  # its turn came in the same moment
            self.leave(amount)
        else:
            self._line.remove(place)
            self._admit()  # it may have stood before smaller ones
