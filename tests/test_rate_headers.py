"""How long a key rests, told from headers as vendors send them, and from any others."""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import format_datetime

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from multidict import CIMultiDict

from semcache.backends.rate_headers import LONGEST_HINT_S, LONGEST_REST_S, UNTIMED_REST_S, rest_s

NOW = datetime(2026, 11, 21, 12, 0, 0, tzinfo=UTC)
NOW_UNIX = NOW.timestamp()
LATER = datetime(2026, 11, 21, 12, 0, 40, tzinfo=UTC)  # 40 s


@pytest.mark.parametrize(
    "headers, rest",
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": " 7 "}, 7.0),
        ({"retry-after": "1.5"}, 1.5),  # not of the RFC, and sent all the same
        ({"retry-after": format_datetime(LATER, usegmt=True)}, 40.0),
        ({"retry-after": "Saturday, 21-Nov-26 12:00:40 GMT"}, 40.0),  # the two obsolete forms, RFC 9110 section 5.6.7
        ({"retry-after": "Sat Nov 21 12:00:40 2026"}, 40.0),
        ({"retry-after-ms": "250", "retry-after": "1"}, 0.25),  # the finer one
        ({"retry-after-ms": "soon", "retry-after": "1"}, 1.0),
        ({"x-ms-retry-after-ms": "1250"}, 1.25),
        ({}, UNTIMED_REST_S),
        ({"retry-after": "0"}, UNTIMED_REST_S),  # it has just refused: at once would be refused again
        ({"retry-after": "-3"}, UNTIMED_REST_S),
        ({"retry-after": format_datetime(datetime(2026, 1, 1, tzinfo=UTC), usegmt=True)}, UNTIMED_REST_S),
        ({"retry-after": "later"}, UNTIMED_REST_S),
        ({"retry-after": "31536000"}, LONGEST_REST_S),  # a year
        ({"retry-after": "9" * 20}, LONGEST_REST_S),
        ({"retry-after": "Fri, 31 Dec 9999 23:59:59 GMT"}, LONGEST_REST_S),
        # Nothing remains of the tokens: until they are back. Requests remain, so their reset says nothing.
        (
            {
                "x-ratelimit-remaining-requests": "12",
                "x-ratelimit-reset-requests": "6m0s",
                "x-ratelimit-remaining-tokens": "0",
                "x-ratelimit-reset-tokens": "20ms",
            },
            0.02,
        ),
        # Refused though all remains: the request was larger than the rest of the minute, or the limit is another.
        ({"x-ratelimit-remaining-tokens": "120", "x-ratelimit-reset-tokens": "58s"}, UNTIMED_REST_S),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "14h2m"}, LONGEST_REST_S),
        ({"retry-after": "3", "x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "50s"}, 3.0),
    ],
)
def test_a_refused_key_rests_as_long_as_it_is_told(headers: dict[str, str], rest: float) -> None:
    assert rest_s(429, headers, NOW_UNIX) == pytest.approx(rest)


@pytest.mark.parametrize("status", [503, 529])
def test_an_overloaded_upstream_rests_only_if_it_says_how_long(status: int) -> None:
    assert rest_s(status, {"retry-after": "20"}, NOW_UNIX) == 20.0
    assert rest_s(status, {}, NOW_UNIX) is None
    assert rest_s(status, {"retry-after": "0"}, NOW_UNIX) is None
    assert rest_s(status, {"retry-after": "99999999"}, NOW_UNIX) == LONGEST_REST_S


@pytest.mark.parametrize(
    "reset, rest",
    [
        ("1s", 1.0),
        ("6m0s", 60.0),  # a hint for no longer than a minute
        ("20ms", 0.02),
        ("1h2m", 60.0),
        ("2m59.56s", 60.0),
        ("7.66s", 7.66),
        ("500µs", 0.0005),
        ("30", 30.0),  # Azure
        (str(NOW_UNIX + 25), 25.0),
        (str(int((NOW_UNIX + 25) * 1000)), 25.0),
        ("2026-11-21T12:00:25Z", 25.0),
        ("0s", None),
        ("", None),
        ("s", None),
        ("1s later", None),
        ("1.s", None),
        ("٣s", None),  # digits, but not ours
        ("2026-11-21T11:59:00Z", None),
        ("1s" * 40, None),
    ],
)
def test_an_answered_key_with_nothing_left_rests_until_its_reset(reset: str, rest: float | None) -> None:
    headers = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": reset}
    assert rest_s(200, headers, NOW_UNIX) == (rest if rest is None else pytest.approx(rest))


@pytest.mark.parametrize(
    "headers, why",
    [
        ({"x-ratelimit-remaining-tokens": "1", "x-ratelimit-reset-tokens": "50s"}, "something is left"),
        ({"x-ratelimit-remaining-tokens": "0"}, "no time is told"),
        ({"retry-after": "50"}, "it was answered: nothing has to be tried again"),
        (
            {"x-ratelimit-limit-tokens": "-1", "x-ratelimit-remaining-tokens": "-1", "x-ratelimit-reset-tokens": "0"},
            "Azure's Responses API does not know",
        ),
        (
            {"x-ratelimit-limit-tokens": "0", "x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "50"},
            "there is no limit",
        ),
        (
            {"anthropic-priority-input-tokens-remaining": "0", "anthropic-priority-input-tokens-reset": "50s"},
            "without priority it goes on",
        ),
        ({}, "no word of limits"),
    ],
)
def test_an_answered_key_does_not_rest_when(headers: dict[str, str], why: str) -> None:
    assert rest_s(200, headers, NOW_UNIX) is None, why


def test_of_several_used_up_allowances_the_last_to_return_counts() -> None:
    headers = {
        "anthropic-ratelimit-requests-limit": "1000",
        "anthropic-ratelimit-requests-remaining": "0",
        "anthropic-ratelimit-requests-reset": "2026-11-21T12:00:05Z",
        "anthropic-ratelimit-input-tokens-limit": "80000",
        "anthropic-ratelimit-input-tokens-remaining": "0",
        "anthropic-ratelimit-input-tokens-reset": "2026-11-21T12:00:31Z",
        "anthropic-ratelimit-output-tokens-remaining": "16000",
        "anthropic-ratelimit-output-tokens-reset": "2026-11-21T12:00:59Z",
    }
    assert rest_s(200, headers, NOW_UNIX) == pytest.approx(31.0)


def test_moments_are_read_by_the_clock_of_whoever_wrote_them() -> None:
    headers = {"date": format_datetime(NOW, usegmt=True), "retry-after": format_datetime(LATER, usegmt=True)}
    assert rest_s(429, headers, NOW_UNIX - 300) == pytest.approx(40.0)
    assert rest_s(429, headers | {"date": "yesterday"}, NOW_UNIX - 20) == pytest.approx(60.0)


def test_names_are_found_in_any_case_in_an_answer() -> None:
    assert rest_s(429, CIMultiDict({"Retry-After": "9"}), NOW_UNIX) == 9.0


NAMES = st.sampled_from(
    [
        "date",
        "retry-after",
        "retry-after-ms",
        *(f"x-ratelimit-{kind}-{what}" for kind in ("limit", "remaining", "reset") for what in ("requests", "tokens")),
        *(f"anthropic-ratelimit-input-tokens-{kind}" for kind in ("limit", "remaining", "reset")),
        "x-ratelimit-remaining",
        "x-ratelimit-reset",
    ]
)
ALMOST = st.from_regex(r"-?[0-9]{0,25}(\.[0-9]{0,3})?(ms|s|m|h|d|ns|[TZ:+ -]|GMT|Jan|[0-9]{1,4}){0,6}", fullmatch=True)
VALUES = st.one_of(st.text(max_size=80), ALMOST, st.datetimes().map(str), st.floats().map(str), st.just("0"))


@given(st.integers(100, 999), st.dictionaries(NAMES, VALUES), st.floats(0, 4e9))
@example(429, {"retry-after": "Sat, 21 Nov 2026 12:00:00 +9999999"}, NOW_UNIX)
@example(429, {"retry-after": "0001-01-01T00:00:00+14:00"}, NOW_UNIX)
def test_no_header_raises_or_puts_a_key_to_rest_for_longer_than_the_cap(
    status: int, headers: dict[str, str], now_unix: float
) -> None:
    rest = rest_s(status, headers, now_unix)
    cap = LONGEST_REST_S if status in (429, 503, 529) else LONGEST_HINT_S
    assert rest is None or 0 < rest <= cap
    assert status != 429 or rest is not None


@given(st.integers(0, 50), st.integers(0, 59), st.integers(1, 59), st.integers(0, 999))
def test_durations_are_read_as_go_writes_them(hours: int, minutes: int, seconds: int, milliseconds: int) -> None:
    text = (
        (f"{hours}h" if hours else "") + (f"{minutes}m" if hours or minutes else "") + f"{seconds}.{milliseconds:03}s"
    )
    headers = {"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": text}
    expected = hours * 3600 + minutes * 60 + seconds + milliseconds / 1000
    assert rest_s(429, headers, NOW_UNIX) == pytest.approx(min(expected, LONGEST_REST_S))
