"""The cache of one process, from its start to its stop."""

from __future__ import annotations

from pathlib import Path

from semcache import config
from semcache.cache.index import FILE_NAME
from semcache.core import Core
from semcache.inprocess import Cache
from tests.fakes import WordsEmbedder


async def test_a_stop_before_the_snapshot_was_read_leaves_it_as_it_is(tmp_path: Path) -> None:
    settings = config.build({"cache": {"store": f"sqlite:{tmp_path}/cache.db"}}, "settings")

    async def answer(question: str) -> str:
        return question.upper()

    async with Cache(settings, embedder=WordsEmbedder()) as cache:  # type: ignore[arg-type]
        await cache.ask("where is it", fetch=answer)
    (snapshot,) = tmp_path.rglob(FILE_NAME)
    saved = snapshot.read_bytes()

    core = Core(settings, embedder=WordsEmbedder())  # type: ignore[arg-type]
    await core.start()
    core.follow()
    await core.stop()
    assert snapshot.read_bytes() == saved
