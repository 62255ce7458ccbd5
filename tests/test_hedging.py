"""A race is over when both have ended, and whatever was brought is taken by somebody or let go."""

from __future__ import annotations

import asyncio

import pytest

from semcache.backends.hedging import race


class Course:
    """The first runner hangs and needs a while to stop; the second brings something at once."""

    def __init__(self) -> None:
        self.brought: list[str] = []
        self.dropped: list[str] = []
        self.running = 0

    async def hang(self) -> str:
        self.running += 1
        try:
            return await asyncio.get_running_loop().create_future()
        finally:
            for _ in range(3):
                await asyncio.sleep(0)
            self.running -= 1

    async def bring(self) -> str:
        self.running += 1
        try:
            await asyncio.sleep(0)
        finally:
            self.running -= 1
        self.brought.append("an answer")
        return "an answer"

    async def drop(self, it: str) -> None:
        self.dropped.append(it)

    async def run(self) -> str:
        return await race(self.hang(), 0.0, self.bring, lambda it: True, self.drop)


async def turns(number: int) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


@pytest.mark.parametrize("again", [None, 0, 1, 2])
@pytest.mark.parametrize("at", range(14))
async def test_nothing_is_lost_at_whatever_moment_a_race_is_cancelled(at: int, again: int | None) -> None:
    course = Course()
    racing = asyncio.create_task(course.run())
    await turns(at)
    racing.cancel()
    if again is not None:
        await turns(again)
        racing.cancel()
    [came] = await asyncio.gather(racing, return_exceptions=True)
    await turns(8)
    assert course.running == 0
    taken = [came] if isinstance(came, str) else []
    assert taken + course.dropped == course.brought


async def test_the_winner_is_handed_over_when_the_loser_has_ended() -> None:
    course = Course()
    assert await course.run() == "an answer"
    assert (course.running, course.dropped) == (0, [])
