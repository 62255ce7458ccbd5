"""What the benchmark is made of: load from wrk, the time to a first byte, and questions near to stored ones.

The generators run on core 1 and what is measured on core 0, so neither takes the other's time.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from semcache import config
from semcache.cache import engines
from semcache.children import Child
from semcache.errors import StartError
from semcache.planning import Planner
from semcache.types import Tenant
from semcache.wire import find_address

SERVED_ON, DRIVEN_FROM = 0, 1  # cores
CHAT = "/v1/chat/completions"
SYSTEM = "You help customers of an outdoor shop."


def pinned(core: int) -> list[str]:
    return ["taskset", "-c", str(core)]


def start_bare(folder: Path, core: int, *arguments: str) -> tuple[Child, str]:
    """One of the servers of bare.py, and its URL."""
    name = f"bare-{'-'.join(arguments[:1])}-{core}.log"
    child = Child([*pinned(core), sys.executable, "-m", "loadtests.bare", *arguments], folder / name)
    return child, child.wait_for_line(r"(http://\S+)")[1]


def chat(question: str, *, stream: bool = False) -> bytes:
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
    return json.dumps({"model": "bench", "messages": messages, "stream": stream}).encode()


# One question in each dialect: where it is sent, and what with.
def in_dialects(question: str, *, stream: bool) -> Mapping[str, tuple[str, bytes]]:
    rest: dict[str, Any] = {"model": "bench", "stream": stream}
    turns = [{"role": "user", "content": question}]
    asked = {
        "chat": (CHAT, {**rest, "messages": [{"role": "system", "content": SYSTEM}, *turns]}),
        "responses": ("/v1/responses", {**rest, "store": False, "instructions": SYSTEM, "input": question}),
        "messages": ("/v1/messages", {**rest, "max_tokens": 1000, "system": SYSTEM, "messages": turns}),
        "completions": ("/v1/completions", {**rest, "prompt": question}),
        "ollama": ("/api/chat", {**rest, "messages": [{"role": "system", "content": SYSTEM}, *turns]}),
    }
    return {name: (path, json.dumps(body).encode()) for name, (path, body) in asked.items()}


@dataclass(frozen=True, slots=True)
class Load:
    """What wrk saw."""

    per_s: float
    p50_ms: float
    p99_ms: float
    bad: int
    verdicts: Mapping[str, int]


class Wrk:
    """Runs wrk from core 1. `folder` takes the bodies."""

    def __init__(self, folder: Path, seconds: float) -> None:
        if shutil.which("wrk") is None or shutil.which("taskset") is None:
            raise StartError("the benchmark needs wrk and taskset: apt-get install wrk util-linux")
        self._folder = folder
        self._seconds = seconds

    def same(self, url: str, body: bytes, headers: Sequence[str] = (), path: str = CHAT) -> Load:
        """One request over and over."""
        return self._run(url + path, body, b"", "same", headers, count_verdicts=False)

    def numbered(self, url: str, question: str, first: int, headers: Sequence[str] = ()) -> Load:
        """Requests that differ in one number, which stands where `question` has `@`."""
        head, tail = chat(question).split(b"@")
        return self._run(url + CHAT, head, tail, str(first), headers, count_verdicts=False)

    def lines(self, url: str, questions: Sequence[str]) -> Load:
        """These questions, one after another, and from the start again; verdicts are counted."""
        return self._run(url + CHAT, b"\n".join(map(chat, questions)), b"", "0", (), count_verdicts=True)

    def _run(
        self, url: str, head: bytes, tail: bytes, first: str, headers: Sequence[str], *, count_verdicts: bool
    ) -> Load:
        files = self._folder / "head", self._folder / "tail"
        for file, content in zip(files, (head, tail), strict=True):
            file.write_bytes(content)
        seconds = max(1, round(self._seconds))
        command = [*pinned(DRIVEN_FROM), "wrk", "-t1", "-c32", f"-d{seconds}", "--latency", "--timeout", "10"]
        command += [
            "-s",
            str(Path(__file__).with_name("bodies.lua")),
            url,
            "--",
            *map(str, files),
            first,
            *headers,
        ]
        environment = {**os.environ, **({"COUNT_VERDICTS": "1"} if count_verdicts else {})}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        result = next((line[7:] for line in done.stdout.splitlines() if line.startswith("RESULT ")), None)
        if result is None:
            raise StartError(f"wrk failed: {(done.stderr or done.stdout).strip()[-300:]}")
        found = json.loads(result)
        pairs = (pair.split("=") for pair in found["verdicts"].split())
        return Load(
            found["requests"] / found["seconds"],
            found["p50_ms"],
            found["p99_ms"],
            found["bad"],
            {name: int(count) for name, count in pairs},
        )


class Caller:
    """One keep-alive connection and a blocking socket: nothing between the clock and the wire."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None and parts.port is not None
        self._host = parts.netloc
        self._socket = socket.create_connection((parts.hostname, parts.port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> Caller:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def ask(self, body: bytes, headers: Sequence[str] = (), path: str = CHAT) -> tuple[float, bytes, bytes]:
        """Return milliseconds to the first byte of the body, the head and the body of the reply."""
        own = [] if any(header.startswith("Authorization:") for header in headers) else ["Authorization: Bearer bench"]
        fields = [f"Host: {self._host}", *own, "Content-Type: application/json", *headers]
        head = "\r\n".join([f"POST {path} HTTP/1.1", *fields, f"Content-Length: {len(body)}", "", ""])
        began = time.perf_counter()
        self._socket.sendall(head.encode() + body)
        received = b""
        while (split := received.find(b"\r\n\r\n")) < 0 or len(received) == split + 4:
            received += self._more()
        first_ms = (time.perf_counter() - began) * 1000
        head_bytes, rest = received[:split].lower(), received[split + 4 :]
        if b"transfer-encoding: chunked" in head_bytes:
            while not rest.endswith(b"0\r\n\r\n"):
                rest += self._more()
        else:
            length = int(head_bytes.split(b"content-length:")[1].split(b"\r\n")[0])
            while len(rest) < length:
                rest += self._more()
        if not head_bytes.startswith(b"http/1.1 200"):
            raise StartError(f"{self._host}: {head_bytes.splitlines()[0].decode()}: {rest[:200].decode()}")
        return first_ms, received[:split], rest

    def _more(self) -> bytes:
        received = self._socket.recv(65536)
        if not received:
            raise StartError(f"{self._host}: closed the connection")
        return received


def median_ms(url: str, bodies: Sequence[bytes], headers: Sequence[str] = ()) -> float:
    """Median time to the first byte of the body, one request at a time."""
    with Caller(url) as caller:
        return median(caller.ask(body, headers)[0] for body in bodies)


def header(head: bytes, name: str) -> str:
    for line in head.decode().split("\r\n"):
        field, _, value = line.partition(":")
        if field.lower() == name.lower():
            return value.strip()
    return ""


# A conversation of a megabyte

_TURN = 'I have read the manual of the stove and it still does not say how to "prime" it.\nWhat now? 5 % of \u00fc.'


def plan_ms(dialect: str, times: int) -> float:
    """Median milliseconds to plan a conversation of 1 MB in a dialect of `in_dialects`, each time as if never seen."""
    path, body = in_dialects("And after that?", stream=False)[dialect]
    tree = json.loads(body)
    turns = 1_000_000 // len(json.dumps({"role": "user", "content": _TURN}))
    earlier = [{"role": ("user", "assistant")[turn % 2], "content": f"{turn}: {_TURN}"} for turn in range(turns)]
    name = "input" if dialect == "responses" else "messages"
    tree[name] = [*earlier, {"role": "user", "content": "And after that?"}]
    body = json.dumps(tree, separators=(",", ":"), ensure_ascii=False).encode()  # as the SDKs write it
    address = find_address(path)
    assert address is not None and len(body) > 900_000
    planner = Planner(config.build({"routes": [{}]}), "bench")
    tenant = Tenant("bench")
    spent = []
    for _ in range(times):
        began = time.perf_counter()
        planner.plan(address, {}, body, tenant, "")
        spent.append((time.perf_counter() - began) * 1000)
    return median(spent)


# Questions that were never asked before, each near to one that was.

_THINGS = ("jacket", "tent", "stove", "backpack", "headlamp", "sleeping bag", "pair of boots", "rope")
_STORED = (
    "How do I return the {} that I bought in your store?",
    "How long does it take to repair the {} that I sent in?",
    "Where can I find the invoice for the {} that I ordered?",
    "What does it cost to exchange the {} for another size?",
    "Can I still cancel the order for the {} and get the money back?",
    "How should I clean and store the {} over the winter?",
)
_BEFORE = ("hi, ", "hello, ", "hey, ", "please, ", "hi there, ", "hello there, ", "excuse me, ", "sorry, ", "ok, ",
           "so, ", "well, ", "good day, ", "dear team, ", "hey there, ", "oh, ", "and ", "now, ", "um, ")  # fmt: skip
_AFTER = (" please", " thanks", " thank you", " many thanks", " cheers", " pls", " thx", " ok", " right", " hello",
          " now", " again", " then", " anyway", " exactly", " today", " here", " so")  # fmt: skip


def stored_questions() -> list[str]:
    return [sentence.format(thing) for sentence in _STORED for thing in _THINGS]


def near_questions(count: int, threshold: float, seed: int = 1) -> list[str]:
    """Different questions of 13 to 16 tokens, each at least `threshold` from a stored one as the embedder sees it."""
    stored = stored_questions()
    variants = [f"{a}{s[0].lower()}{s[1:]}{b}" for s, a, b in itertools.product(stored, _BEFORE, _AFTER)]
    random.Random(seed).shuffle(variants)
    engine = engines.build(config.Embedder())
    _run_now(engine.open)
    known = np.stack([np.asarray(vector) for vector in engine.embed(stored)])
    near: list[str] = []
    for text in variants:
        (vector,) = engine.embed([text])
        if float(np.max(known @ np.asarray(vector))) >= threshold:
            near.append(text)
            if len(near) == count:
                return near
    raise StartError(f"only {len(near)} of {count} questions are nearer than {threshold}: run shorter rounds")


def _run_now(opens: Callable[[], Any]) -> None:
    import asyncio

    asyncio.run(opens())


# What the kernel says of a process


def resident_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def has_mapped(pid: int, name: str) -> bool:
    """Whether a file with this in its name is loaded: a module cannot be imported without its library."""
    return name in Path(f"/proc/{pid}/maps").read_text()
