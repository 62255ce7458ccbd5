"""What the kill and freeze run concludes from what callers saw."""

from __future__ import annotations

from pathlib import Path

import pytest

from loadtests import failover_page
from loadtests.failover import NAMES, Asked, Fault, Run, _find, told

KILLED = Fault("killed", 0, 10.0, 20.0)


def played(*requests: Asked) -> Run:
    run = Run(list(requests), [KILLED], {0: 21.0}, span_s=30.0)
    run.findings = [_find(run, KILLED)]
    return run


def answered(sent_s: float, backend: str, *, attempts: int = 1, first_byte_s: float = 0.1) -> Asked:
    return Asked(sent_s, False, "id", 200, backend, first_byte_s, first_byte_s + 0.2, attempts=attempts)


GOOD = (
    answered(1, "gpu-1"),
    answered(9.9, "gpu-2", attempts=2),  # was there when it was killed
    answered(10.5, "gpu-3", attempts=2),
    answered(15, "gpu-2"),
    answered(22, "gpu-1"),
)


def test_a_run_in_which_callers_noticed_nothing_has_no_complaints() -> None:
    run = played(*GOOD)
    [finding] = run.findings
    assert (finding.errors, finding.cut_streams) == (0, 0)
    assert finding.off_after_s == pytest.approx(0.5)
    assert finding.ready_after_s == pytest.approx(1.0)
    assert finding.back_after_s == pytest.approx(1.3)
    assert run.complaints == []


@pytest.mark.parametrize(
    "request_, complaint",
    [
        (Asked(9.95, False, "", 502, "", 0.1, 0.1, "status 502"), "1 requests failed"),
        (Asked(9.95, False, "", 200, "", 0.1, 0.1, "ClientPayloadError"), "1 requests failed"),
        (answered(13, "gpu-2", attempts=2), "until 3.0 s after"),
        (answered(14, "gpu-1", first_byte_s=7.5), "until 4.0 s after"),  # held until it came back
        (Asked(25, False, "", 502, "", 0.1, 0.1, "status 502"), "while no backend was away"),
    ],
)
def test_whatever_callers_notice_is_a_complaint(request_: Asked, complaint: str) -> None:
    assert [complaint in line for line in played(*GOOD, request_).complaints] == [True]


def test_a_stream_that_had_begun_may_break() -> None:
    run = played(*GOOD, Asked(9.9, True, "", 200, "", 0.05, 0.1, "ClientPayloadError"))
    assert run.findings[0].cut_streams == 1 and run.complaints == []


def test_a_backend_that_stays_away_is_a_complaint() -> None:
    run = played(*(asked for asked in GOOD if asked.sent_s != 22))
    assert run.complaints == ["gpu-1 killed: it never served again"]
    late = played(*GOOD[:-1], answered(24, "gpu-1"))
    assert late.complaints == ["gpu-1 killed: it served again only 3.3 s after it could"]


def test_the_timeline_is_drawn(tmp_path: Path) -> None:
    run = played(*GOOD)
    page = failover_page.write(run, NAMES, told(run), tmp_path)
    assert "gpu-1 killed" in page.read_text() and "<svg" in page.read_text()
    assert (tmp_path / "timeline.png").read_bytes().startswith(b"\x89PNG")
