"""`python -m loadtests.streams`: each dialect's stream as curl sees it, once as a miss and once replayed.

A simulated model server and the proxy are started for it on free ports, with a store in memory, and stopped afterwards.
Fails when the second asking was no hit, or did not bring as many events as the first.
"""

from __future__ import annotations

import contextlib
import json
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from semcache import children
from semcache.errors import SemcacheError, StartError

MODEL = "simulated-small"
QUESTION = "Where can I find my invoice?"
PATIENCE_S = 60
TRIES = 3  # an answer is kept a moment after its last byte has left
PING = 'data: {"type":"ping"}'  # keeps a waiting connection open; a replay does not wait
SHOWN_HEADERS = ("content-type", "cache-status", "age", "server-timing")
TURN = [{"role": "user", "content": QUESTION}]


@dataclass(frozen=True)
class Show:
    """One dialect: where its stream is asked for, and with what."""

    name: str
    path: str
    body: dict[str, Any]
    headers: tuple[str, ...] = ()


SHOWS = (
    Show("chat", "/v1/chat/completions", {"model": MODEL, "stream": True, "messages": TURN}),
    Show("completions", "/v1/completions", {"model": MODEL, "stream": True, "prompt": QUESTION}),
    Show("responses", "/v1/responses", {"model": MODEL, "stream": True, "store": False, "input": QUESTION}),
    Show(
        "messages",
        "/v1/messages",
        {"model": MODEL, "stream": True, "max_tokens": 1000, "messages": TURN},
        ("anthropic-version: 2023-06-01",),
    ),
    Show("ollama-chat", "/api/chat", {"model": MODEL, "messages": TURN}),
    Show("ollama-generate", "/api/generate", {"model": MODEL, "prompt": QUESTION}),
    Show(
        "azure",
        f"/openai/deployments/{MODEL}/chat/completions?api-version=2024-10-21",
        {"stream": True, "messages": TURN},
    ),
)


@dataclass(frozen=True)
class Seen:
    """What curl got: the head, the lines of the body, and when their first and last byte came."""

    status: str
    headers: tuple[tuple[str, str], ...]
    lines: tuple[str, ...]
    first_ms: float
    whole_ms: float

    @property
    def cache_status(self) -> str:
        return next((value for name, value in self.headers if name.lower() == "cache-status"), "")

    @property
    def is_hit(self) -> bool:
        return "; hit" in self.cache_status and self.status.split()[1:2] == ["200"]

    @property
    def events(self) -> int:
        return sum(line.startswith(("data: ", "{")) and line != PING for line in self.lines)


def command(show: Show, base_url: str) -> list[str]:
    """The curl command as one would type it."""
    headers = [word for header in ("Content-Type: application/json", *show.headers) for word in ("-H", header)]
    return ["curl", "-sSiN", f"{base_url}{show.path}", *headers, "-d", json.dumps(show.body)]


def ask(show: Show, base_url: str) -> Seen:
    """Raises StartError when curl does."""
    timed = ["-w", "%{stderr}%{time_starttransfer} %{time_total}", "--max-time", str(PATIENCE_S)]
    done = subprocess.run([*command(show, base_url), *timed], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise StartError(f"curl: {done.stderr.strip()}")
    first_s, whole_s = map(float, done.stderr.split()[-2:])
    return read(done.stdout, first_s * 1000, whole_s * 1000)


def read(output: str, first_ms: float, whole_ms: float) -> Seen:
    """What `curl -i` printed."""
    head, _, body = output.replace("\r\n", "\n").partition("\n\n")
    status, *fields = head.split("\n")
    headers = tuple((name, value.strip()) for name, _, value in (field.partition(":") for field in fields))
    return Seen(status, headers, tuple(body.rstrip("\n").split("\n")), first_ms, whole_ms)


def told(seen: Seen, most: int, width: int) -> Iterator[str]:
    """A reply as curl printed it, less the headers that say nothing of the cache.

    At most so many lines that are not empty, none wider than `width`: the middle of a longer one is left out.
    """
    yield seen.status
    yield from (f"{name}: {value}" for name, value in seen.headers if name.lower() in SHOWN_HEADERS)
    yield ""
    shown = 0
    for place, line in enumerate(seen.lines):
        if shown == most and line:
            yield f"... {sum(map(bool, seen.lines[place:]))} more lines"
            break
        shown += bool(line)
        yield shortened(line, width)
    yield f"# first byte after {seen.first_ms:.1f} ms, the last after {seen.whole_ms:.1f} ms"


def shortened(line: str, width: int) -> str:
    """What tells one event from the next stands at the end, behind what all have in common."""
    head = width // 3
    return line if len(line) <= width else f"{line[:head]} ... {line[len(line) - (width - head - 5) :]}"


def play(shows: Sequence[Show], base_url: str, most: int, width: int) -> list[str]:
    """Print both askings of each dialect; return what was wrong with them."""
    wrong = []
    for show in shows:
        click.echo(f"\n## {show.name}\n$ {shlex.join(command(show, base_url))}")
        first = ask(show, base_url)
        click.echo("\n".join(told(first, most, width)))
        second = ask_again(show, base_url)
        click.echo("\n# the same again\n" + "\n".join(told(second, most, width)))
        wrong += [f"{show.name}: {complaint}" for complaint in complaints(first, second)]
    return wrong


def ask_again(show: Show, base_url: str) -> Seen:
    """The hit, or after some tries whatever came instead."""
    for _ in range(TRIES - 1):
        if (seen := ask(show, base_url)).is_hit:
            return seen
    return ask(show, base_url)


def complaints(first: Seen, second: Seen) -> Iterator[str]:
    if first.is_hit:
        yield f"the first asking was no miss: {first.cache_status}"
    if not second.is_hit:
        yield f"the second asking was no hit: {second.status}, {second.cache_status or 'no Cache-Status'}"
    if first.events != second.events:
        yield f"{first.events} events came first, and {second.events} from the store"


@contextlib.contextmanager
def servers(ttft: str, rate: float) -> Iterator[str]:
    """The base URL of a fresh proxy, before a simulated server that speaks every dialect."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(children.ended_by_signals())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="semcache-streams-")))
        backend, upstream = children.start_simulator(folder, ttft=ttft, rate=rate)
        stack.callback(backend.stop)
        proxy, base_url, _ = children.start_proxy(folder, upstream, "--store", "memory:")
        stack.callback(proxy.stop)
        yield base_url


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--only", multiple=True, type=click.Choice([show.name for show in SHOWS]), help="This dialect; repeatable."
)
@click.option(
    "--lines", type=click.IntRange(1), default=20, show_default=True, help="Of each reply, its head included."
)
@click.option("--width", type=click.IntRange(20), default=140, show_default=True, help="Columns of a line.")
@click.option("--ttft", default="300ms", show_default=True, help="Time to the first token of the simulated server.")
@click.option("--rate", type=float, default=60, show_default=True, help="Its tokens per second.")
def main(only: tuple[str, ...], lines: int, width: int, ttft: str, rate: float) -> None:
    """Show each dialect's stream with curl: a miss, and the same replayed from the cache."""
    if shutil.which("curl") is None:
        sys.exit("loadtests.streams: curl is not installed")
    try:
        with servers(ttft, rate) as base_url:
            wrong = play([show for show in SHOWS if not only or show.name in only], base_url, lines, width)
    except SemcacheError as error:
        sys.exit(f"loadtests.streams: {error.message}")
    except KeyboardInterrupt:
        sys.exit(130)
    if wrong:
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main(prog_name="python -m loadtests.streams")
