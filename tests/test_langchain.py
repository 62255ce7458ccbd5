"""LangChain's own models, asked twice: the second time the cache answers, or rightly does not."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from langchain_core.language_models import FakeListChatModel, FakeListLLM
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, Generation
from langchain_openai import ChatOpenAI

from semcache.errors import ConfigError
from semcache.langchain import SemcacheCache
from semcache.threaded import ThreadedCache
from tests.fakes import Clock, ModelServer, WordsEmbedder

PARCEL = "Where is the parcel that I ordered last week?"
PARCEL_REWORDED = "Where is the parcel that I ordered last week, please?"
NEAR = {"match": {"threshold": 0.8}}


@contextmanager
def opened(settings: Any = NEAR, **options: Any) -> Iterator[SemcacheCache]:
    cache = SemcacheCache(settings, **{"embedder": WordsEmbedder(), **options})
    try:
        yield cache
    finally:
        cache.close()


def talker(cache: SemcacheCache, *answers: str, **options: Any) -> FakeListChatModel:
    return FakeListChatModel(responses=list(answers), cache=cache, **options)


@asynccontextmanager
async def model_server() -> AsyncIterator[tuple[ModelServer, Any]]:
    """A server, and what makes models of it."""
    async with ModelServer().running() as server:
        options = {"base_url": server.url, "api_key": "sk-test", "max_retries": 0, "model": "small"}
        yield server, lambda **more: ChatOpenAI(**{**options, **more})


def test_a_chat_model_is_asked_once_and_a_rewording_is_answered_too() -> None:
    with opened() as cache:
        model = talker(cache, "first", "second", "third")
        first, again, reworded = (model.invoke(text) for text in (PARCEL, PARCEL, PARCEL_REWORDED))
        assert [first.text, again.text, reworded.text] == ["first"] * 3


def test_a_plain_model_is_asked_once_and_a_rewording_is_answered_too() -> None:
    with opened() as cache:
        model = FakeListLLM(responses=["first", "second"], cache=cache)
        assert [model.invoke(text) for text in (PARCEL, PARCEL, PARCEL_REWORDED)] == ["first"] * 3
        assert model.invoke("[]") == "second"  # a prompt that reads like a list of messages is a prompt


@pytest.mark.parametrize(
    "other",
    [
        [SystemMessage("Be rude."), HumanMessage(PARCEL)],
        [HumanMessage("Hello."), AIMessage("Good day."), HumanMessage(PARCEL)],
        [HumanMessage(PARCEL, name="eve")],
        [HumanMessage(PARCEL), AIMessage("It was", tool_calls=[])],
        [HumanMessage([{"type": "text", "text": PARCEL, "annotations": ["a"]}])],
        [HumanMessage([{"type": "text", "text": PARCEL}, {"type": "image_url", "image_url": {"url": "data:,a"}}])],
    ],
    ids=["system", "history", "name", "prefill", "annotated", "image"],
)
def test_another_conversation_is_never_answered(other: list[Any]) -> None:
    with opened({"match": {"threshold": 0.1}}) as cache:
        model = talker(cache, "first", "second")
        assert model.invoke([SystemMessage("Be kind."), HumanMessage(PARCEL)]).text == "first"
        assert model.invoke(other).text == "second"


def test_other_settings_of_the_model_are_never_answered() -> None:
    with opened({"match": {"threshold": 0.1}}) as cache:
        assert talker(cache, "a", "b").invoke(PARCEL).text == "a"
        assert talker(cache, "c", "d").invoke(PARCEL).text == "c"  # of this model its settings are its answers
        assert talker(cache, "a", "b").invoke(PARCEL, stop=["x"]).text == "a"
        assert cache._cache.wait(_entries) == 3


async def _entries(cache: Any) -> int:
    return int(cache.stats()["pipeline"]["stored"])


PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


def test_beside_a_picture_only_the_same_words_are_a_hit() -> None:
    with opened({"match": {"threshold": 0.1}}) as cache:
        model = talker(cache, "first", "second", "third")

        def ask(text: str) -> str:
            return str(model.invoke([HumanMessage([{"type": "text", "text": text}, PICTURE])]).text)

        assert [ask(PARCEL), ask(PARCEL), ask(PARCEL_REWORDED)] == ["first", "first", "second"]


def test_in_an_agents_loop_only_the_same_words_are_a_hit() -> None:
    with opened({"match": {"threshold": 0.1}}) as cache:
        model = talker(cache, "first", "second", "third")
        call = {"name": "find", "args": {}, "id": "c1"}

        def ask(text: str) -> str:
            loop = [HumanMessage("Hi"), AIMessage("", tool_calls=[call]), ToolMessage("12", tool_call_id="c1")]
            return str(model.invoke([*loop, HumanMessage(text)]).text)

        assert [ask(PARCEL), ask(PARCEL), ask(PARCEL_REWORDED)] == ["first", "first", "second"]


def test_parts_of_a_text_are_told_apart() -> None:
    with opened({"match": {"mode": "serve", "threshold": 1}}) as cache:
        model = talker(cache, "first", "second")

        def ask(*texts: str) -> str:
            return str(model.invoke([HumanMessage([{"type": "text", "text": text} for text in texts])]).text)

        assert [ask("a\nb", "c"), ask("a", "b\nc"), ask("a\nb", "c")] == ["first", "second", "first"]


def test_a_conversation_goes_on_from_a_hit() -> None:
    with opened() as cache:
        model = talker(cache, "On its way.", "Tomorrow.", "never asked")
        for _ in range(2):
            first = model.invoke(PARCEL)
            then = model.invoke([HumanMessage(PARCEL), first, HumanMessage("When will it be here?")])
            assert (first.text, then.text) == ("On its way.", "Tomorrow.")


def test_generations_come_back_equal() -> None:
    message = AIMessage(
        [{"type": "thinking", "thinking": "hm", "signature": "s"}, {"type": "text", "text": "Hello"}],
        id="run-1",
        response_metadata={"finish_reason": "stop", "model_name": "small", "logprobs": None},
        usage_metadata={"input_tokens": 1, "output_tokens": 2, "total_tokens": 3},
    )
    chat = [ChatGeneration(message=message, generation_info={"finish_reason": "stop"})]
    plain = [Generation(text="Hello", generation_info={"finish_reason": "stop"}), Generation(text="Hi")]
    with opened() as cache:
        for prompt, generations in (("chat", chat), ("plain", plain)):
            cache.update(prompt, "llm", generations)
            assert cache.lookup(prompt, "llm") == generations


@pytest.mark.parametrize(
    "message",
    [
        AIMessage("", tool_calls=[{"name": "find", "args": {}, "id": "c1"}]),
        AIMessage("", invalid_tool_calls=[{"name": "find", "args": "{", "id": "c1", "error": None}]),
        AIMessage("Well", response_metadata={"finish_reason": "length"}),
        AIMessage("Well", response_metadata={"stop_reason": "max_tokens"}),
        AIMessage("Well", response_metadata={"status": "incomplete"}),
        AIMessage([{"type": "web_search_call", "id": "w"}, {"type": "text", "text": "Rain."}]),
        AIMessage(" "),
    ],
    ids=["call", "broken call", "length", "max_tokens", "incomplete", "search", "empty"],
)
def test_what_the_proxy_would_not_store_is_not_kept(message: AIMessage) -> None:
    with opened() as cache:
        cache.update(PARCEL, "llm", [ChatGeneration(message=message)])
        assert cache.lookup(PARCEL, "llm") is None


def test_several_answers_are_for_the_same_words_only() -> None:
    with opened() as cache:
        cache.update(PARCEL, "n=2", [Generation(text="a"), Generation(text="b")])
        assert cache.lookup(PARCEL_REWORDED, "n=2") is None
        assert len(cache.lookup(PARCEL, "n=2") or ()) == 2


def test_a_stale_answer_is_asked_for_anew() -> None:
    clock = Clock()
    with opened({"cache": {"ttl": "60s", "grace": "60s"}}, clock=clock) as cache:
        model = talker(cache, "old", "new")
        assert model.invoke(PARCEL).text == "old"
        clock.advance(70)
        assert [model.invoke(PARCEL).text for _ in range(2)] == ["new", "new"]


def test_clear_forgets_everything() -> None:
    with opened() as cache:
        model = talker(cache, "first", "second", "third")
        model.invoke(PARCEL)
        cache.clear()
        assert model.invoke(PARCEL).text == "second"
        asyncio.run(cache.aclear())
        assert model.invoke(PARCEL).text == "third"


def test_a_fault_of_the_cache_is_a_miss() -> None:
    embedder = WordsEmbedder()
    with opened(embedder=embedder) as cache:
        model = talker(cache, "first", "second", "third")
        embedder.fault = RuntimeError("no model")
        assert [model.invoke(text).text for text in (PARCEL, PARCEL, PARCEL_REWORDED)] == ["first", "first", "second"]
        assert cache.lookup("\ud800", "llm") is None  # no such text can be kept
        cache.close()
        assert model.invoke(PARCEL).text == "third"
        assert asyncio.run(model.ainvoke(PARCEL)).text == "first"  # the list of answers begins again


def test_a_wrong_setting_is_told_at_once() -> None:
    with pytest.raises(ConfigError, match=r"match\.threshold"):
        SemcacheCache({"match": {"threshold": 2}})


def test_threads_and_event_loops_share_one_cache() -> None:
    with opened() as cache:
        model = talker(cache, *(f"answer {number}" for number in range(100)))
        first = model.invoke(PARCEL).text
        seen: list[str] = []
        threads = [
            threading.Thread(target=lambda: seen.append(asyncio.run(model.ainvoke(PARCEL)).text)) for _ in range(5)
        ] + [threading.Thread(target=lambda: seen.append(model.invoke(PARCEL).text)) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert seen == [first] * 10


async def test_openais_chat_model_is_asked_once_waiting_or_not() -> None:
    with opened() as cache:
        async with model_server() as (server, make):
            model = make(cache=cache)
            first = await model.ainvoke(PARCEL)
            again = await asyncio.to_thread(model.invoke, PARCEL_REWORDED)
            assert (first.text, again.text) == (f"answer 1 to: {PARCEL}",) * 2
            assert again.usage_metadata == {**first.usage_metadata, "total_cost": 0}
            await make(cache=cache, temperature=0.5).ainvoke(PARCEL)
            await make(cache=cache, model="large").ainvoke(PARCEL)
            assert server.requests == 3


async def test_bound_tools_leave_the_same_words_only() -> None:
    def find(parcel: str) -> str:
        """Find a parcel."""
        return parcel

    with opened({"match": {"threshold": 0.1}}) as cache:
        async with model_server() as (server, make):
            model = make(cache=cache).bind_tools([find])
            for text in (PARCEL, PARCEL, PARCEL_REWORDED):
                await model.ainvoke(text)
            assert server.requests == 2


async def test_who_gives_up_waiting_is_cancelled_and_nobody_else() -> None:
    embedder = WordsEmbedder()
    with opened(embedder=embedder) as cache:
        embedder.gate = asyncio.Event()
        asking = [asyncio.create_task(cache.alookup(PARCEL, "llm")) for _ in range(2)]
        await asyncio.to_thread(cache._cache.wait, _entries)  # both have arrived
        asking[0].cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking[0]
        await asyncio.to_thread(cache.close)  # the other's ends in a miss
        assert await asking[1] is None


def test_the_end_of_the_program_closes_the_cache(tmp_path: Path) -> None:
    """And what it kept is there for the next one, its index saved beside it."""
    program = f"""
from langchain_core.language_models import FakeListLLM
from semcache.langchain import SemcacheCache
from tests.fakes import WordsEmbedder
cache = SemcacheCache(store="sqlite:{tmp_path}/answers.db", embedder=WordsEmbedder())
print(FakeListLLM(responses=["kept", "lost"], cache=cache).invoke("{PARCEL}"))
"""
    ended = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True, timeout=50)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "kept\n", "")
    assert list(tmp_path.glob("answers.db.index/*"))
    assert not list(tmp_path.glob("answers.db-wal"))


def test_a_forked_child_misses(tmp_path: Path) -> None:
    program = f"""
import os, sys
from langchain_core.outputs import Generation
from semcache.langchain import SemcacheCache
from tests.fakes import WordsEmbedder
cache = SemcacheCache(embedder=WordsEmbedder())
cache.update("{PARCEL}", "llm", [Generation(text="kept")])
child = os.fork()
if not child:
    os._exit(0 if cache.lookup("{PARCEL}", "llm") is None else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), cache.lookup("{PARCEL}", "llm")[0].text)
"""
    ended = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True, timeout=50)
    assert (ended.returncode, ended.stdout) == (0, "0 kept\n")


def test_a_closed_cache_says_so() -> None:
    with opened() as cache:
        threaded: ThreadedCache = cache._cache
        cache.close()
        with pytest.raises(RuntimeError, match="closed"):
            threaded.wait(_entries)
