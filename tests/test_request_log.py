"""The request log: what a line holds, and what happens when nobody takes the lines."""

from __future__ import annotations

import json
import os
import stat
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semcache.config import Server
from semcache.errors import StartError
from semcache.request_log import QUEUE_BYTES, NoLog, RequestLog, open_log, render_line
from semcache.types import Outcome, Reason, Tier, Usage, Verdict

NOW = datetime(2026, 3, 1, 12, 30, 15, 250_000, tzinfo=UTC)


def an_outcome(number: int = 1, **fields: object) -> Outcome:
    return Outcome(f"request-{number}", 0.0, **fields)  # type: ignore[arg-type]


def lines_of(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def test_a_line_tells_the_outcome() -> None:
    outcome = an_outcome(
        verdict=Verdict.HIT,
        tier=Tier.SEMANTIC,
        similarity=0.97,
        entry_id="e1",
        status=200,
        tenant="shop",
        model="gpt-4o-mini",
        endpoint="chat/completions",
        phases_ms={"embed": 1.5},
        usage=Usage(11, 22),
    )
    line = json.loads(render_line(outcome, NOW))
    assert line["time"] == "2026-03-01T12:30:15.250000Z"
    assert (line["verdict"], line["tier"], line["similarity"], line["entry"]) == ("hit", "semantic", 0.97, "e1")
    assert (line["tenant"], line["model"], line["endpoint"]) == ("shop", "gpt-4o-mini", "chat/completions")
    assert (line["prompt_tokens"], line["completion_tokens"], line["phases_ms"]) == (11, 22, {"embed": 1.5})
    assert line["reason"] is None and "question" not in line


@given(model=st.text(), question=st.text(), namespace=st.text())
def test_no_text_of_a_caller_breaks_a_line_or_reaches_a_terminal(model: str, question: str, namespace: str) -> None:
    line = render_line(an_outcome(model=model, namespace=namespace), NOW, question)
    assert line.endswith(b"\n")
    assert all(0x20 <= byte < 0x7F for byte in line[:-1])
    assert json.loads(line)["question"] == question[:4000]


@pytest.mark.parametrize("hostile", ["\x1b[2J", "a\nb", "\r", "\x9b31m", "\u202e", "\u2028", "\x7f", "\ud800", "\x00"])
def test_hostile_characters_are_escaped_and_kept(hostile: str) -> None:
    line = render_line(an_outcome(model=hostile), NOW)
    assert all(0x20 <= byte < 0x7F for byte in line[:-1])
    assert json.loads(line)["model"] == hostile


def test_what_guardrails_said_is_in_the_line_where_they_said_anything() -> None:
    assert json.loads(render_line(an_outcome(flags=("secrets/jwt",)), NOW))["flags"] == ["secrets/jwt"]
    assert "flags" not in json.loads(render_line(an_outcome(), NOW))


def test_numbers_past_64_bits_do_not_lose_the_line() -> None:
    assert json.loads(render_line(an_outcome(usage=Usage(10**30, 1)), NOW))["prompt_tokens"] == 10**30


def test_long_names_are_cut() -> None:
    assert len(render_line(an_outcome(model="m" * 10**6, namespace="n" * 10**6), NOW)) < 2000


def test_lines_arrive_in_order_and_whole(tmp_path: Path) -> None:
    log = RequestLog(str(tmp_path / "requests.log"))
    log.start()
    for number in range(500):
        log.write(an_outcome(number))
    log.stop()
    assert [line["request_id"] for line in lines_of(tmp_path / "requests.log")] == [f"request-{n}" for n in range(500)]
    stats = log.stats()
    assert stats.pop("lines_written") == 500
    assert set(stats.values()) == {0}


def test_questions_are_logged_only_where_the_operator_asked(tmp_path: Path) -> None:
    for asked, name in ((False, "without"), (True, "with")):
        log = RequestLog(str(tmp_path / name), log_prompts=asked)
        log.start()
        log.write(an_outcome(), "where is my parcel?")
        log.stop()
    assert b"parcel" not in (tmp_path / "without").read_bytes()
    assert lines_of(tmp_path / "with")[0]["question"] == "where is my parcel?"


def test_a_pipe_that_nobody_reads_costs_lines_and_no_wait() -> None:
    reading, writing = os.pipe()
    log = RequestLog(writing)
    log.start()
    line_bytes = len(render_line(an_outcome(), NOW))
    too_many = 2 * QUEUE_BYTES // line_bytes
    for _ in range(too_many):
        log.write(an_outcome())  # would hang here for good
    stats = log.stats()
    assert stats["lines_dropped"] > 0
    assert stats["queue_bytes"] <= QUEUE_BYTES + line_bytes
    os.close(reading)  # the writer's thread gets EPIPE, and counts
    log.stop()
    os.close(writing)
    assert log.lost > 0 and log.written == 0


def test_lines_are_written_again_once_the_folder_is_there(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "requests.log"
    log = RequestLog(str(path))
    log.write(an_outcome(1))
    log._write_batch()
    assert log.lost == 1
    path.parent.mkdir()
    log.write(an_outcome(2))
    log.start()
    log.stop()
    assert [line["request_id"] for line in lines_of(path)] == ["request-2"]


def test_a_rotated_file_is_left_and_a_new_one_begun(tmp_path: Path) -> None:
    path = tmp_path / "requests.log"
    log = RequestLog(str(path))
    log.write(an_outcome(1))
    log._write_batch()
    path.rename(tmp_path / "requests.log.1")
    log.write(an_outcome(2))
    log.start()
    log.stop()
    assert [line["request_id"] for line in lines_of(tmp_path / "requests.log.1")] == ["request-1"]
    assert [line["request_id"] for line in lines_of(path)] == ["request-2"]


def test_workers_that_share_a_pipe_do_not_mix_their_lines() -> None:
    reading, writing = os.pipe()
    logs = [RequestLog(writing, is_shared=True) for _ in range(2)]
    for log in logs:
        log.start()
    read: list[bytes] = []

    def drain() -> None:
        while piece := os.read(reading, 65536):
            read.append(piece)

    reader = threading.Thread(target=drain)
    reader.start()
    for number in range(1000):
        for log in logs:
            log.write(an_outcome(number, reason=Reason.NO_ENTRY))
    for log in logs:
        log.stop()
    os.close(writing)
    reader.join(5)
    os.close(reading)
    lines = [json.loads(line) for line in b"".join(read).splitlines()]
    assert len(lines) == 2000


def test_the_settings_name_the_sink(tmp_path: Path) -> None:
    log = open_log(Server(request_log=str(tmp_path / "requests.log"), log_prompts=True, workers=2))
    log.start()
    log.write(an_outcome(), "where is my parcel?")
    log.stop()
    assert lines_of(tmp_path / "requests.log")[0]["question"] == "where is my parcel?"


def test_a_folder_that_is_not_there_is_made_at_the_start_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "made" / "for us" / "requests.log"
    log = open_log(Server(request_log=str(path)))
    log.start()
    log.write(an_outcome(7))
    log.stop()
    assert [line["request_id"] for line in lines_of(path)] == ["request-7"]
    assert [stat.S_IMODE(folder.stat().st_mode) for folder in path.parents[:2]] == [0o700, 0o700]


@pytest.mark.parametrize("where", ["file/requests.log", "."])
def test_a_path_that_can_never_be_written_ends_the_start_with_one_line(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").touch()
    log = open_log(Server(request_log=str(tmp_path / where)))
    with pytest.raises(StartError, match=r"^server\.request_log: .*") as refused:
        log.start()
    assert "\n" not in refused.value.message
    log.stop()


def test_a_log_that_is_switched_off_takes_everything_and_keeps_nothing() -> None:
    log = open_log(Server(request_log="off"))
    assert isinstance(log, NoLog)
    log.start()
    log.write(an_outcome())
    log.stop()
    assert not any(log.stats().values())
