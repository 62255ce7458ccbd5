"""Vectors of many texts at once, by the embedder as it is configured, and kept in a folder where one is given."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from rich.progress import Progress

from semcache.cache.engines import Engine
from semcache.errors import SemcacheError, TooLong
from semcache.tuning.labelled import Vectors

BLOCK = 256  # texts between two steps of the progress bar


class Embedding:
    """Any engine, on all its threads, and without a deadline."""

    def __init__(self, make: Callable[[], Engine], folder: Path | None, progress: Progress) -> None:
        """`make`: an engine, not yet open. `folder`: where vectors are kept, 1.5 KB a text; None: nowhere."""
        self._make = make
        self._unused: Engine | None = make()
        self._folder = folder
        self._progress = progress
        self.stamp = self._unused.stamp

    def embed(self, name: str, texts: Sequence[str]) -> Vectors:
        """One unit vector per text, shape (len(texts), d); zeros for a text that the model cannot read.

        Raises StartError and EmbedderFault; SemcacheError when the folder cannot be written.
        """
        if self._folder is None:
            return asyncio.run(self._compute(name, texts))
        digest = hashlib.sha256(json.dumps([self.stamp, *texts]).encode()).hexdigest()
        path = self._folder / f"{name}-{digest[:16]}.npy"
        try:
            if path.exists():
                return np.load(path, allow_pickle=False)  # type: ignore[no-any-return]
            self._folder.mkdir(parents=True, exist_ok=True)
            vectors = asyncio.run(self._compute(name, texts))
            part = path.with_suffix(".part.npy")
            np.save(part, vectors)
            part.replace(path)
        except (OSError, ValueError) as exc:
            raise SemcacheError(f"--vectors: {path}: {exc}") from exc
        return vectors

    async def _compute(self, name: str, texts: Sequence[str]) -> Vectors:
        engine, self._unused = self._unused or self._make(), None
        await engine.open()  # for a remote one: on the loop that it will send from
        vectors = np.zeros((len(texts), engine.dimensions), np.float32)
        loop = asyncio.get_running_loop()
        task = self._progress.add_task(f"embedding {name}", total=len(texts))

        def share(start: int) -> None:
            stop = min(start + BLOCK, len(texts))
            short = [place for place in range(start, stop) if len(texts[place]) <= engine.limit_chars]
            for begin in range(0, len(short), engine.batch):
                places = short[begin : begin + engine.batch]
                for place, reply in zip(places, engine.embed([texts[each] for each in places]), strict=True):
                    if not isinstance(reply, TooLong):
                        vectors[place] = reply
            self._progress.advance(task, stop - start)

        try:
            with ThreadPoolExecutor(engine.threads) as threads:
                shares = [loop.run_in_executor(threads, share, start) for start in range(0, len(texts), BLOCK)]
                await asyncio.gather(*shares)
            return vectors
        finally:
            self._progress.remove_task(task)
            await engine.close()
