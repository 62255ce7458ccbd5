"""The audit log: what its lines hold, that they hold each other, and that any change of them shows."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semcache.audit.chain import BEGINNING, links, read_head, seal
from semcache.audit.file import AuditFile, archives
from semcache.audit.log import QUEUE_BYTES, AuditLog, NoAudit, open_audit, record_now
from semcache.audit.outcomes import events_of
from semcache.audit.record import Event, render
from semcache.audit.verify import Report, read_records, verify
from semcache.config import Audit
from semcache.errors import SemcacheError, StartError
from semcache.types import Outcome, Tier, Verdict

NOW = datetime(2026, 3, 1, 12, 30, 15, 250_000, tzinfo=UTC)


def now() -> datetime:
    return NOW


def a_record(number: int, event: Event = Event.HIT) -> bytes:
    return render(event, NOW, {"request_id": f"request-{number}", "entry": "e1", "similarity": 0.97})


def a_file(path: Path, rotate: int = 10**9, keep: int | None = None) -> AuditFile:
    return AuditFile(path, rotate, keep, now)


def written(path: Path, lines: int, rotate: int = 10**9, keep: int | None = None) -> Path:
    file = a_file(path, rotate, keep)
    for number in range(lines):
        assert file.append([a_record(number)]).written == 1
    file.close()
    return path


def lines_of(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for file in [*archives(path), path] for line in file.read_bytes().splitlines()]


def of_requests(path: Path) -> list[object]:
    return [record["request_id"] for record in read_records(path) if "request_id" in record]


def holds(path: Path, head: str | None = None) -> Report:
    report = verify(path, head)
    assert report.broken is None, report.broken
    return report


# What a line holds


def test_a_line_tells_its_number_its_time_its_facts_and_the_line_before() -> None:
    first, head = seal(BEGINNING, a_record(1))
    second, _ = seal(head, a_record(2))
    line = json.loads(second)
    assert (line["seq"], line["time"], line["event"]) == (2, "2026-03-01T12:30:15.250000Z", "hit")
    assert (line["request_id"], line["similarity"]) == ("request-2", 0.97)
    assert line["prev"] == json.loads(first)["hash"] == head.hash
    assert json.loads(first)["prev"] == "0" * 64


@given(st.text(), st.text())
def test_no_text_breaks_a_line_or_reaches_a_terminal(tenant: str, key: str) -> None:
    line, head = seal(BEGINNING, render(Event.HIT, NOW, {"tenant": tenant, "key": key}))
    assert line.endswith(b"\n") and all(0x20 <= byte < 0x7F for byte in line[:-1])
    assert json.loads(line)["tenant"] == tenant[:400]
    assert read_head(line[:-1]) == head and links(line[:-1], BEGINNING)


def test_a_fact_cannot_take_the_place_of_what_ties_lines() -> None:
    with pytest.raises(ValueError):
        render(Event.HIT, NOW, {"prev": "0" * 64})


# The chain


def test_the_chain_goes_on_over_restarts_and_files(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    for _ in range(5):
        written(path, 20, rotate=3000)
    report = holds(path)
    assert report.lines == 100 and len(report.files) > 5 and report.begins == 1
    assert [line["seq"] for line in lines_of(path)] == list(range(1, 101))


def test_a_full_file_keeps_its_name_for_good(tmp_path: Path) -> None:
    path = written(tmp_path / "audit.jsonl", 30, rotate=3000)
    before = {file: file.read_bytes() for file in archives(path)}
    written(path, 30, rotate=3000)
    assert all(file.read_bytes() == content for file, content in before.items())
    assert archives(path)[0].name == "audit.jsonl.000000000001"


def test_old_files_go_with_a_word_and_not_without(tmp_path: Path) -> None:
    path = written(tmp_path / "audit.jsonl", 100, rotate=3000, keep=3)
    report = holds(path)
    assert len(report.files) == 3 and report.removed_through == report.begins - 1 > 0
    archives(path)[0].unlink()
    broken = verify(path).broken
    assert broken is not None and "no line says that they were removed" in broken.why


def test_keeping_one_file_keeps_the_chain_too(tmp_path: Path) -> None:
    path = written(tmp_path / "audit.jsonl", 50, rotate=3000, keep=1)
    assert archives(path) == [] and holds(path).head.seq > 50


def test_a_head_kept_elsewhere_shows_an_end_that_was_cut_off(tmp_path: Path) -> None:
    path = written(tmp_path / "audit.jsonl", 10)
    head = holds(path).head
    written(path, 5)
    assert holds(path, head.hash).lines == 15  # a line in the middle is one that the chain goes through
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:9]))
    assert holds(path).lines == 9  # no chain can show this by itself
    broken = verify(path, head.hash).broken
    assert broken is not None and "--head" in broken.why


def test_a_chain_made_anew_from_a_line_on_is_shown_by_a_head_kept_elsewhere(tmp_path: Path) -> None:
    path = written(tmp_path / "audit.jsonl", 10)
    head = holds(path).head
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:4]))
    file = a_file(path)
    file.append([a_record(100 + number) for number in range(6)])
    file.close()
    assert holds(path).lines == 10
    assert verify(path, head.hash).broken is not None


@pytest.fixture(scope="module")
def three_files(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, bytes]]:
    path = written(tmp_path_factory.mktemp("audit") / "audit.jsonl", 12, rotate=1300)
    files = [(file.name, file.read_bytes()) for file in [*archives(path), path]]
    assert len(files) >= 3
    return files


def play(files: list[tuple[str, bytes]]) -> Report:
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files:
            Path(folder, name).write_bytes(content)
        return verify(Path(folder, "audit.jsonl"))


@settings(max_examples=1000, deadline=None)
@given(st.data())
def test_any_changed_byte_is_found(three_files: list[tuple[str, bytes]], data: st.DataObject) -> None:
    which = data.draw(st.integers(0, len(three_files) - 1))
    name, content = three_files[which]
    place = data.draw(st.integers(0, len(content) - 1))
    value = data.draw(st.integers(0, 255).filter(lambda value: value != content[place]))
    changed = content[:place] + bytes([value]) + content[place + 1 :]
    report = play([*three_files[:which], (name, changed), *three_files[which + 1 :]])
    assert report.broken is not None
    assert report.broken.file.name == name or report.broken.file.name == three_files[which + 1][0]


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_removed_swapped_copied_or_inserted_line_is_found(
    three_files: list[tuple[str, bytes]], data: st.DataObject
) -> None:
    lines = [(name, line) for name, content in three_files for line in content.splitlines(keepends=True)]
    at = data.draw(st.integers(0, len(lines) - 2))  # the last line's absence only a head kept elsewhere can show
    other = data.draw(st.integers(0, len(lines) - 1).filter(lambda place: place != at))
    forged, _ = seal(read_head(lines[at][1][:-1]) or BEGINNING, a_record(77))
    match data.draw(st.sampled_from(["remove", "swap", "copy", "insert", "junk"])):
        case "remove":
            changed = lines[:at] + lines[at + 1 :]
        case "swap":
            changed = list(lines)
            changed[at], changed[other] = (lines[at][0], lines[other][1]), (lines[other][0], lines[at][1])
        case "copy":
            changed = [*lines[:other], (lines[other][0], lines[at][1]), *lines[other:]]
        case "insert":  # it follows the line before it as it should, and so the next one does not
            changed = [*lines[: at + 1], (lines[at][0], forged), *lines[at + 1 :]]
        case _:
            changed = [*lines[:at], (lines[at][0], b'{"seq":3,"time":"2026"}\n'), *lines[at:]]
    names = [name for name, _ in three_files]
    files = [(name, b"".join(line for owner, line in changed if owner == name)) for name in names]
    assert play(files).broken is not None


def test_a_missing_file_in_the_middle_is_found(three_files: list[tuple[str, bytes]]) -> None:
    broken = play([three_files[0], *three_files[2:]]).broken
    assert broken is not None and "missing" in broken.why


# Crashes


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_line_cut_anywhere_is_closed_told_and_no_break(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = written(Path(folder, "audit.jsonl"), 3)
        content = path.read_bytes()
        line = len(content.splitlines(keepends=True)[-1])
        cut = data.draw(st.integers(1, line - 1))
        path.write_bytes(content[:-cut])
        before = holds(path)
        assert before.is_cut == (cut > 1)
        written(path, 2)
        report = holds(path)
        assert report.torn == (cut > 1) and not report.is_cut
        assert report.lines == 5  # the two and the line about the cut one; or the three, whose last only lacked its end


def test_what_was_cut_cannot_be_changed_afterwards(tmp_path: Path) -> None:
    path = written(tmp_path / "audit.jsonl", 3)
    path.write_bytes(path.read_bytes()[:-40])
    written(path, 2)
    lines = path.read_bytes().splitlines(keepends=True)
    assert holds(path).torn == 1
    path.write_bytes(b"".join([*lines[:2], lines[2].replace(b"0.97", b"0.98"), *lines[3:]]))
    broken = verify(path).broken
    assert broken is not None and broken.line == 3


WRITER = """
import sys
from datetime import UTC, datetime
from pathlib import Path
from semcache.audit.file import AuditFile
from semcache.audit.record import Event, render
path, name, count, rotate = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
now = lambda: datetime.now(UTC)
file = AuditFile(path, rotate, None, now)
print("ready", flush=True)
for number in range(count):
    records = [render(Event.HIT, now(), {"request_id": f"{name}-{number}"})]
    while not file.append(records).written:
        pass
    print(number, flush=True)
"""


def writer(path: Path, name: str, count: int, rotate: int = 10**9) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", WRITER, str(path), name, str(count), str(rotate)]
    return subprocess.Popen(command, stdout=subprocess.PIPE)


def test_two_processes_keep_one_chain_over_several_files(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    writers = [writer(path, name, 150, rotate=10_000) for name in ("a", "b")]
    for process in writers:
        process.communicate(timeout=50)
        assert process.returncode == 0
    report = holds(path)
    assert report.lines == 300 and len(report.files) > 3
    order = [str(request) for request in of_requests(path)]
    for name in "ab":
        assert [request for request in order if request.startswith(name)] == [f"{name}-{n}" for n in range(150)]


def test_what_was_acknowledged_is_there_after_every_kill_9(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    acknowledged: list[str] = []
    for turn in range(6):
        process = writer(path, f"turn{turn}", 10**6, rotate=5_000)
        assert process.stdout is not None
        for _ in range(30 + 7 * turn):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        told = process.stdout.read().decode().split()  # what it managed to say after the last line we waited for
        process.wait()
        process.stdout.close()
        acknowledged += [f"turn{turn}-{number}" for number in range(30 + 7 * turn - 1 + len(told))]
    written(path, 1)
    report = holds(path)
    assert report.broken is None and not report.is_cut
    assert set(acknowledged) <= set(of_requests(path))


# What of a request belongs in it


def an_outcome(**fields: object) -> Outcome:
    return Outcome("request-1", 0.0, tenant="shop", key="k1", route="faq", **fields)  # type: ignore[arg-type]


def test_a_semantic_hit_is_written_down_with_its_decision_and_an_exact_one_is_not() -> None:
    semantic = an_outcome(verdict=Verdict.HIT, tier=Tier.SEMANTIC, similarity=0.97, entry_id="e1", model="m")
    ((event, facts),) = events_of(semantic, None)
    assert event is Event.HIT
    assert (facts["request_id"], facts["tenant"], facts["key"], facts["route"]) == ("request-1", "shop", "k1", "faq")
    assert (facts["entry"], facts["similarity"], facts["verdict"]) == ("e1", 0.97, "hit")
    assert list(events_of(an_outcome(verdict=Verdict.HIT, tier=Tier.EXACT, similarity=1.0), None)) == []
    assert list(events_of(an_outcome(verdict=Verdict.MISS, similarity=0.8), "what?")) == []


def test_refusals_flags_and_feedback_are_events_too() -> None:
    refused = an_outcome(verdict=Verdict.REFUSED, code="region_not_allowed", status=403)
    assert [event for event, _ in events_of(refused, None)] == [Event.RESIDENCY_REFUSAL]
    flagged = an_outcome(verdict=Verdict.MISS, flags=("secrets/jwt",))
    ((event, facts),) = events_of(flagged, "the question")
    assert event is Event.GUARDRAIL and facts["flags"] == ("secrets/jwt",) and facts["refused"] is None
    said = {"entry": "e1", "request": "request-0", "verdict": "wrong", "effect": "quarantined"}
    ((event, facts),) = events_of(an_outcome(feedback=said), None)
    assert event is Event.FEEDBACK and (facts["about"], facts["effect"]) == ("request-0", "quarantined")


def test_outcomes_of_a_tenant_of_another_region_leave_a_count_alone(tmp_path: Path) -> None:
    log = a_log(tmp_path / "audit.jsonl", "us")
    log.start()
    hit = an_outcome(verdict=Verdict.HIT, tier=Tier.SEMANTIC, entry_id="entry-1", regions=frozenset({"eu"}))
    log.observe(hit, "where is my parcel?")
    log.stop()
    text = (tmp_path / "audit.jsonl").read_text()
    assert '"withheld":1' in text and not any(word in text for word in ("shop", "entry-1", "parcel", "request-1"))


# The log, its thread and its troubles


def a_log(path: Path, region: str | None = "eu", **fields: object) -> AuditLog:
    return AuditLog(Audit.model_validate({"path": str(path), **fields}), region, now)


def test_records_arrive_in_order(tmp_path: Path) -> None:
    log = a_log(tmp_path / "logs" / "audit.jsonl")
    log.start()
    for number in range(500):
        log.record(Event.HIT, request_id=f"request-{number}", key=None)
    log.stop()
    assert of_requests(tmp_path / "logs" / "audit.jsonl") == [f"request-{number}" for number in range(500)]
    assert holds(tmp_path / "logs" / "audit.jsonl").head == log.head
    assert log.stats()["lines_written"] == 500 and log.stats()["lines_waiting"] == 0


def test_questions_and_hits_are_written_only_where_the_operator_wants_them(tmp_path: Path) -> None:
    for name, prompts, hits in (("plain", False, True), ("prompts", True, True), ("none", True, False)):
        log = a_log(tmp_path / name, prompts=prompts, hits=hits)
        log.start()
        log.record(Event.HIT, request_id="r", question="where is my parcel?")
        log.record(Event.START)
        log.stop()
    assert b"parcel" not in (tmp_path / "plain").read_bytes()
    assert lines_of(tmp_path / "prompts")[0]["question"] == "where is my parcel?"
    assert [line["event"] for line in lines_of(tmp_path / "none")] == ["start"]


@pytest.mark.parametrize(
    "where, bound, told",
    [("eu", {"eu"}, True), ("eu", {"us"}, False), ("eu", set(), True), (None, {"eu"}, True), (None, set(), True)],
)
def test_of_a_tenant_of_another_region_only_a_count_is_told(
    tmp_path: Path, where: str | None, bound: set[str], told: bool
) -> None:
    log = a_log(tmp_path / "audit.jsonl", where)
    log.start()
    for number in range(3):
        log.record(Event.HIT, regions=frozenset(bound), request_id=f"request-{number}", tenant="shop")
    log.stop()
    text = (tmp_path / "audit.jsonl").read_text()
    assert ("shop" in text) == told
    if not told:
        lines = lines_of(tmp_path / "audit.jsonl")
        assert sum(int(str(line["withheld"])) for line in lines) == 3
        assert all(line.keys() == {"seq", "time", "event", "withheld", "prev", "hash"} for line in lines)
        assert log.stats()["lines_withheld"] == 3
    holds(tmp_path / "audit.jsonl")


@contextmanager
def full_disk() -> Iterator[None]:
    """No file may grow past 2,000 bytes: a write stops in the middle of a line, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, before[1]))  # Python ignores the signal that comes with it
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_lines_wait_for_a_disk_that_is_full_and_none_comes_twice(tmp_path: Path) -> None:
    log = a_log(tmp_path / "audit.jsonl")
    for number in range(40):
        log.record(Event.HIT, request_id=f"request-{number}")
    with full_disk():
        for _ in range(3):
            log._write_batch()
    assert "cannot be written" in (log.complaint() or "")
    assert 0 < log.written < 40 and log.stats()["lines_waiting"] == 40 - log.written
    log.record(Event.HIT, request_id="request-40")
    log._write_batch()
    assert log.complaint() is None and log.stats()["lines_waiting"] == 0
    report = holds(tmp_path / "audit.jsonl")
    assert report.torn == 1 and of_requests(tmp_path / "audit.jsonl") == [f"request-{number}" for number in range(41)]


def test_what_does_not_fit_into_the_queue_is_told_in_a_line(tmp_path: Path) -> None:
    log = a_log(tmp_path / "missing" / "audit.jsonl")
    count = 0
    while log.lost < 5:
        log.record(Event.HIT, request_id=f"request-{count}", note="x" * 390)
        count += 1
    assert log.stats()["lines_waiting"] > 0 and log._queued_bytes < QUEUE_BYTES + 1000
    log._write_batch()
    assert log.complaint() is not None and log.written == 0
    (tmp_path / "missing").mkdir()
    log._write_batch()
    report = holds(tmp_path / "missing" / "audit.jsonl")
    assert report.lost == 5 and report.lines == count - 5 + 1
    log.record(Event.START)
    log._write_batch()
    assert holds(tmp_path / "missing" / "audit.jsonl").lost == 5


def test_a_file_that_was_moved_away_is_begun_anew_and_its_lines_are_missed(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    file = a_file(path)
    file.append([a_record(1), a_record(2)])
    path.rename(tmp_path / "elsewhere")
    file.append([a_record(3)])
    file.close()
    broken = verify(path).broken
    assert broken is not None and "lines before number 3 are missing" in broken.why


def test_a_file_that_was_cut_while_we_run_shows_it(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    file = a_file(path)
    file.append([a_record(number) for number in range(5)])
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:2]))
    file.append([a_record(6)])
    file.close()
    broken = verify(path).broken
    assert broken is not None and (broken.line, "lines 3 to 5 are missing") == (3, broken.why[:24])


def test_a_log_that_cannot_be_written_refuses_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StartError, match=r"audit\.path"):
        a_log(tmp_path / "file" / "audit.jsonl").start()
    with pytest.raises(StartError, match=r"audit\.path"):
        a_log(tmp_path).start()


def test_a_command_writes_its_line_before_it_returns(tmp_path: Path) -> None:
    where = Audit(path=str(tmp_path / "audit.jsonl"))
    record_now(where, "eu", Event.KEY_CREATED, key="k1", tenant="shop")
    assert lines_of(tmp_path / "audit.jsonl")[0]["key"] == "k1"
    with pytest.raises(SemcacheError):
        record_now(Audit(path=str(tmp_path)), "eu", Event.KEY_CREATED)


def test_no_section_writes_nothing() -> None:
    log = open_audit(None, "eu")
    assert isinstance(log, NoAudit)
    log.record(Event.START)
    assert log.stats().keys() == a_log(Path("unused")).stats().keys()


def test_files_are_readable_by_us_only(tmp_path: Path) -> None:
    path = written(tmp_path / "audit.jsonl", 30, rotate=3000)
    for file in [*archives(path), path]:
        assert os.stat(file).st_mode & 0o077 == 0


def test_verify_names_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SemcacheError, match="No such file"):
        verify(tmp_path / "audit.jsonl")
