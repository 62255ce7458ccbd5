"""A flight belongs to no client: it goes on while anybody waits, and ends when nobody does."""

import asyncio

from semcache.cache.flight import Flight, Flights


class Reply:
    """A recording, as far as a flight cares."""

    def __init__(self, is_delivering: bool = True) -> None:
        self.is_joinable = True
        self.is_delivering = is_delivering
        self.is_over = False


class Fetch:
    """A fetch that runs until told, and tells how it ended."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.ended = asyncio.Event()
        self.cancelled = False

    async def __call__(self, flight: Flight[Reply]) -> None:
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        finally:
            self.ended.set()


async def test_equal_requests_share_one_flight_until_it_lands() -> None:
    flights: Flights[Reply] = Flights()
    fetch = Fetch()
    flight = flights.lead(b"k", Reply(), fetch)
    assert flights.find(b"k") is flight
    assert flights.find(b"other") is None
    flight.recording.is_joinable = False
    assert flights.find(b"k") is None, "too far gone to be followed from its beginning"
    fetch.go.set()
    await flights.drain()
    assert flights.find(b"k") is None
    assert flights.stats() == {"flights": 0, "led": 1, "joined": 1}


async def test_a_leader_that_leaves_is_succeeded() -> None:
    flights: Flights[Reply] = Flights()
    fetch = Fetch()
    flight = flights.lead(b"k", Reply(), fetch)
    with flight:
        follower = flights.find(b"k")
        assert follower is not None
        follower.__enter__()
    await asyncio.sleep(0)
    assert not fetch.cancelled
    fetch.go.set()
    await flights.drain()


async def test_a_flight_nobody_waits_for_is_cancelled_and_cannot_be_joined() -> None:
    flights: Flights[Reply] = Flights()
    fetch = Fetch()
    flight = flights.lead(b"k", Reply(), fetch)
    await asyncio.sleep(0)
    with flight:
        pass
    assert flights.find(b"k") is None, "a follower must not join a fetch that is being cancelled"
    await fetch.ended.wait()
    assert fetch.cancelled


LINGER_S = 0.01


async def test_a_client_that_left_before_anything_came_joins_the_same_fetch() -> None:
    flights: Flights[Reply] = Flights(linger_s=60)
    fetch = Fetch()
    with flights.lead(b"k", Reply(is_delivering=False), fetch):
        await asyncio.sleep(0)
    again = flights.find(b"k")
    assert again is not None
    with again:
        fetch.go.set()
        await flights.drain()
    assert not fetch.cancelled
    assert flights.led == 1


async def test_a_client_that_left_and_does_not_come_back_ends_the_fetch() -> None:
    flights: Flights[Reply] = Flights(linger_s=LINGER_S)
    fetch = Fetch()
    with flights.lead(b"k", Reply(is_delivering=False), fetch):
        await asyncio.sleep(0)
    assert not fetch.ended.is_set()
    await asyncio.wait_for(fetch.ended.wait(), 5)
    assert fetch.cancelled
    assert flights.find(b"k") is None


async def test_a_client_that_came_back_is_waited_for_no_longer_by_the_clock() -> None:
    flights: Flights[Reply] = Flights(linger_s=LINGER_S)
    fetch = Fetch()
    flight = flights.lead(b"k", Reply(is_delivering=False), fetch)
    with flight:
        await asyncio.sleep(0)
    with flight:
        passed = asyncio.Event()
        asyncio.get_running_loop().call_later(2 * LINGER_S, passed.set)
        await passed.wait()
        assert not fetch.ended.is_set()
    await asyncio.wait_for(fetch.ended.wait(), 5)
    assert fetch.cancelled, "the second leaving starts the clock again"


async def test_whoever_has_come_back_is_waited_for_twice_as_long_as_his_next_pause_is_twice_as_long() -> None:
    flights: Flights[Reply] = Flights(linger_s=LINGER_S)
    fetch = Fetch()
    flight = flights.lead(b"k", Reply(is_delivering=False), fetch)
    loop = asyncio.get_running_loop()
    for _ in range(2):
        with flight:
            await asyncio.sleep(0)
    left = loop.time()
    await asyncio.wait_for(fetch.ended.wait(), 5)
    assert loop.time() - left >= 2 * LINGER_S - 0.001


async def test_a_fetch_that_lands_while_nobody_waits_is_kept() -> None:
    flights: Flights[Reply] = Flights(linger_s=LINGER_S)
    fetch = Fetch()
    flight = flights.lead(b"k", Reply(is_delivering=False), fetch)
    with flight:
        await asyncio.sleep(0)
    flight.recording.is_over = True
    passed = asyncio.Event()
    asyncio.get_running_loop().call_later(2 * LINGER_S, passed.set)
    await passed.wait()
    assert not fetch.ended.is_set(), "it may still be storing what came"
    fetch.go.set()
    await flights.drain()
    assert not fetch.cancelled


async def test_a_flight_that_nobody_may_join_ends_at_once() -> None:
    flights: Flights[Reply] = Flights(linger_s=60)
    fetch = Fetch()
    with flights.lead(None, Reply(is_delivering=False), fetch):
        await asyncio.sleep(0)
    await asyncio.wait_for(fetch.ended.wait(), 5)
    assert fetch.cancelled


async def test_a_flight_whose_reply_has_ended_may_still_store_it() -> None:
    flights: Flights[Reply] = Flights()
    fetch = Fetch()
    with flights.lead(b"k", Reply(), fetch) as flight:
        await asyncio.sleep(0)
        flight.recording.is_over = True
    await asyncio.sleep(0)
    assert not fetch.ended.is_set()
    fetch.go.set()
    await flights.drain()
    assert not fetch.cancelled


async def test_a_kept_flight_goes_on_alone() -> None:
    flights: Flights[Reply] = Flights()
    fetch = Fetch()
    with flights.lead(b"k", Reply(), fetch, keep=True):
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not fetch.ended.is_set()
    fetch.go.set()
    await flights.drain()
    assert not fetch.cancelled


async def test_a_successor_under_the_same_key_survives_the_landing_of_the_first() -> None:
    flights: Flights[Reply] = Flights()
    first, second = Fetch(), Fetch()
    flights.lead(b"k", Reply(), first)
    later = flights.lead(b"k", Reply(), second)
    first.go.set()
    await first.ended.wait()
    for _ in range(3):
        await asyncio.sleep(0)
    assert flights.find(b"k") is later
    flights.cancel()
    await flights.drain()
