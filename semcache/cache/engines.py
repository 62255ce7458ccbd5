"""Engines: texts in, vectors out. What is specific to a runtime is here; queues, deadlines and checks are not.

An engine says how it wants to be called: on `threads` threads at once, with up to `batch` texts. On a CPU with 8-bit
weights one text per call and a call per core is fastest; on a GPU and over the network batches are.
Text is never cut to fit. What an engine cannot read whole gets TooLong, since a vector of a part of a text would make
texts that differ elsewhere look equal.
"""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol
from urllib.parse import urlsplit

import aiohttp
import numpy as np
import orjson

from semcache import config
from semcache.cache import model
from semcache.errors import EmbedderFault, StartError, TooLong
from semcache.types import Vector

Reply = Vector | TooLong
Bill = Callable[[int | None, Sequence[str]], None]  # the tokens that a server says, if it does, of these texts

MOST_SESSIONS = 16  # `auto` on large machines: past it the threads wait for Python, not for a core
CHARS_PER_TOKEN = 32  # a text of more characters than this per token of the window is too long without counting
BYTES_PER_TOKEN = 3  # where tokens cannot be counted; see RemoteEngine
MOST_DIMENSIONS = 16_384  # of a remote model before its first answer
FIRST_TEXT = "a first question, so that everything is loaded"
ODD_PROCESSOR = 0.98  # mean cosine of the probes to the original; here 0.998, a wrong kernel gives noise


class Engine(Protocol):
    """Made from its settings, which finds the model or raises StartError; `open` makes it ready to embed."""

    stamp: str  # everything that changes vectors: two vectors are comparable when their stamps are equal
    dimensions: int
    limit_chars: int  # texts with more characters than this are too long, whatever they hold
    threads: int
    batch: int
    max_wait_s: float  # how long a batch waits to fill

    async def open(self) -> None:
        """Raises StartError."""

    def embed(self, texts: Sequence[str]) -> Sequence[Reply]:
        """Called on an embedding thread; blocks. One reply per text, same order. Raises EmbedderFault or anything."""

    async def close(self) -> None: ...


def build(settings: config.Embedder, bill: Bill = lambda tokens, texts: None) -> Engine:
    """`bill`: see RemoteEngine; what is computed here is billed by nobody."""
    return RemoteEngine(settings, bill) if settings.engine == "openai" else ENGINES[settings.engine](settings)


def cores() -> int:
    """Cores this process may use, at most MOST_SESSIONS."""
    return min(len(os.sched_getaffinity(0)), MOST_SESSIONS)


class OnnxEngine:
    """A prepared model in onnxruntime: 8-bit weights, one thread a call, no torch."""

    # Texts are embedded one by one: a batch shares an activation scale, and a vector must not depend on its neighbours.
    # Under load a few are taken and handed back together, since changing between loop and model empties the processor's
    # caches: 7 % more semantic hits a second on one core at 32 connections (make bench).
    batch = 8
    max_wait_s = 0.0

    def __init__(self, settings: config.Embedder, prepared: model.PreparedModel | None = None) -> None:
        self._prepared = prepared or model.load(settings.model)
        self._manifest = manifest = self._prepared.manifest
        self.stamp = self._prepared.stamp
        self.dimensions = manifest.dimensions
        self.limit_chars = manifest.window * CHARS_PER_TOKEN
        self.threads = cores() if settings.sessions == "auto" else settings.sessions

    async def open(self) -> None:
        await asyncio.to_thread(self._load)

    def _load(self) -> None:
        import onnxruntime  # only where this engine is chosen: 20 MB
        from tokenizers import Tokenizer

        folder, manifest = self._prepared.folder, self._manifest
        onnxruntime.set_default_logger_severity(3)
        onnxruntime.disable_telemetry_events()  # some builds can report to their vendor
        options = onnxruntime.SessionOptions()
        # A call computes on the thread that makes it. So one session serves all threads at once, with one copy of the
        # weights: as fast as a session each, and 25 MB a thread less.
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        try:
            self._tokenizer = Tokenizer.from_file(str(folder / model.TOKENIZER))
            self._session = onnxruntime.InferenceSession(
                str(folder / model.MODEL), options, providers=["CPUExecutionProvider"]
            )
            probes = np.load(folder / model.PROBES, allow_pickle=False)
            replies = self.embed(manifest.probes)
        except Exception as exc:  # two native libraries, each with errors of its own
            raise StartError(f"{folder}: cannot be loaded: {' '.join(str(exc).split())[:200]}") from exc
        vectors = [reply for reply in replies if isinstance(reply, np.ndarray)]
        if len(vectors) != len(probes) or np.mean(np.sum(np.stack(vectors) * probes, axis=1)) < ODD_PROCESSOR:
            raise StartError(
                f"{folder}: gives other vectors on this processor than where it was prepared; remove the folder and "
                f"run: semcache model prepare {manifest.name}"
            )

    def embed(self, texts: Sequence[str]) -> Sequence[Reply]:
        return [self._embed(text) for text in texts]

    def _embed(self, text: str) -> Reply:
        ids = self._tokenizer.encode(self._manifest.prompt + text).ids
        if reason := unreadable(ids, self._manifest.window, self._manifest.unknown_token):
            return reason
        (vectors,) = self._session.run(None, {"input_ids": np.array([ids], dtype=np.int64)})
        return vectors[0]  # type: ignore[no-any-return]

    async def close(self) -> None:
        """Nothing is held that needs giving back."""


class TorchEngine:
    """Any sentence-transformers model, on a GPU if there is one. One thread, batches."""

    threads = 1

    def __init__(self, settings: config.Embedder) -> None:
        self.batch = settings.batch
        self.max_wait_s = settings.max_wait
        try:
            import torch
            from sentence_transformers import SentenceTransformer
        except ImportError as exc:
            raise StartError("embedder.engine: torch needs sentence-transformers; pip install semcache-proxy") from exc
        source = model.locate(settings.model)
        weights = model.check_weights(settings.model, source)
        try:
            self._model: Any = SentenceTransformer(
                str(source), device="cuda" if torch.cuda.is_available() else "cpu"
            ).eval()
            self._tokenizer: Any = self._model.tokenizer
            self._prompt = self._model.prompts.get(self._model.default_prompt_name or "", "")
            self._window = int(self._model.max_seq_length or self._tokenizer.model_max_length)
            (vector,) = self._encode([FIRST_TEXT])
        except Exception as exc:  # any of three libraries
            raise StartError(f"{source}: cannot be loaded: {' '.join(str(exc).split())[:200]}") from exc
        self.dimensions = len(vector)
        self.limit_chars = self._window * CHARS_PER_TOKEN
        self.stamp = f"{settings.model}/{weights[:16]}/torch/{self.dimensions}"

    async def open(self) -> None:
        """Loaded already: how many dimensions it has is not known before."""

    def embed(self, texts: Sequence[str]) -> Sequence[Reply]:
        # The tokenizer of transformers, not sentence-transformers' own method: that one cuts.
        prompted = [self._prompt + text for text in texts]
        tokens = self._tokenizer(prompted, truncation=False, padding=False, verbose=False)["input_ids"]
        replies: list[Reply | None] = [unreadable(ids, self._window, self._tokenizer.unk_token_id) for ids in tokens]
        vectors = iter(self._encode([text for text, reply in zip(texts, replies, strict=True) if reply is None]))
        return [next(vectors) if reply is None else reply for reply in replies]

    def _encode(self, texts: list[str]) -> Sequence[Vector]:
        if not texts:
            return []
        vectors = self._model.encode(
            texts, batch_size=self.batch, normalize_embeddings=True, convert_to_numpy=True, show_progress_bar=False
        )
        return vectors.astype(np.float32)  # type: ignore[no-any-return]

    async def close(self) -> None:
        self._model = None  # the memory of a GPU is given back with its last owner


class RemoteEngine:
    """A server with OpenAI's `POST /embeddings`. What it answers is not trusted until it was checked.

    Tokens cannot be counted here, so a text is taken to have one per three bytes of UTF-8: more than English (over
    four) and about what other scripts have. Text that is mostly digits or symbols can have more tokens than that:
    set `window` with room to spare for such traffic, or use a server that refuses long texts instead of cutting them.
    """

    threads = 4  # batches on their way at once: while one travels, the next fills

    def __init__(self, settings: config.Embedder, bill: Bill = lambda tokens, texts: None) -> None:
        """`bill`: told of each reply, on the event loop."""
        assert settings.url is not None  # config.Embedder has checked
        self._settings = settings
        self._bill = bill
        self._http: aiohttp.ClientSession | None = None
        self._place = urlsplit(settings.url).netloc.rpartition("@")[2]  # for messages: a URL can hold a password
        self.batch = settings.batch
        self.max_wait_s = settings.max_wait
        self.limit_chars = settings.window * BYTES_PER_TOKEN  # bytes are counted below, and are never fewer
        self.dimensions = settings.dimensions or self._count_dimensions()
        self.stamp = f"{settings.model}/remote/{self.dimensions}"

    def _count_dimensions(self) -> int:
        """Ask the server, on a loop of its own: there is none yet, or it is not ours to wait on."""

        async def first() -> list[Vector]:
            async with self._session() as http:
                return await self._ask(http, [FIRST_TEXT])

        self.dimensions = MOST_DIMENSIONS
        try:
            with ThreadPoolExecutor(1) as thread:
                (vector,) = thread.submit(asyncio.run, first()).result()
        except EmbedderFault as exc:
            raise StartError(
                f"embedder.url: {exc.message}; start that server, or set embedder.dimensions to start without it"
            ) from exc
        return len(vector)

    def _session(self) -> aiohttp.ClientSession:
        key = self._settings.api_key.get_secret_value()
        return aiohttp.ClientSession(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            # Not the deadline of a question: a late vector is still remembered, and the next such question is a hit.
            timeout=aiohttp.ClientTimeout(total=max(4 * self._settings.deadline, 2.0)),
        )

    async def open(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._http = self._session()

    def embed(self, texts: Sequence[str]) -> Sequence[Reply]:
        replies: list[Reply | None] = [
            TooLong(f"about {tokens} tokens; the window is {self._settings.window}")
            if (tokens := math.ceil(len(text.encode()) / BYTES_PER_TOKEN)) > self._settings.window
            else None
            for text in texts
        ]
        short = [text for text, reply in zip(texts, replies, strict=True) if reply is None]
        vectors = iter(self._wait_for(short) if short else [])
        return [next(vectors) if reply is None else reply for reply in replies]

    def _wait_for(self, texts: list[str]) -> list[Vector]:
        assert self._http is not None
        return asyncio.run_coroutine_threadsafe(self._ask(self._http, texts), self._loop).result()

    async def _ask(self, http: aiohttp.ClientSession, texts: list[str]) -> list[Vector]:
        body: dict[str, Any] = {"model": self._settings.model, "input": texts, "encoding_format": "float"}
        if self._settings.dimensions:
            body["dimensions"] = self._settings.dimensions
        url = f"{self._settings.url}".rstrip("/") + "/embeddings"
        try:
            async with http.post(url, json=body, allow_redirects=False) as response:
                limit_bytes = 4096 + len(texts) * self.dimensions * 32  # a number takes at most some 25 characters
                data = bytearray()
                while len(data) <= limit_bytes and (chunk := await response.content.readany()):
                    data += chunk
                if response.status != 200:
                    raise EmbedderFault(f"{self._place} answers {response.status}")
                if len(data) > limit_bytes:
                    raise EmbedderFault(f"{self._place} answers more than {len(texts)} vectors take")
        except (aiohttp.ClientError, TimeoutError, OSError) as exc:
            raise EmbedderFault(f"{self._place} does not answer: {type(exc).__name__}") from exc
        if self._http is not None:  # the first question of all, before the start, is not worth counting
            self._bill(_tokens_told(data), texts)
        return self._read(data, len(texts))

    def _read(self, data: bytearray, count: int) -> list[Vector]:
        """Vectors in the order asked, of unit length: servers differ in whether they normalise."""
        try:
            rows = sorted(orjson.loads(data)["data"], key=lambda row: row["index"])
            vectors = np.array([row["embedding"] for row in rows], dtype=np.float32)
            indexes = [row["index"] for row in rows]
        except (ValueError, TypeError, KeyError) as exc:
            raise EmbedderFault(f"{self._place} answers something that is not embeddings") from exc
        if indexes != list(range(count)) or vectors.ndim != 2:
            raise EmbedderFault(f"{self._place} answers {len(indexes)} vectors for {count} texts")
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        return list(vectors / np.where(lengths > 0, lengths, 1.0))  # zero stays zero, and is refused at the door

    async def close(self) -> None:
        if self._http is not None:
            await self._http.close()


def _tokens_told(data: bytearray) -> int | None:
    try:
        tokens = orjson.loads(data)["usage"]["prompt_tokens"]
    except (ValueError, TypeError, KeyError):
        return None
    return tokens if type(tokens) is int and tokens >= 0 else None


ENGINES: dict[str, Callable[[config.Embedder], Engine]] = {
    "onnx": OnnxEngine,
    "torch": TorchEngine,
    "openai": RemoteEngine,
}


def unreadable(ids: Sequence[int], window: int, unknown_token: int | None) -> TooLong | None:
    """Why a text of these tokens must not be compared by its vector, or None.

    A piece that the vocabulary lacks (an emoji, a rare script, a "word" of 100 letters) becomes one and the same token,
    whatever it was: two questions that differ only there have equal vectors.
    """
    if len(ids) > window:
        return TooLong(f"{len(ids)} tokens; the window is {window}")
    if unknown_token is not None and unknown_token in ids:
        return TooLong("holds characters the model has no token for")
    return None
