"""The cache for LangChain: `set_llm_cache(SemcacheCache(store="sqlite:./answers.db"))`.

A chat model's question is the text of the last human message, a plain model's is its prompt; all else must be equal.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from typing import Any

from langchain_core.caches import BaseCache
from langchain_core.load import dumps, loads
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, Generation, GenerationChunk

from semcache.inprocess import Cache
from semcache.langchain_prompts import may_keep, take_question
from semcache.threaded import Act, ThreadedCache
from semcache.types import Selector

log = logging.getLogger(__name__)

WAIT_S = 5.0  # for the cache, which takes milliseconds; then the model is asked
_KEPT = (AIMessage, AIMessageChunk, ChatGeneration, ChatGenerationChunk, Generation, GenerationChunk)


with warnings.catch_warnings():  # it says once that it is in beta, which those who use this can do nothing about
    warnings.simplefilter("ignore")
    loads("[]", allowed_objects=_KEPT)


class SemcacheCache(BaseCache):
    """Whatever fails is a miss. `close` it, or leave that to the end of the program."""

    def __init__(self, settings: Any = None, **options: Any) -> None:
        """As `semcache.Cache`. Loads the model at once. Raises ConfigError and StartError."""
        self._cache = ThreadedCache(Cache(settings, **options))
        self.close = self._cache.close

    def lookup(self, prompt: str, llm_string: str) -> Any:
        return self._wait(lambda cache: _look_up(cache, prompt, llm_string))

    def update(self, prompt: str, llm_string: str, return_val: Sequence[Generation]) -> None:
        self._wait(lambda cache: _keep(cache, prompt, llm_string, return_val))

    def clear(self, **kwargs: Any) -> None:
        self._wait(lambda cache: cache.purge(Selector()))

    async def alookup(self, prompt: str, llm_string: str) -> Any:
        return await self._run(lambda cache: _look_up(cache, prompt, llm_string))

    async def aupdate(self, prompt: str, llm_string: str, return_val: Sequence[Generation]) -> None:
        await self._run(lambda cache: _keep(cache, prompt, llm_string, return_val))

    async def aclear(self, **kwargs: Any) -> None:
        await self._run(lambda cache: cache.purge(Selector()))

    def _wait(self, act: Act[Any]) -> Any:
        try:
            return self._cache.wait(act, WAIT_S)
        except Exception as exc:  # whatever it is, it must not become the caller's
            log.warning("the cache took no part: %s: %s", type(exc).__name__, exc)

    async def _run(self, act: Act[Any]) -> Any:
        try:
            return await self._cache.run(act, WAIT_S)
        except Exception as exc:
            log.warning("the cache took no part: %s: %s", type(exc).__name__, exc)


async def _look_up(cache: Cache, prompt: str, llm_string: str) -> list[Generation] | None:
    question, context = take_question(prompt, llm_string)
    # Nobody here refreshes a stale answer: it is not found, and so the model is asked.
    found = await cache.look_up(question, context=context, cache_control="max-stale=0")
    return loads(found.text, allowed_objects=_KEPT) if found else None


async def _keep(cache: Cache, prompt: str, llm_string: str, generations: Sequence[Generation]) -> None:
    text = dumps(list(generations))
    if all(map(may_keep, generations)) and loads(text, allowed_objects=_KEPT):
        question, context = take_question(prompt, llm_string)
        exact = "tier=exact" if len(generations) > 1 else None  # variety was asked for
        await cache.keep(question, text, context=context, semcache_control=exact)
