"""The comparison with other routers: what it counts, and that it leaves nothing behind."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from loadtests.peers import FAST, PEERS, Figures, Peer, Setup, _kill, install, told
from semcache.errors import StartError

HERE = Path(sys.prefix)


def test_without_a_router_a_third_of_the_requests_fails_once_a_backend_is_dead() -> None:
    with Setup(None, HERE, FAST) as setup:
        asked, failed, cut = asyncio.run(_kill(setup, rate=50, kill_after_s=0.5, span_s=1.5))
    assert asked == 75
    assert 12 <= failed + cut <= 20


def test_semcache_is_set_up_as_a_router() -> None:
    [off] = [peer for peer in PEERS if peer.name == "semcache, cache off"]
    with Setup(off, install(off), FAST) as setup:
        asked, failed, _ = asyncio.run(_kill(setup, rate=50, kill_after_s=0.5, span_s=1.5))
    assert (asked, failed) == (75, 0)


def test_a_peer_that_does_not_install_says_why(tmp_path: Path) -> None:
    missing = Peer("nobody", lambda *_: [], requirement="/no-such-folder")
    with pytest.raises(StartError, match=r"nobody does not install: .*no-such-folder"):
        install(missing, tmp_path)


def test_the_table_tells_each_figure() -> None:
    peer = Figures("peer", 0.5, 0.2, 500, 0.9, 60, 150, 1.25, 0, 800, 3)
    row = list(told([peer]))[1].split()
    assert row[:8] == ["peer", "0.50", "ms", "0.20", "ms", "500", "90.0%", "60"]
    assert row[-4:] == ["0", "of", "800", "3"]
