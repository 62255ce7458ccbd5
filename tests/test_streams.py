"""The show of streams tells what curl saw, says so when it saw no hit, and leaves nothing running."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from loadtests.streams import SHOWS, ask, command, complaints, play, read, shortened, told
from semcache.simulate import Simulator

ROOT = Path(__file__).parent.parent

PRINTED = (
    "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nVia: 1.1 x\r\nCache-Status: semcache; hit; ttl=5\r\n\r\n"
    'event: ping\ndata: {"type":"ping"}\n\nevent: a\ndata: {"n":1}\n\nevent: b\ndata: {"n":2}\n\n'
)
MISSED = PRINTED.replace("hit; ttl=5", "fwd=miss")


def test_a_reply_is_read_as_curl_prints_it() -> None:
    seen = read(PRINTED, 1.5, 2.0)
    assert seen.status == "HTTP/1.1 200 OK"
    assert seen.cache_status == "semcache; hit; ttl=5" and seen.is_hit
    assert seen.events == 2  # a ping is none
    assert not read(MISSED, 1, 2).is_hit
    assert not read(PRINTED.replace("200 OK", "504 Gateway Timeout"), 1, 2).is_hit


def test_a_long_reply_is_cut_and_says_by_how_much() -> None:
    lines = list(told(read(PRINTED, 1.5, 2.0), most=4, width=100))
    assert lines == [
        "HTTP/1.1 200 OK",
        "Content-Type: text/event-stream",
        "Cache-Status: semcache; hit; ttl=5",
        "",
        "event: ping",
        'data: {"type":"ping"}',
        "",
        "event: a",
        'data: {"n":1}',
        "",
        "... 2 more lines",
        "# first byte after 1.5 ms, the last after 2.0 ms",
    ]
    assert len(list(told(read(PRINTED, 1.5, 2.0), most=6, width=100))) == len(lines) + 1


@pytest.mark.parametrize("width", [20, 21, 50, 99])
def test_a_wide_line_keeps_its_beginning_and_its_end(width: int) -> None:
    line = "data: " + "x" * 100 + '"Norway"}'
    cut = shortened(line, width)
    assert len(cut) == width
    assert cut.startswith("data: ") and cut.endswith('y"}')
    assert shortened(line, len(line)) == line


def test_what_is_wrong_with_a_replay_is_said() -> None:
    miss, hit = read(MISSED, 1, 2), read(PRINTED, 1, 2)
    assert list(complaints(miss, hit)) == []
    assert len(list(complaints(hit, hit))) == 1
    assert len(list(complaints(miss, miss))) == 1
    short = read(PRINTED.replace('event: b\ndata: {"n":2}\n\n', ""), 1, 2)
    assert list(complaints(miss, short)) == ["2 events came first, and 1 from the store"]


@pytest.mark.parametrize("show", SHOWS, ids=lambda show: show.name)
async def test_every_dialect_streams_from_the_simulated_server(show, capsys: pytest.CaptureFixture[str]) -> None:
    """And without a proxy before it there is no hit, which play() says."""
    async with Simulator() as backend:
        seen = await asyncio.to_thread(ask, show, backend.root)
        wrong = await asyncio.to_thread(play, [show], backend.root, 5, 100)
    assert seen.status == "HTTP/1.1 200 OK"
    assert dict(seen.headers)["Content-Type"].startswith(("text/event-stream", "application/x-ndjson"))
    assert seen.events > 10
    assert wrong == [f"{show.name}: the second asking was no hit: HTTP/1.1 200 OK, no Cache-Status"]
    assert f"$ curl -sSiN {command(show, backend.root)[2].split('?')[0]}" in capsys.readouterr().out.replace("'", "")


def run_show(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "loadtests.streams", "--ttft", "0ms", "--rate", "0", *arguments]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_a_stream_is_missed_once_and_then_replayed() -> None:
    with run_show("--only", "chat", "--only", "ollama-chat") as show:
        out, _ = show.communicate(timeout=55)
    assert show.returncode == 0, out
    assert out.count("semcache; fwd=miss; fwd-status=200; detail=no-entry") == 2
    assert out.count("semcache; hit; ttl=") == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_show_that_is_stopped_stops_what_it_started(number: int) -> None:
    with run_show("--ttft", "30s") as show:
        assert show.stdout is not None
        while (line := show.stdout.readline()) and not line.startswith("$ curl"):
            pass  # now both servers are up and the first answer is being waited for
        started = psutil.Process(show.pid).children(recursive=True)
        os.kill(show.pid, number)
        show.communicate(timeout=55)
    assert show.returncode == 130
    assert len(started) >= 2
    gone, alive = psutil.wait_procs(started, timeout=5)
    assert alive == [] and len(gone) == len(started)
