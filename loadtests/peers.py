"""`python -m loadtests.peers`: other routers from PyPI and semcache, before the same simulated GPUs, at the same load.

Each peer is installed once, at its pinned version, into an environment of its own below the user's cache folder; one
that does not install is left out, and the reason is told. All run as one process or as they choose by default, on the
same machine as the three backends and the callers, so the figures compare, and say little about other machines:

    stream, whole   what is added to the time to the first event of a stream, and to that of a whole answer: one caller
                    who asks a backend and the router in turn, differences of medians. A router that writes head and
                    first event apart, and lets the kernel hold small writes back (Nagle), waits 40 ms for the
                    acknowledgement of the first
    requests/s      whole answers, as many as 16 callers get
    prefix hits     of the tokens of prompts: found in a KV cache. 16 callers, 24 long system prompts, room for 10 of
                    them in each backend; the backends read prompts at a set speed, so a hit is a shorter wait
    one killed      requests that failed although their stream had not begun, of 100 a second, one of three backends
                    killed half way
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median, quantiles

import aiohttp
import click

from semcache import children
from semcache.cache.model import cache_folder
from semcache.errors import SemcacheError, StartError

MODEL = "simulated-small"
API_KEY = f"sk-{secrets.token_hex(24)}"  # one of them does not start without
BACKENDS = 3
CALLERS = 16
ONE_BY_ONE = 300  # requests of the caller who measures what is added
THROUGHPUT_S = 5.0
PREFIXES = 24
PREFIX_WORDS = 800
PREFIX_REQUESTS = 1200
KILL_RATE, KILL_AFTER_S, KILL_SPAN_S = 100, 3.0, 8.0

# Backends that take no time, and such whose prompts do: 8,000 tokens a second, room for 10 of the long prompts.
FAST = ("--ttft", "0", "--rate", "0")
KV = ("--ttft", "5ms", "--rate", "0", "--kv-cache", "8400", "--prefill", "8000")


@dataclass(frozen=True)
class Peer:
    """`command`: what starts it, given its environment, a folder, its port and the backends' base URLs with /v1."""

    name: str
    command: Callable[[Path, Path, int, Sequence[str]], list[str]]
    requirement: str | None = None  # None: it is there already
    ready: str = "/health"


def _sglang(environment: Path, folder: Path, port: int, backends: Sequence[str]) -> list[str]:
    program = [str(environment / "bin" / "python"), "-m", "sglang_router.launch_router"]
    return [*program, *_router_options(port, backends)]


def _vllm(environment: Path, folder: Path, port: int, backends: Sequence[str]) -> list[str]:
    return [str(environment / "bin" / "vllm-router"), *_router_options(port, backends)]


def _router_options(port: int, backends: Sequence[str]) -> list[str]:
    workers = [url.removesuffix("/v1") for url in backends]
    metrics = ["--prometheus-port", str(_free_port())]
    return ["--host", "127.0.0.1", "--port", str(port), *metrics, "--policy", "cache_aware", "--worker-urls", *workers]


def _litellm(environment: Path, folder: Path, port: int, backends: Sequence[str]) -> list[str]:
    rows = [
        {"model_name": MODEL, "litellm_params": {"model": f"openai/{MODEL}", "api_base": url, "api_key": "none"}}
        for url in backends
    ]
    (folder / "litellm.yaml").write_text(json.dumps({"model_list": rows, "general_settings": {"master_key": API_KEY}}))
    quiet = ["env", "LITELLM_LOCAL_MODEL_COST_MAP=True", "LITELLM_TELEMETRY=False"]
    options = ["--config", str(folder / "litellm.yaml"), "--host", "127.0.0.1", "--port", str(port)]
    return [*quiet, str(environment / "bin" / "litellm"), *options]


def _semcache(mode: str) -> Callable[[Path, Path, int, Sequence[str]], list[str]]:
    def command(environment: Path, folder: Path, port: int, backends: Sequence[str]) -> list[str]:
        settings = {
            "server": {"port": port, "admin_port": 0, "request_log": "off"},
            "cache": {"store": "memory:"},
            "match": {"mode": mode},
            "pools": {"gpus": {"balance": "prefix", "backends": [{"url": url} for url in backends]}},
            "routes": [{"pools": ["gpus"]}],
        }
        file = folder / f"semcache-{mode}.yaml"
        file.write_text(json.dumps(settings))
        return [*children.SEMCACHE, "serve", "-c", str(file)]

    return command


PEERS = (
    Peer("sglang-router", _sglang, "sglang-router==0.3.2"),
    Peer("vllm-router", _vllm, "vllm-router==0.1.17"),
    Peer("litellm", _litellm, "litellm[proxy]==1.106.2", ready="/health/liveliness"),
    Peer("semcache, cache off", _semcache("off"), ready="/readyz"),
    Peer("semcache, cache on", _semcache("serve"), ready="/readyz"),
)


@dataclass
class Figures:
    """What one contestant came to. Times in milliseconds."""

    name: str
    stream_ms: float  # added to the first event
    whole_ms: float  # added to a whole answer
    per_s: float
    hit_share: float
    prefix_p50_ms: float
    prefix_p99_ms: float
    busiest: float  # backend, of the mean
    failed: int
    asked: int
    cut: int


def install(peer: Peer, cache: Path | None = None) -> Path:
    """The peer's environment, made if it is not there. Raises StartError with the installer's last words."""
    if peer.requirement is None:
        return Path(sys.prefix)
    name = peer.requirement.replace("[proxy]", "").replace("==", "-")
    folder = (cache or cache_folder().parent) / "peers" / name
    mark = folder / ".installed"
    if mark.exists():
        return folder
    click.echo(f"installing {peer.requirement}; this is done once")
    steps = (
        [sys.executable, "-m", "venv", str(folder)],
        [str(folder / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "-q", "install", peer.requirement],
    )
    for step in steps:
        done = subprocess.run(step, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise StartError(f"{peer.name} does not install: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
    mark.touch()
    return folder


class Setup:
    """Three backends, and a router before them or none; all are stopped at the end of the block."""

    def __init__(self, peer: Peer | None, environment: Path, options: Sequence[str]) -> None:
        self._peer = peer
        self._environment = environment
        self._options = options

    def __enter__(self) -> Setup:
        self._stack = contextlib.ExitStack()
        with contextlib.ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="semcache-peers-")))
            self.backends: list[children.Child] = []
            self.direct: list[str] = []
            for number in range(BACKENDS):
                child = children.Child(
                    [*children.SEMCACHE, "simulate", "--port", "0", *self._options, "--name", f"gpu-{number}"],
                    folder / f"gpu-{number}.log",
                )
                stack.callback(child.stop)
                self.backends.append(child)
                self.direct.append(child.wait_for_line(r"(http://\S+/v1)")[1])
            self.urls = self.direct
            if self._peer is not None:
                port = _free_port()
                command = self._peer.command(self._environment, folder, port, self.direct)
                router = children.Child(command, folder / "router.log")
                stack.callback(router.stop)
                router.wait_until_ready(f"http://127.0.0.1:{port}{self._peer.ready}")
                self.urls = [f"http://127.0.0.1:{port}/v1"]
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


class Callers:
    """Those who ask. Every question is another one, whoever is asked."""

    _asked = 0

    def __init__(self, session: aiohttp.ClientSession, urls: Sequence[str]) -> None:
        self.session = session
        self._urls = urls

    async def stream(self, question: str, system: str = "Be brief.", tokens: int = 4) -> tuple[float, bool, bool]:
        """Return the seconds to the first event, whether it came, and whether the last one did."""
        begun = time.perf_counter()
        first_s, text = 0.0, bytearray()
        try:
            async with self._post(question, system, True, tokens) as reply:
                async for chunk in reply.content.iter_any():
                    if not text:
                        first_s = time.perf_counter() - begun
                    text += chunk
                is_good = reply.status == 200
        except (aiohttp.ClientError, TimeoutError):
            return first_s, bool(text), False
        return first_s, bool(text) and is_good, is_good and b"[DONE]" in text[-20:]

    async def whole(self, question: str) -> float:
        """Return the seconds it took. Raises StartError when it is no answer."""
        begun = time.perf_counter()
        async with self._post(question, "Be brief.", False, 4) as reply:
            if reply.status != 200:
                raise StartError(f"status {reply.status}: {(await reply.text())[:200]}")
            await reply.read()
        return time.perf_counter() - begun

    def _post(self, question: str, system: str, stream: bool, tokens: int):  # type: ignore[no-untyped-def]
        Callers._asked += 1
        url = self._urls[Callers._asked % len(self._urls)]
        messages = [
            {"role": "system", "content": system},
            {"role": "user", "content": f"{question} (case {Callers._asked})"},
        ]
        body = {"model": MODEL, "stream": stream, "max_tokens": tokens, "messages": messages}
        return self.session.post(f"{url}/chat/completions", json=body, headers={"Authorization": f"Bearer {API_KEY}"})


def measure(peer: Peer | None, environment: Path) -> Figures:
    """Raises SemcacheError."""
    with Setup(peer, environment, FAST) as setup:
        stream_s, whole_s, per_s = asyncio.run(_speed(setup))
    with Setup(peer, environment, KV) as setup:
        waits_s, share, busiest = asyncio.run(_prefixes(setup))
    with Setup(peer, environment, FAST) as setup:
        asked, failed, cut = asyncio.run(_kill(setup))
    cuts = quantiles(waits_s, n=100)
    name = peer.name if peer is not None else "no router"
    return Figures(
        name,
        stream_s * 1e3,
        whole_s * 1e3,
        per_s,
        share,
        cuts[49] * 1e3,
        cuts[98] * 1e3,
        busiest,
        failed,
        asked,
        cut,
    )


async def _speed(setup: Setup) -> tuple[float, float, float]:
    """Seconds added to the first event and to a whole answer, and whole answers a second of many callers."""
    async with _callers(setup) as callers:
        direct = Callers(callers.session, setup.direct)
        streams_s: dict[Callers, list[float]] = {direct: [], callers: []}
        wholes_s: dict[Callers, list[float]] = {direct: [], callers: []}
        # In turn, so that whatever else the machine does befalls both alike.
        for number in range(ONE_BY_ONE):
            for who in (direct, callers):
                streams_s[who].append((await who.stream(f"Where is parcel {number}?"))[0])
                wholes_s[who].append(await who.whole(f"Whose is parcel {number}?"))
        done = 0
        until = time.perf_counter() + THROUGHPUT_S

        async def ask(number: int) -> None:
            nonlocal done
            while time.perf_counter() < until:
                await callers.whole(f"Who sent parcel {number}?")
                done += 1

        await asyncio.gather(*(ask(number) for number in range(CALLERS)))
    stream_s, whole_s = (median(each[callers]) - median(each[direct]) for each in (streams_s, wholes_s))
    return stream_s, whole_s, done / THROUGHPUT_S


async def _prefixes(setup: Setup) -> tuple[list[float], float, float]:
    """The waits for the first event, the share of prompt tokens found in KV caches, and the busiest over the mean."""
    chance = random.Random(7)
    systems = [" ".join(f"{word}{number}" for word in range(PREFIX_WORDS)) for number in range(PREFIXES)]
    chosen = iter([chance.choice(systems) for _ in range(PREFIX_REQUESTS)])
    waits_s: list[float] = []

    async with _callers(setup) as callers:
        before = [await _told(url) for url in setup.direct]

        async def ask(number: int) -> None:
            for system in chosen:
                first_s, _, is_whole = await callers.stream(f"What about parcel {number}?", system)
                if is_whole:
                    waits_s.append(first_s)

        await asyncio.gather(*(ask(number) for number in range(CALLERS)))
        after = [await _told(url) for url in setup.direct]
    if len(waits_s) < PREFIX_REQUESTS * 0.9:
        raise StartError(f"only {len(waits_s)} of {PREFIX_REQUESTS} requests were answered")
    grown = {name: [new[name] - old[name] for new, old in zip(after, before, strict=True)] for name in after[0]}
    queried = grown["vllm:prefix_cache_queries_total"]
    share = sum(grown["vllm:prefix_cache_hits_total"]) / sum(queried)
    return waits_s, share, max(queried) / mean(queried)


async def _kill(
    setup: Setup, rate: float = KILL_RATE, kill_after_s: float = KILL_AFTER_S, span_s: float = KILL_SPAN_S
) -> tuple[int, int, int]:
    """Return how many were asked, how many failed, and how many broke after their stream had begun."""
    answers: list[tuple[float, bool, bool]] = []
    async with _callers(setup) as callers, asyncio.TaskGroup() as group:
        begun = time.perf_counter()

        async def ask(number: int) -> None:
            answers.append(await callers.stream(f"Where is parcel {number}?", tokens=12))

        for number in range(int(rate * span_s)):
            if (early_s := number / rate - (time.perf_counter() - begun)) > 0:
                await asyncio.sleep(early_s)
            if number == int(rate * kill_after_s):
                setup.backends[0].kill()
            group.create_task(ask(number))
    failed = sum(not begun for _, begun, _ in answers)
    cut = sum(begun and not whole for _, begun, whole in answers)
    return len(answers), failed, cut


@contextlib.asynccontextmanager
async def _callers(setup: Setup) -> AsyncIterator[Callers]:
    timeout = aiohttp.ClientTimeout(total=20)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session:
        yield Callers(session, setup.urls)


async def _told(url: str) -> dict[str, float]:
    async with aiohttp.ClientSession() as session, session.get(f"{url.removesuffix('/v1')}/metrics") as reply:
        lines = [line.rsplit(" ", 1) for line in (await reply.text()).splitlines() if not line.startswith("#")]
    return {name.partition("{")[0]: float(value) for name, value in lines}


def _free_port() -> int:
    """One that nobody has now; these programs cannot be asked to take one themselves."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def told(rows: Sequence[Figures]) -> Iterator[str]:
    """The table, a line each."""
    yield (
        f"{'':22} {'stream':>9} {'whole':>9} {'requests/s':>10} {'prefix hits':>11} {'wait p50':>9} "
        f"{'p99':>8} {'busiest':>8} {'failed':>11} {'cut':>4}"
    )
    for row in rows:
        yield (
            f"{row.name:22} {row.stream_ms:6.2f} ms {row.whole_ms:6.2f} ms {row.per_s:10.0f} {row.hit_share:11.1%} "
            f"{row.prefix_p50_ms:6.0f} ms {row.prefix_p99_ms:5.0f} ms {row.busiest:7.2f}x "
            f"{row.failed:4} of {row.asked:3} {row.cut:4}"
        )


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--only", multiple=True, type=click.Choice([peer.name for peer in PEERS]), help="This one; repeatable.")
def main(only: tuple[str, ...]) -> None:
    """Compare semcache with other routers, as routers; some four minutes once they are installed."""
    os.nice(5)
    rows, left_out = [], []
    try:
        with children.ended_by_signals():
            rows.append(measure(None, Path(sys.prefix)))
            for peer in PEERS:
                if only and peer.name not in only:
                    continue
                try:
                    rows.append(measure(peer, install(peer)))
                except SemcacheError as error:
                    left_out.append(f"{peer.name}: left out: {error.message}")
    except KeyboardInterrupt:
        sys.exit(130)
    click.echo("\n".join([*told(rows), *left_out]))
    versions = [peer.requirement for peer in PEERS if peer.requirement and (not only or peer.name in only)]
    click.echo(f"{', '.join(versions)}; {BACKENDS} backends, {os.cpu_count()} cores for all of them")


if __name__ == "__main__":
    main(prog_name="python -m loadtests.peers")
