"""Virtual keys: their text, their file, what a tenant is with one in hand, and how soon a change is seen."""

from __future__ import annotations

import asyncio
import logging
import math
import multiprocessing
import os
import sqlite3
import stat
import tempfile
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from semcache.access.key_file import KeyFile, KeyFileFault
from semcache.access.keyring import PATIENCE_S, Keyring
from semcache.access.keys import (
    CHECK_CHARS,
    KEY_CHARS,
    PREFIX,
    Grants,
    Malformed,
    Secret,
    VirtualKey,
    _checksum,
    make_id,
    make_text,
    meet,
    read_id,
    tenant_with,
)
from semcache.access.locksmith import KeyChange, Locksmith, NewKey
from semcache.config import Limits, TenantSettings
from semcache.errors import ClientError, StartError
from tests.fakes import Clock

PEPPER = b"thirty-two bytes or some more of it"
SHOP = TenantSettings(
    name="shop",
    regions=("eu", "ch"),
    namespaces=("faq", "blog"),
    models=("gpt-*", "llama-?b"),
    routes=("chat",),
    limits=Limits(requests_per_minute=600),
)
BANK = TenantSettings(name="bank")
LETTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


class Bench:
    """A file of keys, a locksmith at it, and a keyring that follows it when told."""

    def __init__(self, path: Path, pepper: bytes = PEPPER) -> None:
        self.path = path
        self.clock, self.monotonic = Clock(), Clock(1000.0)
        self.events: list[tuple[str, dict[str, object]]] = []
        self.file = KeyFile(str(path), pepper)
        self.file.open()
        self.smith = Locksmith(self.file, lambda: [SHOP, BANK], self.clock, self._record)
        self.ring = Keyring(self.file, 1.0, self.clock, self.monotonic)

    def _record(self, event: str, **facts: object) -> None:
        self.events.append((event, facts))

    async def opens(self, text: str) -> bool:
        """Whether it is a key, now that the file was looked at."""
        await self.ring.refresh()
        try:
            self.ring.find(text)
        except ClientError as error:
            if error.status == 401:
                return False
            raise
        return True

    def complaint(self, text: str) -> str:
        with pytest.raises(ClientError) as caught:
            self.ring.find(text)
        assert text not in caught.value.message
        return caught.value.message


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path / "var" / "keys.db")
    yield made
    made.file.close()


# The text


@given(st.text(alphabet=LETTERS, min_size=10, max_size=10))
def test_a_key_holds_its_id_and_only_its_own(key_id: str) -> None:
    text = make_text(key_id)
    assert len(text) == KEY_CHARS and text.startswith(PREFIX + key_id)
    assert read_id(text) == key_id


@given(st.data())
def test_one_wrong_character_is_told_from_an_unknown_key(data: st.DataObject) -> None:
    text = make_text(make_id())
    place = data.draw(st.integers(len(PREFIX), KEY_CHARS - 1))
    other = data.draw(st.sampled_from(LETTERS.replace(text[place], "")))
    with pytest.raises(Malformed):  # a CRC-32 finds every burst of up to 32 bits
        read_id(text[:place] + other + text[place + 1 :])


@given(st.text())
def test_whatever_is_sent_is_a_key_or_malformed(text: str) -> None:
    for sent in (text, PREFIX + text, make_text("abcdefghij") + text):
        try:
            found: object = read_id(sent)
        except Malformed as exc:
            found = exc
        assert (len(found) == 10) if isinstance(found, str) else (len(text) < 12 or text not in str(found))


def test_secrets_have_256_bits_and_are_never_equal() -> None:
    texts = {make_text("abcdefghij") for _ in range(200)}
    assert len(texts) == 200
    assert 62**43 >= 2**256


# What is kept


async def test_a_key_works_and_what_resembles_it_does_not(bench: Bench) -> None:
    made = bench.smith.create(NewKey(tenant="shop", name="web"))
    twin = make_text(made.key.id)  # the same id, and so the same first 16 characters, with another secret
    assert twin[:16] == made.text[:16]
    assert await bench.opens(made.text)
    assert not await bench.opens(twin)
    assert not await bench.opens(make_text(make_id()))
    assert not await bench.opens(made.text.lower())


async def test_two_keys_with_the_same_first_20_characters_are_two(bench: Bench) -> None:
    made = bench.smith.create(NewKey(tenant="shop"))
    body = made.text[:20] + make_text(made.key.id)[20:-CHECK_CHARS]
    other = body + _checksum(body)
    assert read_id(other) == made.key.id  # well made, and still no key
    assert await bench.opens(made.text) and not await bench.opens(other)


async def test_no_key_text_is_kept_or_shown_anywhere(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    texts = [made.text for made in (bench.smith.create(NewKey(tenant="shop", name=f"n{i}")) for i in range(5))]
    first = read_id(texts[0])
    texts.append(bench.smith.rotate(first).text)
    bench.smith.revoke(read_id(texts[1]))
    bench.smith.update(read_id(texts[2]), KeyChange(limits=Limits(usd_per_day=5)))
    for text in texts:
        await bench.opens(text)
    await bench.ring._note_uses()
    kept = b"".join(file.read_bytes() for file in bench.path.parent.iterdir())
    assert texts[0][:16].encode() not in kept  # the prefix is put together for showing
    shown = "".join(map(str, (bench.smith.list(), bench.events, bench.file.all(), bench.ring.stats(), caplog.text)))
    for text in texts:
        secret = text[16:]
        assert secret.encode() not in kept and secret not in shown
        assert bench.file.digest(text) not in shown  # not even its digest, by which nobody can come in anyhow


def test_the_file_is_for_its_owner_alone(bench: Bench) -> None:
    bench.smith.create(NewKey(tenant="shop"))
    for file in bench.path.parent.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
    bench.path.chmod(0o644)
    KeyFile(str(bench.path), PEPPER).open()
    assert stat.S_IMODE(bench.path.stat().st_mode) == 0o600


def test_a_wrong_pepper_is_told_at_the_start(bench: Bench) -> None:
    with pytest.raises(StartError, match="keys.pepper: .* was made with another one"):
        KeyFile(str(bench.path), b"another pepper, long enough").open()


@pytest.mark.parametrize("content", [b"", b"not a database at all, however long " * 300])
def test_a_file_that_is_none_of_ours_is_refused_and_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "keys.db"
    path.write_bytes(content)
    with pytest.raises(StartError, match="keys.path"):
        KeyFile(str(path), PEPPER).open()
    assert path.read_bytes() == content


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StartError, match="keys.path: .* cannot be used"):
        KeyFile(str(tmp_path / "file" / "keys.db"), PEPPER).open()


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE keys SET facts = replace(facts, 'shop', 'bank')",
        "UPDATE keys SET facts = replace(facts, '\"eu\"', '\"us\"')",
        "UPDATE keys SET facts = 'no json'",
        "UPDATE keys SET facts = x'ff'",
        "UPDATE keys SET id = 'abcdefghij'",
        "UPDATE keys SET seal = 'text'",
    ],
)
async def test_a_row_that_somebody_changed_is_no_key(bench: Bench, change: str) -> None:
    made = bench.smith.create(NewKey(tenant="shop", regions=("eu",)))
    assert await bench.opens(made.text)
    connection = sqlite3.connect(bench.path)
    connection.execute(change)
    connection.execute("UPDATE meta SET value = value + 1 WHERE name = 'changes'")
    connection.commit()
    connection.close()
    assert not await bench.opens(made.text)


# What a tenant is with a key in hand


def test_a_key_narrows_its_tenant(bench: Bench) -> None:
    wanted = NewKey(tenant="shop", models=("gpt-4o*",), routes=("chat",), namespaces=("blog",), regions=("eu", "ch"))
    key = bench.smith.create(wanted).key
    tenant = tenant_with(key, SHOP)
    assert (tenant.id, tenant.key, tenant.regions) == ("shop", key.id, {"eu", "ch"})
    assert (tenant.models, tenant.routes, tenant.namespaces) == (("gpt-4o*",), ("chat",), ("blog",))


def test_a_key_without_grants_is_its_tenant(bench: Bench) -> None:
    tenant = tenant_with(bench.smith.create(NewKey(tenant="shop")).key, SHOP)
    assert tenant.regions == {"eu", "ch"} and tenant.models == SHOP.models
    assert (tenant.routes, tenant.namespaces) == (SHOP.routes, SHOP.namespaces)


@pytest.mark.parametrize(
    "wanted, complaint",
    [
        (NewKey(tenant="shop", regions=("us",)), "regions: of us the tenant may use none; it may use eu, ch"),
        (NewKey(tenant="shop", regions=("eu", "us")), "regions: of us "),
        (NewKey(tenant="shop", models=("claude-*",)), "models: of claude-"),
        (NewKey(tenant="shop", models=("*-mini",)), "models: of "),  # gpt-*-mini is what it may have
        (NewKey(tenant="shop", routes=("batch",)), "routes: of batch "),
        (NewKey(tenant="bank", namespaces=("faq",)), "namespaces: of faq .* none at all"),
        (NewKey(tenant="nobody"), 'no tenant is called "nobody"; there are shop, bank'),
    ],
)
def test_a_key_that_could_do_nothing_of_what_is_asked_is_not_made(bench: Bench, wanted: NewKey, complaint: str) -> None:
    with pytest.raises(ClientError, match=complaint):
        bench.smith.create(wanted)
    assert bench.smith.list() == [] and bench.events == []


@pytest.mark.parametrize("grant", list(Grants.model_fields))
def test_a_grant_of_which_nothing_is_left_is_not_everything(grant: str) -> None:
    key = VirtualKey(
        id="abcdefghij", tenant="shop", grants=Grants(**{grant: ("gone",)}), created=0, secrets=(Secret(digest="0"),)
    )
    with pytest.raises(ClientError, match=grant) as caught:
        tenant_with(key, SHOP)
    assert (caught.value.status, caught.value.code) == (403, "key_not_usable")


GLOBS = st.lists(st.text(alphabet="ab*?[]", min_size=1, max_size=4), min_size=1, max_size=3)


@settings(max_examples=500)
@given(GLOBS, GLOBS, st.text(alphabet="ab[]", min_size=1, max_size=4))
def test_globs_that_were_met_take_nothing_that_one_list_does_not(one: list[str], other: list[str], name: str) -> None:
    if any(fnmatchcase(name, glob) for glob in meet(one, other)):
        assert any(fnmatchcase(name, glob) for glob in one) and any(fnmatchcase(name, glob) for glob in other)


@pytest.mark.parametrize(
    "one, other, both",
    [
        (["gpt-4o"], ["gpt-*"], ("gpt-4o",)),
        (["*"], ["gpt-*", "o?"], ("gpt-*", "o?")),
        (["gpt-*"], ["gpt-4*", "llama-*"], ("gpt-4*",)),
        (["gpt-*"], ["*-mini"], ()),
        (["llama-8b"], ["llama-?b"], ("llama-8b",)),
        (["llama-*"], ["llama-?b"], ()),  # it is narrower, and saying so takes more than this is worth
        (["a"], [], ("a",)),
    ],
)
def test_what_two_lists_of_globs_have_in_common(one: list[str], other: list[str], both: tuple[str, ...]) -> None:
    assert meet(one, other) == both


# Its life


async def test_a_rotated_key_has_two_secrets_until_the_overlap_ends(bench: Bench) -> None:
    old = bench.smith.create(NewKey(tenant="shop"))
    new = bench.smith.rotate(old.key.id, overlap_s=3600)
    assert new.key.id == old.key.id and new.text != old.text
    assert await bench.opens(old.text) and await bench.opens(new.text)
    assert bench.smith.list()[0]["rotating_until"] == "2027-01-15T09:00:00Z"
    bench.clock.advance(3600)
    assert await bench.opens(new.text) and not await bench.opens(old.text)
    assert "was replaced" in bench.complaint(old.text)


async def test_rotating_again_lengthens_nobodys_life(bench: Bench) -> None:
    first = bench.smith.create(NewKey(tenant="shop"))
    second = bench.smith.rotate(first.key.id, overlap_s=60)
    third = bench.smith.rotate(first.key.id, overlap_s=3600)
    bench.clock.advance(61)
    assert [await bench.opens(made.text) for made in (first, second, third)] == [False, True, True]
    bench.smith.rotate(first.key.id, overlap_s=0)
    assert [await bench.opens(made.text) for made in (first, second, third)] == [False, False, False]


@pytest.mark.parametrize("overlap_s", [1e20, float("inf"), float("nan"), -1.0])
async def test_an_overlap_beyond_any_calendar_changes_nothing(bench: Bench, overlap_s: float) -> None:
    made = bench.smith.create(NewKey(tenant="shop"))
    with pytest.raises(ClientError, match="overlap"):
        bench.smith.rotate(made.key.id, overlap_s)
    assert await bench.opens(made.text) and bench.smith.list()[0]["rotating_until"] is None


async def test_only_who_holds_the_secret_is_told_what_became_of_the_key(bench: Bench) -> None:
    revoked = bench.smith.create(NewKey(tenant="shop"))
    expired = bench.smith.create(NewKey(tenant="shop", expires=60))
    bench.smith.revoke(revoked.key.id)
    bench.clock.advance(60)
    await bench.ring.refresh()
    assert "was revoked on 2027-01-15" in bench.complaint(revoked.text)
    assert "expired on 2027-01-15" in bench.complaint(expired.text)
    for made in (revoked, expired):
        assert bench.complaint(make_text(made.key.id)) == bench.complaint(make_text(make_id()))
    assert "checksum" in bench.complaint(revoked.text[:-1] + ("a" if revoked.text[-1] != "a" else "b"))


def test_a_key_that_works_no_more_is_not_rotated(bench: Bench) -> None:
    key = bench.smith.create(NewKey(tenant="shop")).key
    bench.smith.revoke(key.id)
    with pytest.raises(ClientError, match="revoked"):
        bench.smith.rotate(key.id)
    with pytest.raises(ClientError, match="no key has the id"):
        bench.smith.revoke("nobody")


def test_a_whole_key_in_place_of_an_id_is_not_repeated(bench: Bench) -> None:
    made = bench.smith.create(NewKey(tenant="shop"))
    with pytest.raises(ClientError, match="not a whole key") as caught:
        bench.smith.revoke(made.text)
    assert made.text[16:30] not in caught.value.message


def test_an_update_changes_what_it_names(bench: Bench) -> None:
    limits = Limits(requests_per_minute=5, usd_per_day=2)
    key = bench.smith.create(NewKey(tenant="shop", name="web", limits=limits, expires=60)).key
    changed = bench.smith.update(key.id, KeyChange.model_validate({"limits": {"requests_per_minute": 9}}))
    assert changed.limits == Limits(requests_per_minute=9, usd_per_day=2)
    assert (changed.name, changed.expires) == ("web", key.expires)
    changed = bench.smith.update(
        key.id, KeyChange.model_validate({"limits": {"usd_per_day": None}, "expires": None, "name": "app"})
    )
    assert changed.limits == Limits(requests_per_minute=9)
    assert (changed.name, changed.expires) == ("app", None)


def test_every_change_is_taken_down(bench: Bench) -> None:
    made = bench.smith.create(NewKey(tenant="shop", name="web"))
    bench.smith.rotate(made.key.id, overlap_s=5)
    bench.smith.update(made.key.id, KeyChange(name="app"))
    bench.smith.revoke(made.key.id)
    assert [event for event, _ in bench.events] == ["key-created", "key-rotated", "key-updated", "key-revoked"]
    assert all(facts["key"] == made.key.id and facts["tenant"] == "shop" for _, facts in bench.events)


async def test_the_day_of_the_last_use_is_kept(bench: Bench) -> None:
    made = bench.smith.create(NewKey(tenant="shop"))
    idle = bench.smith.create(NewKey(tenant="shop"))
    assert await bench.opens(made.text)
    await bench.ring._note_uses()
    days = {row["id"]: row["last_used"] for row in bench.smith.list()}
    assert days == {made.key.id: "2027-01-15", idle.key.id: None}


async def test_a_use_that_could_not_be_noted_is_noted_later(bench: Bench) -> None:
    made = bench.smith.create(NewKey(tenant="shop"))
    assert await bench.opens(made.text)
    aside = bench.path.rename(bench.path.with_suffix(".aside"))
    with pytest.raises(KeyFileFault):
        await bench.ring._note_uses()
    aside.rename(bench.path)
    await bench.ring._note_uses()
    assert bench.smith.list()[0]["last_used"] == "2027-01-15"


# Several processes, and a file in trouble


def _revoke_elsewhere(path: str, key_id: str) -> None:
    file = KeyFile(path, PEPPER)
    Locksmith(file, lambda: [SHOP, BANK], Clock()).revoke(key_id)


async def test_a_change_of_another_process_is_seen_at_the_next_look(bench: Bench) -> None:
    made = bench.smith.create(NewKey(tenant="shop"))
    assert await bench.opens(made.text)
    process = multiprocessing.get_context("spawn").Process(
        target=_revoke_elsewhere, args=(str(bench.path), made.key.id)
    )
    process.start()
    await asyncio.to_thread(process.join)
    assert process.exitcode == 0
    assert not await bench.opens(made.text)


async def test_the_file_is_looked_at_every_refresh(bench: Bench) -> None:
    """Each pause ends when the test says so, and lasts as long as the settings say."""
    pauses: list[float] = []
    go = asyncio.Semaphore(0)

    async def pause(seconds: float) -> None:
        pauses.append(seconds)
        await go.acquire()

    changed = asyncio.Event()
    ring = Keyring(bench.file, 1.5, bench.clock, bench.monotonic, pause)
    ring.on_change = changed.set
    await ring.start()
    made = bench.smith.create(NewKey(tenant="shop"))
    changed.clear()
    go.release()
    await asyncio.wait_for(changed.wait(), 10)
    assert ring.find(made.text)[0].id == made.key.id
    assert set(pauses) == {1.5}
    await ring.stop()


def _make_keys(path: str, count: int) -> None:
    file = KeyFile(path, PEPPER)
    file.open()
    smith = Locksmith(file, lambda: [SHOP, BANK], Clock())
    for _ in range(count):
        smith.create(NewKey(tenant="bank"))


async def test_processes_that_start_together_make_one_file_and_lose_no_key(tmp_path: Path) -> None:
    path = tmp_path / "keys.db"
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_make_keys, args=(str(path), 10)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        await asyncio.to_thread(process.join)
    assert [process.exitcode for process in processes] == [0] * 4
    assert len(KeyFile(str(path), PEPPER).all()) == 40
    assert not list(tmp_path.glob("*.new-*"))


async def test_while_the_file_is_gone_known_keys_work_for_a_while_and_no_others(bench: Bench) -> None:
    made = bench.smith.create(NewKey(tenant="shop"))
    assert await bench.opens(made.text)
    aside = bench.path.rename(bench.path.with_suffix(".aside"))
    bench.monotonic.advance(PATIENCE_S - 1)
    assert await bench.opens(made.text)
    assert not await bench.opens(make_text(make_id()))
    assert bench.ring.faults == 2 and not bench.path.exists()  # and no empty one is put in its place
    bench.monotonic.advance(1)
    with pytest.raises(ClientError) as caught:
        bench.ring.find(made.text)
    assert (caught.value.status, caught.value.code) == (503, "keys_unavailable")
    aside.rename(bench.path)
    assert await bench.opens(made.text)


async def test_a_backup_put_in_place_of_the_file_is_what_counts(bench: Bench) -> None:
    kept = bench.smith.create(NewKey(tenant="shop"))
    backup = bench.path.with_suffix(".backup")
    source, target = sqlite3.connect(bench.path), sqlite3.connect(backup)
    source.backup(target)
    source.close(), target.close()
    later = bench.smith.create(NewKey(tenant="shop"))
    assert await bench.opens(later.text)
    for suffix in ("-wal", "-shm"):
        Path(f"{bench.path}{suffix}").unlink(missing_ok=True)
    os.replace(backup, bench.path)
    assert await bench.opens(kept.text) and not await bench.opens(later.text)


async def test_a_read_that_hangs_makes_nothing_look_fresh(bench: Bench) -> None:
    """What counts is when the look began: a disk may answer after minutes."""

    class Slow(KeyFile):
        def read(self) -> Any:
            bench.monotonic.advance(PATIENCE_S)
            return super().read()

    file = Slow(str(bench.path), PEPPER)
    file.open()
    ring = Keyring(file, 1.0, bench.clock, bench.monotonic)
    made = bench.smith.create(NewKey(tenant="shop"))
    await ring.refresh()
    with pytest.raises(ClientError) as caught:
        ring.find(made.text)
    assert caught.value.status == 503
    file.close()


class KeyLife(RuleBasedStateMachine):
    """Whatever is done to keys in whatever order, exactly those texts work that should."""

    ids = Bundle("ids")

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.bench = Bench(Path(self.folder.name) / "keys.db")
        self.bench.file.close()  # the keyring opens it on its own thread
        self.runner = asyncio.Runner()
        self.ends: dict[str, float] = {}  # by text: unix seconds
        self.expires: dict[str, float] = {}  # by id
        self.revoked: set[str] = set()

    @rule(target=ids, expires=st.sampled_from([None, 50.0, 200.0]))
    def create(self, expires: float | None) -> str:
        made = self.bench.smith.create(NewKey(tenant="bank", expires=expires))
        self.ends[made.text] = math.inf
        self.expires[made.key.id] = math.inf if expires is None else self.bench.clock() + expires
        return made.key.id

    @rule(key_id=ids, overlap_s=st.sampled_from([0.0, 30.0, 100.0]))
    def rotate(self, key_id: str, overlap_s: float) -> None:
        now = self.bench.clock()
        if key_id in self.revoked or now >= self.expires[key_id]:
            with pytest.raises(ClientError):
                self.bench.smith.rotate(key_id, overlap_s)
            return
        for text in self.ends:
            if read_id(text) == key_id:
                self.ends[text] = min(self.ends[text], now + overlap_s)
        self.ends[self.bench.smith.rotate(key_id, overlap_s).text] = math.inf

    @rule(key_id=ids)
    def revoke(self, key_id: str) -> None:
        self.bench.smith.revoke(key_id)
        self.revoked.add(key_id)

    @rule(key_id=ids, expires=st.sampled_from([None, 40.0]))
    def update(self, key_id: str, expires: float | None) -> None:
        self.bench.smith.update(key_id, KeyChange(expires=expires))
        self.expires[key_id] = math.inf if expires is None else self.bench.clock() + expires

    @rule(seconds=st.sampled_from([1.0, 29.0, 60.0]))
    def wait(self, seconds: float) -> None:
        self.bench.clock.advance(seconds)

    @invariant()
    def just_those_work_that_should(self) -> None:
        self.runner.run(self.bench.ring.refresh())
        now = self.bench.clock()
        for text, end in self.ends.items():
            key_id = read_id(text)
            should = key_id not in self.revoked and now < min(end, self.expires[key_id])
            try:
                until = self.bench.ring.find(text)[1]
            except ClientError:
                until = -math.inf
            assert (until > now) == should
            assert until <= min(end, self.expires[key_id])

    def teardown(self) -> None:
        self.runner.close()
        self.bench.file.close()
        self.folder.cleanup()


KeyLife.TestCase.settings = settings(max_examples=20, stateful_step_count=15, deadline=None)
TestKeyLife = KeyLife.TestCase
