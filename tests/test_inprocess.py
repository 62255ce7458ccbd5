"""The cache without a proxy: a program asks, with its own fetch."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from semcache import Cache
from semcache.errors import ClientError, ConfigError, StartError
from semcache.types import Reason, Selector, Tier, Verdict
from tests.fakes import Clock, WordsEmbedder

PARCEL = "Where is the parcel that I ordered last week?"
PARCEL_REWORDED = "Where is the parcel that I ordered last week, please?"


class Model:
    """Counts what it is asked. Set `gate` to hold its answers, `fault` to have none."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.gate: asyncio.Event | None = None
        self.fault: Exception | None = None

    async def __call__(self, question: str) -> str:
        self.asked.append(question)
        if self.gate is not None:
            await self.gate.wait()
        if self.fault is not None:
            raise self.fault
        return f"answer {len(self.asked)} to: {question}"


@asynccontextmanager
async def opened(
    settings: dict[str, Any] | None = None, clock: Clock | None = None, **options: Any
) -> AsyncIterator[Cache]:
    embedder: Any = WordsEmbedder()
    async with Cache(settings, embedder=embedder, clock=clock or Clock(), **options) as cache:
        yield cache


async def landed(cache: Cache) -> None:
    """Wait until every fetch is over and what it brought is stored."""
    while cache.stats()["pipeline"]["flights"]:
        await asyncio.sleep(0)


async def test_a_question_is_fetched_once_and_a_rewording_is_answered_too() -> None:
    model = Model()
    async with opened({"match": {"threshold": 0.8}}) as cache:
        first = await cache.ask(PARCEL, context={"lang": "en"}, fetch=model)
        again = await cache.ask(PARCEL, context={"lang": "en"}, fetch=model)
        reworded = await cache.ask(PARCEL_REWORDED, context={"lang": "en"}, fetch=model)
        assert (first.verdict, first.reason) == (Verdict.MISS, Reason.NO_ENTRY)
        assert (again.verdict, again.tier, again.text) == (Verdict.HIT, Tier.EXACT, first.text)
        assert (reworded.verdict, reworded.tier, reworded.text) == (Verdict.HIT, Tier.SEMANTIC, first.text)
        assert reworded.similarity is not None and 0.8 < reworded.similarity < 1
        assert (set(again.phases_ms), set(reworded.phases_ms)) == (set(), {"embed", "search", "verify"})
        assert model.asked == [PARCEL]


@pytest.mark.parametrize(
    "other",
    [{"context": {"lang": "de"}}, {"context": None}, {"model": "large"}, {"tenant": "b"}, {"namespace": "n"}],
    ids=str,
)
async def test_what_must_be_equal_is_never_near(other: dict[str, Any]) -> None:
    model = Model()
    async with opened({"match": {"threshold": 0.5}}) as cache:
        scope = {"context": {"lang": "en"}, "model": "small", "tenant": "a"}
        await cache.ask(PARCEL, fetch=model, **scope)
        await cache.ask(PARCEL, fetch=model, **{**scope, **other})
        assert len(model.asked) == 2


async def test_equal_questions_at_the_same_time_are_one_fetch() -> None:
    model = Model()
    model.gate = asyncio.Event()
    async with opened() as cache:
        asking = [asyncio.create_task(cache.ask(PARCEL, fetch=model)) for _ in range(50)]
        while cache.stats()["pipeline"]["joined"] != 49:
            await asyncio.sleep(0)
        model.gate.set()
        answers = await asyncio.gather(*asking)
        assert len(model.asked) == 1
        assert [answer.verdict for answer in answers].count(Verdict.COALESCED) == 49
        assert len({answer.text for answer in answers}) == 1


async def test_what_the_fetch_raises_reaches_everyone_who_asked_and_is_not_stored() -> None:
    model = Model()
    model.fault = ConnectionResetError("the model is gone")
    model.gate = asyncio.Event()
    async with opened() as cache:
        asking = [asyncio.create_task(cache.ask(PARCEL, fetch=model)) for _ in range(3)]
        while cache.stats()["pipeline"]["joined"] != 2:
            await asyncio.sleep(0)
        model.gate.set()
        raised = await asyncio.gather(*asking, return_exceptions=True)
        assert [type(error) for error in raised] == [ConnectionResetError] * 3
        model.fault = None
        assert (await cache.ask(PARCEL, fetch=model)).text == f"answer 2 to: {PARCEL}"


async def test_a_broken_embedder_costs_the_semantic_tier_only() -> None:
    embedder: Any = WordsEmbedder()
    embedder.fault = RuntimeError("no model")
    model = Model()
    async with Cache(embedder=embedder) as cache:
        answer = await cache.ask(PARCEL, fetch=model)
        assert (answer.verdict, answer.reason) == (Verdict.BYPASS, Reason.CACHE_FAULT)
        assert (await cache.ask(PARCEL, fetch=model)).verdict is Verdict.HIT


async def test_what_is_kept_is_found_by_look_up_and_gone_after_a_purge() -> None:
    async with opened() as cache:
        assert await cache.look_up(PARCEL, context=1) is None
        await cache.keep(PARCEL, "On its way.", context=1)
        found = await cache.look_up(PARCEL, context=1)
        assert found is not None and (found.text, found.verdict) == ("On its way.", Verdict.HIT)
        await cache.keep(PARCEL, "Delivered.", context=1)
        assert (await cache.look_up(PARCEL, context=1)).text == "Delivered."  # type: ignore[union-attr]
        assert await cache.purge(Selector(text=PARCEL)) == 1
        assert await cache.look_up(PARCEL, context=1) is None


async def test_the_callers_wishes_are_those_of_the_headers() -> None:
    model = Model()
    async with opened() as cache:
        await cache.ask(PARCEL, fetch=model, cache_control="no-store")
        await cache.ask(PARCEL, fetch=model, semcache_control="ttl=10")
        await cache.ask(PARCEL, fetch=model, cache_control="no-cache")
        assert len(model.asked) == 3
        with pytest.raises(ClientError, match="Semcache-Control"):
            await cache.ask(PARCEL, fetch=model, semcache_control="similarity=high")


async def test_answers_grow_stale_and_are_refreshed_behind_the_scenes() -> None:
    model, clock = Model(), Clock()
    async with opened({"cache": {"ttl": "60s", "grace": "60s"}}, clock=clock) as cache:
        await cache.ask(PARCEL, fetch=model)
        await landed(cache)
        clock.advance(70)
        stale = await cache.ask(PARCEL, fetch=model)
        assert (stale.verdict, stale.text) == (Verdict.STALE, f"answer 1 to: {PARCEL}")
        await landed(cache)
        assert (await cache.ask(PARCEL, fetch=model)).text == f"answer 2 to: {PARCEL}"


async def test_answers_survive_a_restart_in_a_file(tmp_path: Path) -> None:
    model = Model()
    for _ in range(2):
        async with opened(store=f"sqlite:{tmp_path}/answers.db") as cache:
            await cache.ask(PARCEL, fetch=model)
    assert len(model.asked) == 1


async def test_two_caches_over_one_file_find_what_the_other_has_stored(tmp_path: Path) -> None:
    model, store, near = Model(), f"sqlite:{tmp_path}/answers.db", {"match": {"threshold": 0.8}}
    async with opened(near, store=store) as one, opened(near, store=store) as other:
        await one.keep(PARCEL, "On its way.")
        while await other.look_up(PARCEL_REWORDED) is None:  # told of it within some 100 ms
            await asyncio.sleep(0)
        assert (await other.ask(PARCEL, fetch=model)).tier is Tier.EXACT
        await other.purge(Selector())
        while await one.look_up(PARCEL) is not None:
            await asyncio.sleep(0)
        assert model.asked == []
    async with opened(near, store=store) as again:
        assert await again.look_up(PARCEL) is None


async def test_an_empty_answer_is_given_and_not_stored() -> None:
    async def silent(_: str) -> str:
        return "  "

    async with opened() as cache:
        assert (await cache.ask(PARCEL, fetch=silent)).text == "  "
        assert await cache.look_up(PARCEL) is None


async def test_who_asks_again_after_an_error_does_not_get_it_again() -> None:
    """Nothing need be waited for between the two, so the flight that failed has not been cleared away."""
    model = Model()
    model.fault = ConnectionResetError("the model is gone")
    async with opened() as cache:
        with pytest.raises(ConnectionResetError):
            await cache.ask(PARCEL, fetch=model)
        model.fault = None
        assert (await cache.ask(PARCEL, fetch=model)).text == f"answer 2 to: {PARCEL}"


async def test_an_error_comes_out_with_the_cause_it_was_raised_with() -> None:
    async def failing(_: str) -> str:
        raise LookupError("no such model") from KeyError("small")

    async with opened() as cache:
        with pytest.raises(LookupError) as caught:
            await cache.ask(PARCEL, fetch=failing)
        assert isinstance(caught.value.__cause__, KeyError)


async def test_who_gives_up_leaves_the_others_their_answer() -> None:
    model = Model()
    model.gate = asyncio.Event()
    async with opened() as cache:
        leaving, staying = (asyncio.create_task(cache.ask(PARCEL, fetch=model)) for _ in range(2))
        while cache.stats()["pipeline"]["joined"] != 1:
            await asyncio.sleep(0)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        model.gate.set()
        assert (await staying).text == f"answer 1 to: {PARCEL}"


async def test_closing_ends_the_questions_that_are_under_way() -> None:
    model, embedder = Model(), WordsEmbedder()
    model.gate = asyncio.Event()
    cache = Cache(embedder=embedder)  # type: ignore[arg-type]
    async with cache:
        fetching = asyncio.create_task(cache.ask(PARCEL, fetch=model))
        while not model.asked:
            await asyncio.sleep(0)
        embedder.gate = asyncio.Event()
        looking_up = asyncio.create_task(cache.ask("How are refunds paid out?", fetch=model))
        await asyncio.sleep(0)
    embedder.gate.set()
    for asking in (fetching, looking_up):
        with pytest.raises(RuntimeError, match="not open"):
            await asking
    assert model.asked == [PARCEL]


async def test_closing_ends_a_question_whose_fetch_has_not_begun() -> None:
    model = Model()
    cache = Cache(embedder=WordsEmbedder())  # type: ignore[arg-type]
    async with cache:  # the question is personal, so nothing is embedded, and its flight starts at once
        asking = asyncio.create_task(cache.ask("What is my account balance?", fetch=model))
        await asyncio.sleep(0)
    with pytest.raises(RuntimeError, match="not open"):
        await asking
    assert model.asked == []


async def test_a_cache_that_cannot_open_leaves_its_file_to_others(tmp_path: Path) -> None:
    class Missing(WordsEmbedder):
        async def start(self) -> None:
            raise StartError("the model is missing")

    store = f"sqlite:{tmp_path}/answers.db"
    before = set(threading.enumerate())
    with pytest.raises(StartError, match="model is missing"):
        await Cache(store=store, embedder=Missing()).__aenter__()  # type: ignore[arg-type]
    left = [thread.name for thread in set(threading.enumerate()) - before]
    assert [name for name in left if not name.startswith("asyncio")] == []  # the loop's own executor stays
    async with opened(store=store) as cache:
        assert await cache.look_up(PARCEL) is None


async def test_a_cache_is_opened_once_and_asked_in_its_own_loop() -> None:
    async with opened() as cache:
        with pytest.raises(RuntimeError, match="open already"):
            await cache.__aenter__()
        elsewhere = asyncio.to_thread(asyncio.run, cache.ask(PARCEL, fetch=Model()))
        with pytest.raises(RuntimeError, match="event loop"):
            await elsewhere
        assert (await cache.ask(PARCEL, fetch=Model())).verdict is Verdict.MISS


async def test_who_only_looks_up_can_insist_on_what_is_fresh() -> None:
    clock = Clock()
    async with opened({"cache": {"ttl": "60s", "grace": "60s"}}, clock=clock) as cache:
        await cache.keep(PARCEL, "On its way.")
        clock.advance(70)
        stale = await cache.look_up(PARCEL)
        assert stale is not None and stale.verdict is Verdict.STALE
        assert await cache.look_up(PARCEL, cache_control="max-stale=0") is None


async def test_a_closed_cache_and_wrong_settings_say_so() -> None:
    with pytest.raises(RuntimeError, match="async with"):
        await Cache().ask(PARCEL, fetch=Model())
    with pytest.raises(ConfigError, match=r"match\.threshold"):
        Cache({"match": {"threshold": 2}})


async def test_once_it_is_settled_every_answer_is_kept_and_learned_from() -> None:
    async def fetch(question: str) -> str:
        return "Sixty metres, and it may be climbed."

    async with opened({"match": {"max_error": 0.05}}) as cache:
        for first, second in product("bdfgklmn", "aeiouyrs"):  # each is near all before it
            await cache.ask(f"how tall is the old tower at the {first}{second}ll gate", fetch=fetch)
        await cache.settle()
        stats = cache.stats()
        assert (stats["pipeline"]["flights"], stats["pipeline"]["stored"], stats["learning"]["waiting"]) == (0, 64, 0)
        assert int(str(stats["bound"]["observations"])) > 50
        assert int(str(stats["bound"]["fits"])) >= 1
