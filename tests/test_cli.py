"""The command line as a user meets it: what it says, and how it exits."""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import trustme
from click.testing import CliRunner

from semcache.cli import main
from tests.harness import running_proxy

COMMANDS = ["serve", "check", "demo", "simulate", "purge", "export", "import", "explain", "shadow", "model prepare"]


def semcache(*arguments: str, status: int = 0, typed: str = "") -> str:
    """Run in this process; return everything printed."""
    result = CliRunner().invoke(main, arguments, input=typed)
    assert result.exit_code == status, result.output
    assert "Traceback" not in result.output
    return result.output


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str) -> None:
    text = semcache(*command.split(), "--help")
    assert "Example" in text
    assert f"semcache {command}" in text


def test_check_says_where_requests_go(tmp_path: Path) -> None:
    file = tmp_path / "semcache.yaml"
    file.write_text("pools: {local: {backends: [{url: 'http://127.0.0.1:8000/v1'}]}}\nmatch: {threshold: 0.93}")
    text = semcache("check", str(file))
    assert "local" in text
    assert "0.93" in text
    assert "ok" in text


def test_check_says_what_decides_and_what_one_might_not_expect(tmp_path: Path) -> None:
    file = tmp_path / "semcache.yaml"
    file.write_text("match: {max_error: 0.02, explore: 0}")
    text = semcache("check", str(file))
    assert "serve, max_error 0.02, 10 guards" in text and "threshold" not in text
    assert "note: match.explore: 0" in text and "ok" in text


def test_check_looks_for_the_reranker_that_a_start_would_need(tmp_path: Path) -> None:
    file = tmp_path / "semcache.yaml"
    file.write_text("match: {reranker: nobody/has-made-this}")
    text = semcache("check", str(file), status=1)
    assert "semcache model prepare --reranker nobody/has-made-this" in text and "ok" not in text.split()


def test_check_reads_the_weights_that_a_start_would_need(tmp_path: Path) -> None:
    file = tmp_path / "semcache.yaml"
    file.write_text(f"match: {{judge: 0.9, judge_weights: {tmp_path}/none.npz}}")
    text = semcache("check", str(file), status=1)
    assert "match.judge_weights" in text and "none.npz" in text and "ok" not in text.split()


def test_check_reads_the_certificate_that_a_start_would_need(tmp_path: Path) -> None:
    file = tmp_path / "semcache.yaml"
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    file.write_text(f"server: {{tls: {{certificate: {certificate}, key: {key}}}}}")
    text = semcache("check", str(file), status=1)
    assert f'server.tls.certificate: "{certificate}" cannot be read: No such file' in text
    assert "ok" not in text
    issued = trustme.CA().issue_cert("localhost")
    issued.cert_chain_pems[0].write_to_path(certificate)
    issued.private_key_pem.write_to_path(key)
    assert "ok" in semcache("check", str(file))


def test_a_wrong_setting_is_exit_status_2_and_one_line(tmp_path: Path) -> None:
    file = tmp_path / "semcache.yaml"
    file.write_text("match: {threshold: 3}")
    for command in (["check", str(file)], ["serve", "-c", str(file)], ["purge", "-c", str(file), "--all"]):
        text = semcache(*command, status=2)
        assert len(text.splitlines()) == 1
        assert "match.threshold: 3" in text


def test_a_purge_must_say_what(tmp_path: Path) -> None:
    assert "--all" in semcache("purge", status=2)
    assert "--all" in semcache("purge", "--all", "--model", "m", status=2)


@pytest.fixture
async def filled(tmp_path: Path) -> Path:
    """A configuration whose store holds two answers; nothing runs."""
    async with running_proxy(tmp_path) as proxy:
        await proxy.ask("Where is the parcel?", user="ann")
        await proxy.ask("How do I change my password?", user="bob")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    file = tmp_path / "semcache.yaml"
    file.write_text(f"cache: {{store: 'sqlite:{tmp_path}/cache.db'}}\nserver: {{admin_port: {port}}}")
    return file


def test_export_and_import_carry_everything(filled: Path) -> None:
    backup = filled.parent / "backup.jsonl"
    assert "2 entries exported" in semcache("export", str(backup), "-c", str(filled))
    lines = [json.loads(line) for line in backup.read_text().splitlines()]
    assert {line.get("question") for line in lines[1:]} == {"Where is the parcel?", "How do I change my password?"}
    assert all(line["vector"] for line in lines[1:])
    assert "2 entries purged" in semcache("purge", "--all", "--yes", "-c", str(filled))
    assert "2 entries imported" in semcache("import", str(backup), "-c", str(filled))
    assert "2 entries would be purged" in semcache("purge", "--all", "--dry-run", "-c", str(filled))


def test_a_purge_by_user_leaves_the_others(filled: Path) -> None:
    assert "1 entries purged" in semcache("purge", "--user", "ann", "--yes", "-c", str(filled))
    assert "1 entries would be purged" in semcache("purge", "--all", "--dry-run", "-c", str(filled))


def test_an_erased_question_is_in_no_file(filled: Path) -> None:
    folder = filled.parent
    assert any(b"parcel" in path.read_bytes() for path in folder.rglob("cache.db*") if path.is_file())
    semcache("purge", "--text", "Where is the parcel?", "--erase", "--yes", "-c", str(filled))
    assert not any(b"parcel" in path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert not list(folder.rglob("*.index/*")), "the saved index holds the vector"


def test_a_purge_that_is_not_confirmed_changes_nothing(filled: Path) -> None:
    assert "nothing was purged" in semcache("purge", "--all", "-c", str(filled), status=1, typed="n\n")
    assert "2 entries would be purged" in semcache("purge", "--all", "--dry-run", "-c", str(filled))


def test_a_bad_import_names_the_line(filled: Path) -> None:
    bad = filled.parent / "bad.jsonl"
    bad.write_text('{"semcache_export":1}\n{"id": 5}\n')
    assert "line 2" in semcache("import", str(bad), "-c", str(filled), status=2)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_served_process_starts_says_where_and_ends_on_sigterm(
    tmp_path: Path, prepared_model: object, workers: int
) -> None:
    arguments = ["--port", "0", "--admin-port", "0", "--store", f"sqlite:{tmp_path}/c.db", "--workers", str(workers)]
    if workers > 1:  # they must share one port, so it cannot be any free one
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            arguments[1] = str(free.getsockname()[1])
    process = subprocess.Popen(
        [sys.executable, "-m", "semcache", "serve", *arguments], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL,
        text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    assert process.stderr is not None
    try:
        for _ in range(workers):
            while "listening on http://127.0.0.1:" not in (line := process.stderr.readline()):
                assert line, "it ended before it listened"
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        assert "Traceback" not in process.stderr.read()
    finally:
        process.kill()
        process.stderr.close()


def test_a_reload_that_is_asked_for_during_the_start_does_not_end_it(tmp_path: Path, prepared_model: object) -> None:
    file = tmp_path / "config.yaml"
    os.mkfifo(file)
    process = subprocess.Popen(
        [sys.executable, "-m", "semcache", "serve", "-c", str(file)], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    text = f"{{server: {{port: 0, admin_port: 0}}, cache: {{store: 'sqlite:{tmp_path}/c.db'}}}}"
    try:
        with file.open("w") as asked:  # there is a reader now
            process.send_signal(signal.SIGHUP)
            (tmp_path / "whole.yaml").write_text(text)
            (tmp_path / "whole.yaml").replace(file)  # it is read once more
            asked.write(text)
        while "listening on http://127.0.0.1:" not in (line := process.stderr.readline()):
            assert line, "it ended before it listened"
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.stderr.close()


def test_a_taken_port_is_one_line_and_exit_status_1(tmp_path: Path, prepared_model: object) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        text = semcache(
            "serve", "--port", str(port), "--admin-port", "0", "--store", f"sqlite:{tmp_path}/c.db", status=1
        )
    assert "the port is taken" in text
    assert len([line for line in text.splitlines() if line.startswith("semcache:")]) == 1


def test_a_store_that_cannot_be_opened_is_one_line_and_exit_status_1(tmp_path: Path, prepared_model: object) -> None:
    text = semcache("serve", "--port", "0", "--admin-port", "0", "--store", f"sqlite:{tmp_path}", status=1)
    assert str(tmp_path) in text
    text = semcache("serve", "--port", "0", "--admin-port", "0", "--store", "sqlite:/proc/nowhere/x.db", status=1)
    assert "/proc/nowhere" in text
    assert "redis" in semcache("serve", "--store", "redis://localhost", status=2)


def test_a_start_that_fails_leaves_nothing_running(tmp_path: Path, prepared_model: object) -> None:
    before = set(threading.enumerate())
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        for option in ("--port", "--admin-port"):
            ports = {"--port": "0", "--admin-port": "0", option: str(taken.getsockname()[1])}
            semcache("serve", *itertools.chain(*ports.items()), "--store", f"sqlite:{tmp_path}/c.db", status=1)
    left = [thread.name for thread in set(threading.enumerate()) - before]
    assert [name for name in left if name.startswith("semcache")] == []
