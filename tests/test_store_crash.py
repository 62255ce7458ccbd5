"""What the store promises when things break: kill -9, flipped bits, a full disk.

SEMCACHE_KILL_CYCLES (10) and SEMCACHE_BIT_FLIPS (60) make the first two as thorough as there is time for.
"""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import BinaryIO

import pytest

from semcache.cache.store import SqliteStore
from semcache.errors import StartError, StoreFault
from semcache.types import Change, Entry, Posting, Selector
from tests.entries import STAMP, answer_to, belongs, make_entry
from tests.fakes import Clock

KILL_CYCLES = int(os.environ.get("SEMCACHE_KILL_CYCLES", "10"))
BIT_FLIPS = int(os.environ.get("SEMCACHE_BIT_FLIPS", "60"))


async def live_postings(store: SqliteStore) -> dict[int, Posting]:
    live: dict[int, Posting] = {}

    def apply(changes: Sequence[Change]) -> None:
        for change in changes:
            if change.added:
                live[change.seq] = change.added
            for seq in change.removed:
                live.pop(seq, None)

    await store.follow(0, apply, STAMP)
    return live


StartWriter = Callable[[Path, str, int], tuple[int, BinaryIO]]


@pytest.fixture
def start_writer(tmp_path: Path) -> Iterator[StartWriter]:
    """Starts a process that writes; returns its id and what it tells."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.store_writer"],
        cwd=Path(__file__).parents[1],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as nursery:
        assert nursery.stdin and nursery.stdout

        def start(path: Path, name: str, seed: int) -> tuple[int, BinaryIO]:
            pipe = tmp_path / f"{name}.pipe"
            os.mkfifo(pipe)
            print(path, pipe, name, seed, sep="\t", file=nursery.stdin, flush=True)
            pid = int(nursery.stdout.readline())  # type: ignore[union-attr]
            return pid, pipe.open("rb")

        yield start
        nursery.stdin.close()


@pytest.mark.timeout(600)
async def test_what_was_acknowledged_survives_kill_9_and_answers_belong_to_their_questions(
    tmp_path: Path, start_writer: StartWriter
) -> None:
    """Two processes write to one file, replacing, purging and erasing as they go, and are killed at a random entry."""
    rng = random.Random(67)
    path = tmp_path / "s.db"
    acknowledged: dict[int, str] = {}
    identity = None
    for cycle in range(KILL_CYCLES):
        writers = [start_writer(path, f"{cycle}-{number}", cycle) for number in (0, 1)]
        patience = rng.randrange(1, 3000)
        lines: list[bytes] = []
        with writers[0][1] as first, writers[1][1] as second:
            while len(lines) < patience:
                lines += [first.readline(), second.readline()]
            for pid, _ in writers:
                os.kill(pid, signal.SIGKILL)
            lines += first.readlines() + second.readlines()  # acknowledged before it died
        for line in lines:
            if line.endswith(b"\n"):
                number, _, question = line.decode().strip().partition(" ")
                acknowledged[int(number)] = question
        store = SqliteStore(path, max_entries=10**6)
        await store.open()
        identity = identity or store.id
        assert store.id == identity and store.stats()["moved_aside"] == 0
        live = await live_postings(store)
        assert acknowledged.keys() - live.keys() == set(), "acknowledged, and lost"
        checked = live.keys() if cycle == KILL_CYCLES - 1 else list(live)[-500:]
        for seq in checked:
            entry = await store.read(seq)
            assert entry is not None and belongs(entry) and entry.key.exact == live[seq].exact
            assert acknowledged.get(seq, entry.question) == entry.question
        assert store.stats()["damaged"] == 0
        await store.close()
    print(
        f"{KILL_CYCLES} cycles, {len(acknowledged)} acknowledged, 0 lost, {len(live) - len(acknowledged)} others whole"
    )


@pytest.mark.timeout(300)
async def test_no_flipped_bit_in_any_file_leads_to_a_wrong_answer(tmp_path: Path) -> None:
    rng = random.Random(66)
    source = tmp_path / "source"
    source.mkdir()
    store = SqliteStore(source / "s.db", max_entries=1000, clock=Clock())
    await store.open()
    originals: dict[bytes, Entry] = {}
    for i in range(40):
        entry = make_entry(f"q{i}", padding=rng.choice([0, 700, 9000]))
        originals[entry.key.exact] = entry
        seq = await store.put(entry, 0)
        if i % 10 == 9:
            assert seq is not None
            await store.remove([seq])  # which a log cut short by a flip may undo
    files = {path.name: path.read_bytes() for path in source.iterdir() if path.name in {"s.db", "s.db-wal", "s.db.key"}}
    await store.close()
    closed = (source / "s.db").read_bytes()
    served = lost = 0
    refusals: list[str] = []
    for flip in range(BIT_FLIPS):
        folder = tmp_path / str(flip)
        folder.mkdir()
        # In turn: the database as it lies closed, and the log of one that was killed.
        state = {**files, "s.db": closed, "s.db-wal": b""} if flip % 2 else dict(files)
        name = "s.db" if flip % 2 else "s.db-wal"
        damaged = bytearray(state[name])
        bit = rng.randrange(8 * len(damaged))
        damaged[bit // 8] ^= 1 << bit % 8
        state[name] = bytes(damaged)
        for name, content in state.items():
            if content:
                (folder / name).write_bytes(content)
        store = SqliteStore(folder / "s.db", max_entries=1000, clock=Clock())
        try:
            await store.open()
        except StartError as refused:
            refusals.append(refused.message)
            continue
        live = await live_postings(store)
        for seq, posting in list(live.items()):
            found = await store.read(seq)
            if found is None:
                lost += 1
                continue
            served += 1
            original = originals[found.key.exact]
            assert found.answer == original.answer and found.question == original.question and belongs(found)
            assert found.seq == seq
            # The index believes the posting; the lookup compares the key of what it read. Both must hold together.
            assert found.key.exact == posting.exact or posting.exact not in originals
        assert await store.put(make_entry("afterwards"), store.last_seq) is not None
        await store.close()
    print(f"{BIT_FLIPS} flips: {served} right answers, {lost} dropped, 0 wrong")
    assert served > 0
    # A version is the one thing that may not be guessed.
    assert [message for message in refusals if "newer semcache" not in message] == []


async def test_a_row_planted_by_somebody_without_the_key_is_never_served(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    store = SqliteStore(path, max_entries=1000, clock=Clock())
    await store.open()
    mine = await store.put(make_entry("mine"), 0)
    theirs = await store.put(make_entry("theirs", tenant="rival"), 0)
    assert mine and theirs
    await store.close()
    with closing(sqlite3.connect(path)) as db, db:
        db.execute(
            "UPDATE entries SET answer = (SELECT answer FROM entries WHERE seq = ?) WHERE seq = ?", (theirs, mine)
        )
        db.execute("UPDATE entries SET tenant = 'shop' WHERE seq = ?", (theirs,))
    store = SqliteStore(path, max_entries=1000, clock=Clock())
    await store.open()
    assert await store.read(mine) is None and await store.read(theirs) is None
    await store.close()
    assert store.stats()["damaged"] == 2 and store.stats()["entries"] == 0


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[None]:
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount a small disk")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


async def test_a_full_disk_stops_stores_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "disk"
    with small_disk(folder, 112):
        store = SqliteStore(folder / "s.db", max_entries=100_000, clock=Clock())
        await store.open()
        live = await live_postings(store)

        async def fill() -> None:
            for i in range(2000):
                await store.put(make_entry(f"q{i} of {store.last_seq}", padding=100_000), store.last_seq)

        with pytest.raises(StoreFault, match="full"):
            await fill()
        assert store.stats()["disk_full"] == 1
        for seq in list(live):
            found = await store.read(seq)
            assert found is not None and belongs(found)
        before = len(live)
        assert await store.purge(Selector(entry=(await store.read(min(live))).id)) == 1  # type: ignore[union-attr]
        assert await store.evict() >= before // 25, "room is made"
        assert store.stats()["disk_full"] == 0
        assert await store.put(make_entry("afterwards", padding=100_000), store.last_seq) is not None
        assert answer_to("afterwards") in (await store.read(store.last_seq)).answer.parts[0]  # type: ignore[union-attr]
        await store.close()
