"""The limits that the proxy is measured against: servers and an embedding loop that do the least that can be done.

    python -m loadtests.bare answer BODY.json BODY.sse    parse the request, give back the same bytes each time
    python -m loadtests.bare forward URL                  a reverse proxy: one ClientSession, bytes in, bytes out
    python -m loadtests.bare embed TEXTS.txt SECONDS      the model alone, in the batch size that is fastest here

The servers are aiohttp at its lowest level on uvloop, without routes, middlewares, logs or limits. They print the URL
they listen on.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import aiohttp
import numpy as np
import orjson
import uvloop
from aiohttp import web

Answer = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
BATCHES = (1, 2, 4, 8, 16, 32)


def answer(whole: bytes, streamed: bytes) -> Answer:
    """Parse the JSON, look whether a stream is wanted, give the bytes."""

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        body = orjson.loads(await request.read())
        if body.get("stream"):
            return web.Response(body=streamed, headers={"Content-Type": "text/event-stream; charset=utf-8"})
        return web.Response(body=whole, headers={"Content-Type": "application/json"})

    return handle


def forward(session: aiohttp.ClientSession, upstream: str) -> Answer:
    """Send the body on, and each chunk back as it comes. The length is kept where it is known."""

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        body = await request.read()
        async with session.post(upstream, data=body, headers={"Content-Type": "application/json"}) as reply:
            headers = {"Content-Type": reply.headers["Content-Type"]}
            if reply.content_length is not None:
                return web.Response(status=reply.status, body=await reply.read(), headers=headers)
            response = web.StreamResponse(status=reply.status, headers=headers)
            await response.prepare(request)
            async for chunk in reply.content.iter_any():
                await response.write(chunk)
            await response.write_eof()
            return response

    return handle


async def serve(handle: Answer) -> None:
    runner = web.ServerRunner(web.Server(handle, access_log=None))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, backlog=1024).start()
    print(f"http://127.0.0.1:{runner.addresses[0][1]}", flush=True)
    await asyncio.Event().wait()


async def serve_forward(upstream: str) -> None:
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, auto_decompress=False) as session:
        await serve(forward(session, upstream))


def embed(texts: Sequence[str], seconds: float) -> dict[str, Any]:
    """Texts a second of the prepared model on this core, by batch size, and the milliseconds of one text.

    The graph takes no padding, so a batch holds texts of one token count; grouping them is not counted.
    """
    import onnxruntime
    from tokenizers import Tokenizer

    from semcache.cache import model

    prepared = model.load()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        str(prepared.folder / model.MODEL), options, providers=["CPUExecutionProvider"]
    )
    tokenizer = Tokenizer.from_file(str(prepared.folder / model.TOKENIZER))

    def run(batch: Sequence[str]) -> None:
        session.run(None, {"input_ids": np.array([e.ids for e in tokenizer.encode_batch(batch)], dtype=np.int64)})

    def run_one(text: str) -> None:
        session.run(None, {"input_ids": np.array([tokenizer.encode(text).ids], dtype=np.int64)})

    by_length: defaultdict[int, list[str]] = defaultdict(list)
    for text in texts:
        by_length[len(tokenizer.encode(text).ids)].append(text)
    for text in texts[:20]:
        run_one(text)
    rates = {}
    for size in BATCHES:
        batches = [row[at : at + size] for row in by_length.values() for at in range(0, len(row) - size + 1, size)]
        rates[size] = _rate(run if size > 1 else lambda batch: run_one(batch[0]), batches, seconds / len(BATCHES))
    times = []
    for text in texts[:200]:
        began = time.perf_counter()
        run_one(text)
        times.append((time.perf_counter() - began) * 1000)
    return {"texts_per_s": max(rates.values()), "batch": max(rates, key=rates.__getitem__), "one_ms": median(times)}


def _rate(run: Callable[[Sequence[str]], None], batches: Sequence[Sequence[str]], seconds: float) -> float:
    count, began = 0, time.perf_counter()
    while (passed := time.perf_counter() - began) < seconds:
        batch = batches[count % len(batches)]
        run(batch)
        count += 1
    return sum(len(batches[number % len(batches)]) for number in range(count)) / passed


def main(kind: str, *arguments: str) -> None:
    match kind:
        case "answer":
            whole, streamed = (Path(argument).read_bytes() for argument in arguments)
            uvloop.run(serve(answer(whole, streamed)))
        case "forward":
            uvloop.run(serve_forward(arguments[0]))
        case "embed":
            print(json.dumps(embed(Path(arguments[0]).read_text().splitlines(), float(arguments[1]))))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(*sys.argv[1:])
