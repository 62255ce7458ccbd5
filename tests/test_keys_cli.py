"""Keys from a shell and through the admin port: what is printed, what is kept, and how failures look."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
from click.testing import CliRunner, Result
from multidict import CIMultiDict
from pydantic import SecretStr

from semcache import config
from semcache.access.doors import Doors
from semcache.access.keys import read_id
from semcache.admin.keys import KeyCalls
from semcache.admin.listener import Admin
from semcache.admit import Admission
from semcache.cli import main
from semcache.config import Limits, Server, TenantSettings
from semcache.errors import ClientError
from tests.fakes import Clock
from tests.identity_provider import AUDIENCE, ISSUER, IdentityProvider

PEPPER = "a pepper of this test that is long enough"
TOKEN = "correct horse"
SHOP = TenantSettings(name="shop", regions=("eu",), models=("gpt-*",))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A configuration with a tenant and keys; nothing runs."""
    written = tmp_path / "semcache.yaml"
    written.write_text(
        f"keys: {{path: {tmp_path}/var/keys.db, pepper: {PEPPER}}}\n"
        f"audit: {{path: {tmp_path}/var/audit.jsonl}}\n"
        f"server: {{region: eu, admin_token: {TOKEN}}}\n"
        "tenants: [{name: shop, regions: [eu], models: [gpt-*], namespaces: [faq]}, {name: bank}]\n"
    )
    return written


def run(*arguments: str, status: int = 0) -> Result:
    result = CliRunner().invoke(main, ["keys", *arguments])
    assert result.exit_code == status, result.output
    assert "Traceback" not in result.output
    return result


def audited(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (file.parent / "var" / "audit.jsonl").read_text().splitlines()]


# From a shell


@pytest.mark.parametrize("command", ["create", "list", "rotate", "revoke", "update"])
def test_every_command_has_help_with_an_example(command: str) -> None:
    text = run(command, "--help").output
    assert f"semcache keys {command}" in text and "Example" in text


def test_only_the_key_goes_to_standard_output(file: Path) -> None:
    made = run("create", "-c", str(file), "--tenant", "shop", "--name", "web")
    assert re.fullmatch(r"sk-sc-[0-9A-Za-z]{59}\n", made.stdout)
    assert "not shown again" in made.stderr and made.stdout.strip() not in made.stderr
    rotated = run("rotate", read_id(made.stdout.strip()), "-c", str(file))
    assert read_id(rotated.stdout.strip()) == read_id(made.stdout.strip())
    assert "The old one works for 86400 s" in rotated.stderr


def test_a_list_tells_all_but_the_keys(file: Path) -> None:
    options = ["--models", "gpt-4o*", "--namespaces", "faq", "--limit", "usd_per_day=2.5", "--expires", "90d"]
    text = run("create", "-c", str(file), "--tenant", "shop", "--name", "[red]web", *options).stdout.strip()
    run("create", "-c", str(file), "--tenant", "bank")
    table = run("list", "-c", str(file)).stdout
    assert read_id(text) in table and "[red]web" in table and "usd_per_day 2.5" in table and "never" in table
    listed = json.loads(run("list", "-c", str(file), "--tenant", "shop", "--json").stdout)
    assert [row["id"] for row in listed] == [read_id(text)]
    assert listed[0]["models"] == ["gpt-4o*"] and listed[0]["limits"] == {"usd_per_day": 2.5}
    assert text[16:] not in table + json.dumps(listed)


def test_a_key_is_changed_and_ended(file: Path) -> None:
    key_id = json.loads(run("create", "-c", str(file), "--tenant", "shop", "--json").stdout)["id"]
    limits = ["--limit", "requests_per_minute=60", "--limit", "tokens_per_day=1000"]
    assert "requests_per_minute 60" in run("update", key_id, "-c", str(file), *limits).stderr
    changed = run("update", key_id, "-c", str(file), "--limit", "tokens_per_day=none", "--expires", "1d", "--json")
    assert json.loads(changed.stdout)["limits"] == {"requests_per_minute": 60}
    assert json.loads(changed.stdout)["expires"] is not None
    assert json.loads(run("update", key_id, "-c", str(file), "--expires", "never", "--json").stdout)["expires"] is None
    assert "is revoked" in run("revoke", key_id, "-c", str(file)).stderr
    assert json.loads(run("list", "-c", str(file), "--json").stdout)[0]["revoked"]
    assert "was revoked" in run("rotate", key_id, "-c", str(file), status=2).output


def test_each_change_is_in_the_audit_log_and_no_key_is(file: Path) -> None:
    made = run("create", "-c", str(file), "--tenant", "shop", "--name", "web").stdout.strip()
    rotated = run("rotate", read_id(made), "-c", str(file)).stdout.strip()
    run("update", read_id(made), "-c", str(file), "--name", "app")
    run("revoke", read_id(made), "-c", str(file))
    lines = audited(file)
    assert [line["event"] for line in lines] == ["key-created", "key-rotated", "key-updated", "key-revoked"]
    assert {line["key"] for line in lines} == {read_id(made)} and "command line" in lines[0]["by"]
    for text in (made, rotated):
        assert text[16:] not in json.dumps(lines)


def test_what_cannot_be_written_down_is_not_done(file: Path) -> None:
    run("create", "-c", str(file), "--tenant", "shop")
    (file.parent / "var" / "audit.jsonl").unlink()
    (file.parent / "var" / "audit.jsonl").mkdir()
    assert "audit.path" in run("create", "-c", str(file), "--tenant", "shop", status=1).output
    assert len(json.loads(run("list", "-c", str(file), "--json").stdout)) == 1


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        (["create", "--tenant", "nobody"], 'no tenant is called "nobody"; there are shop, bank'),
        (["create", "--tenant", "shop", "--regions", "us"], "regions: of us the tenant may use none"),
        (["create", "--tenant", "shop", "--limit", "requests"], "--limit: write NAME=VALUE"),
        (["create", "--tenant", "shop", "--limit", "requests=5"], "--limit: requests: no such limit; there are"),
        (["create", "--tenant", "shop", "--limit", "usd_per_day=-1"], "--limit: usd_per_day: "),
        (["create", "--tenant", "shop", "--limit", "requests_per_day=many"], "--limit: requests_per_day: "),
        (["create", "--tenant", "shop", "--expires", "soon"], "--expires: write a duration"),
        (["create", "--tenant", "shop", "--expires", "0"], "--expires: "),
        (["create", "--tenant", "shop", "--expires", "99999999d"], "--expires: "),
        (["create", "--tenant", "shop", "--name", "x" * 201], "--name: "),
        (["rotate", "nobody"], 'no key has the id "nobody"'),
        (["rotate", "nobody", "--overlap", "x"], "--overlap"),
        (["revoke", "../../etc"], "no key has the id"),
        (["update", "nobody"], "say what to change"),
    ],
)
def test_a_wrong_argument_is_one_clear_line(file: Path, arguments: list[str], complaint: str) -> None:
    text = run(*arguments, "-c", str(file), status=2).output
    assert complaint in text
    assert json.loads(run("list", "-c", str(file), "--json").stdout) == []


def test_without_the_section_the_way_out_is_told(tmp_path: Path) -> None:
    assert "no such section; write `keys: {pepper: ...}`" in run("list", status=2).output


def test_another_pepper_is_told(file: Path) -> None:
    run("create", "-c", str(file), "--tenant", "shop")
    file.write_text(file.read_text().replace(PEPPER, "another pepper that is long"))
    text = run("list", "-c", str(file), status=1).output
    assert "keys.pepper" in text and "another pepper" not in text and len(text.splitlines()) == 1


# Through the admin port of a running server


class Office:
    """An admin listener with keys, and the admission of the same process."""

    def __init__(self, settings: str) -> None:
        self.clock = Clock()
        self.doors = Doors(config.parse(settings, {}), lambda: [SHOP], self.record, self.clock)
        self.admission = Admission([SHOP], self.doors.keyring, self.doors.tokens, self.clock)
        self.events: list[tuple[str, dict[str, object]]] = []
        nothing: Any = SimpleNamespace()
        calls = KeyCalls(self.doors.locksmith, self.doors.keyring).routes()
        token = Server(admin_token=SecretStr(TOKEN))
        self.admin = Admin(token, nothing, nothing, list, dict, nothing, nothing, calls)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Office]:
        await self.doors.start()
        self.url = f"http://127.0.0.1:{await self.admin.start('127.0.0.1', 0)}"
        yield self
        await self.admin.stop()
        await self.doors.stop()

    def record(self, event: str, *, regions: frozenset[str], **facts: object) -> None:
        asyncio.get_running_loop()  # raises on any other thread
        self.events.append((event, facts))

    def open(self, key: str) -> str:
        """The tenant, or what is said to who is none."""
        try:
            return self.admission.identify(CIMultiDict({"Authorization": f"Bearer {key}"})).id
        except ClientError as error:
            return error.message

    async def call(self, method: str, path: str, body: Any = None, token: str = TOKEN) -> tuple[int, Any]:
        data = json.dumps(body).encode() if not isinstance(body, bytes) else body
        async with (
            aiohttp.ClientSession(headers={"Authorization": f"Bearer {token}"}) as session,
            session.request(method, f"{self.url}/semcache/keys{path}", data=data) as response,
        ):
            assert response.headers["Cache-Control"] == "no-store"
            return response.status, await response.json()


@pytest.fixture
async def office(tmp_path: Path) -> AsyncIterator[Office]:
    keys = f"keys: {{path: {tmp_path}/office/keys.db, pepper: {PEPPER}}}\ntenants: [{{name: shop}}]"
    async with Office(keys).running() as made:
        yield made


async def test_what_is_done_through_the_admin_port_counts_at_once(office: Office) -> None:
    status, made = await office.call("POST", "", {"tenant": "shop", "name": "web", "limits": {"usd_per_day": 5}})
    assert status == 200 and office.open(made["key"]) == "shop"
    tenant = office.admission.identify(CIMultiDict({"x-api-key": made["key"]}))
    assert office.admission.limits(tenant) == ((f"key {made['id']}", Limits(usd_per_day=5)),)
    status, rotated = await office.call("POST", f"/{made['id']}/rotate", {"overlap": "0s"})
    assert status == 200 and office.open(rotated["key"]) == "shop" and "was replaced" in office.open(made["key"])
    status, changed = await office.call("POST", f"/{made['id']}/update", {"limits": {"usd_per_day": None}})
    assert status == 200 and changed["limits"] == {}
    status, ended = await office.call("POST", f"/{made['id']}/revoke")
    assert status == 200 and ended["revoked"] and "was revoked" in office.open(rotated["key"])
    assert [event for event, _ in office.events] == ["key-created", "key-rotated", "key-updated", "key-revoked"]


async def test_the_list_shows_no_key(office: Office) -> None:
    _, made = await office.call("POST", "", {"tenant": "shop"})
    status, answer = await office.call("GET", "")
    assert status == 200 and [row["id"] for row in answer["keys"]] == [made["id"]]
    assert made["key"][16:] not in json.dumps(answer)
    assert (await office.call("GET", "?tenant=bank"))[1] == {"keys": []}


@pytest.mark.parametrize("path", ["", "/abcdefghij/rotate", "/abcdefghij/revoke", "/abcdefghij/update"])
async def test_without_the_token_nothing_happens(office: Office, path: str) -> None:
    assert (await office.call("POST", path, {"tenant": "shop"}, token="wrong"))[0] == 401
    assert (await office.call("GET", "", token="wrong"))[0] == 401
    assert office.events == []


@pytest.mark.parametrize(
    "path, body, status, complaint",
    [
        ("", {"tenant": "nobody"}, 400, 'no tenant is called "nobody"'),
        ("", {}, 400, "tenant: "),
        ("", {"tenant": "shop", "key": "sk-sc-mine"}, 400, "key: no such field; there are tenant, name"),
        ("", {"tenant": "shop", "limits": {"usd_per_day": 0}}, 400, "limits.usd_per_day: "),
        ("", b"{", 400, ""),
        ("", b"[" * 5000, 400, ""),
        ("", [], 400, ""),
        ("/nobody/rotate", {}, 404, "no key has the id"),
        ("/nobody/revoke", {}, 404, "no key has the id"),
        ("/nobody/update", {"name": "x"}, 404, "no key has the id"),
        ("/nobody/rotate", {"overlap": "soon"}, 400, "overlap: write a duration"),
    ],
)
async def test_a_call_that_says_nothing_sensible_is_told_so(
    office: Office, path: str, body: Any, status: int, complaint: str
) -> None:
    answered, answer = await office.call("POST", path, body)
    assert answered == status and complaint in answer["error"]["message"]
    assert office.events == []


async def test_without_keys_in_the_configuration_there_are_none() -> None:
    async with Office("").running() as office:
        assert (await office.call("GET", ""))[0] == 404
        assert (await office.call("POST", "", {"tenant": "shop"}))[0] == 404


async def test_keys_and_tokens_come_in_by_the_same_configuration(tmp_path: Path) -> None:
    async with IdentityProvider(Clock()).running() as provider:
        settings = (
            f"keys: {{path: {tmp_path}/office/keys.db, pepper: {PEPPER}}}\n"
            f"jwt: {{issuer: '{ISSUER}', audience: {AUDIENCE}, jwks: '{provider.url}'}}\n"
            "tenants: [{name: shop}]"
        )
        async with Office(settings).running() as office:
            _, made = await office.call("POST", "", {"tenant": "shop"})
            assert office.open(made["key"]) == office.open(provider.token()) == "shop"
            assert office.open(provider.token(tenant="bank")).endswith("is not configured here")
            assert office.doors.stats()["keys"] == office.doors.stats()["public_keys"] == 1


async def test_a_file_that_is_gone_is_a_503_with_its_name(office: Office, tmp_path: Path) -> None:
    file = tmp_path / "office" / "keys.db"
    file.rename(file.with_suffix(".aside"))
    status, answer = await office.call("POST", "", {"tenant": "shop"})
    assert status == 503 and "keys.db" in answer["error"]["message"] and office.events == []


async def test_the_commands_work_through_a_running_server(office: Office, file: Path) -> None:
    at = ["-c", str(file), "--admin", office.url]
    made = (await asyncio.to_thread(run, "create", *at, "--tenant", "shop", "--limit", "usd_per_day=1")).stdout.strip()
    assert office.open(made) == "shop"
    listed = (await asyncio.to_thread(run, "list", *at, "--json", "--tenant", "shop")).stdout
    assert json.loads(listed)[0]["limits"] == {"usd_per_day": 1.0}
    new = (await asyncio.to_thread(run, "rotate", read_id(made), *at, "--overlap", "0")).stdout.strip()
    assert office.open(new) == "shop" and "was replaced" in office.open(made)
    await asyncio.to_thread(run, "update", read_id(made), *at, "--limit", "usd_per_day=none", "--expires", "never")
    await asyncio.to_thread(run, "revoke", read_id(made), *at)
    assert "was revoked" in office.open(new)
    gone = await asyncio.to_thread(run, "revoke", "nobody", *at, status=1)
    assert "no key has the id" in gone.output
    nobody = await asyncio.to_thread(run, "list", "-c", str(file), "--admin", "http://127.0.0.1:1", status=1)
    assert "no server listens" in nobody.output
