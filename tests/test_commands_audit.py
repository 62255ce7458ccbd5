"""`semcache audit`: what it prints, and with which exit status."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from semcache.audit.file import AuditFile
from semcache.audit.record import Event, render
from semcache.commands.audit import audit

NOW = datetime.now(UTC)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(audit, arguments)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "audit.jsonl"
    file = AuditFile(path, 10**9, None, lambda: NOW)
    days = [(3, Event.START, {}), (2, Event.HIT, {"tenant": "shop", "key": "k1"}), (0, Event.HIT, {"tenant": "bank"})]
    file.append([render(event, NOW - timedelta(days=ago), facts) for ago, event, facts in days])
    file.close()
    return path


def test_a_chain_that_holds_ends_with_status_0_and_its_head(log: Path) -> None:
    result = run("verify", str(log))
    head = json.loads(log.read_bytes().splitlines()[-1])["hash"]
    assert result.exit_code == 0 and f"head    {head}" in result.output and "number 1 to 3" in result.output
    assert run("verify", str(log), "--head", head).exit_code == 0
    assert run("verify", str(log), "--head", "0" * 64).exit_code == 1


def test_a_break_is_named_with_its_file_and_line_and_ends_with_status_1(log: Path) -> None:
    log.write_bytes(log.read_bytes().replace(b"shop", b"ship"))
    result = run("verify", str(log))
    assert result.exit_code == 1 and f"BROKEN  {log}, line 2: its hash is not that of its text" in result.output
    assert json.loads(run("verify", str(log), "--json").output)["broken"]["line"] == 2


def test_the_configuration_says_where_the_log_is(log: Path) -> None:
    settings = log.with_name("semcache.yaml")
    settings.write_text(f"audit: {{path: {log}}}\n")
    assert run("verify", "-c", str(settings)).exit_code == 0
    settings.write_text("{}\n")
    result = run("verify", "-c", str(settings))
    assert result.exit_code == 2 and "no audit: section" in result.output


def test_wrong_arguments_end_with_status_2_and_a_missing_file_with_1(log: Path) -> None:
    assert run("verify", str(log), "--head", "abc").exit_code == 2
    assert run("show", str(log), "--since", "yesterday").exit_code == 2
    assert run("show", str(log), "--since", "99999999999d").exit_code == 2
    assert run("verify", str(log) + "x").exit_code == 1


def test_lines_are_chosen_by_event_time_tenant_and_key(log: Path) -> None:
    def numbers(*arguments: str) -> list[int]:
        output = run("show", str(log), "--json", *arguments).output
        return [json.loads(line)["seq"] for line in output.splitlines()]

    assert numbers() == [1, 2, 3]
    assert numbers("--event", "hit") == [2, 3]
    assert numbers("--event", "hit", "--since", "1d") == [3]
    assert numbers("--since", (NOW - timedelta(days=2, hours=1)).isoformat()) == [2, 3]
    assert numbers("--tenant", "shop") == [2] == numbers("--key", "k1")


def test_what_a_caller_wrote_reaches_no_terminal(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    file = AuditFile(path, 10**9, None, lambda: NOW)
    file.append([render(Event.HIT, NOW, {"tenant": "\x1b[2J", "key": "a b"})])
    file.close()
    output = run("show", str(path)).output
    assert "\x1b" not in output and 'key="a b"' in output
