"""How long a key should rest, by what an upstream's answer says of its limits.

The rule: a refusal that names a time is obeyed, up to a cap; an answer that was given is a hint, and counts only when
it says that nothing remains. What cannot be read is not there: no header of an upstream raises here.

    Retry-After                             seconds, or an HTTP date (RFC 9110 section 10.2.3)
    retry-after-ms, x-ms-retry-after-ms     milliseconds: OpenAI, Azure
    x-ratelimit-remaining-{requests,tokens}, x-ratelimit-reset-...
                                            OpenAI and those that follow it: "1s", "6m0s", "20ms", "1h2m"
                                            (https://developers.openai.com/api/docs/guides/rate-limits);
                                            Azure: plain seconds, and -1 or 0 where it knows nothing
    anthropic-ratelimit-{requests,tokens,input-tokens,output-tokens}-{remaining,reset}
                                            RFC 3339 (https://platform.claude.com/docs/en/api/rate-limits)
    x-ratelimit-remaining, x-ratelimit-reset; ratelimit-remaining, ratelimit-reset
                                            gateways: seconds, Unix seconds or milliseconds
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

# An upstream that is hostile, or broken, or has a wrong clock, could put a key to rest for a year. A limit that is
# longer than this, such as a day's, is then found out by one refused request an hour.
LONGEST_REST_S = 3600.0

# Of a hint. Resets are told for the whole allowance, and it fills all the while (a token bucket, both vendors say): the
# longer the time, the more of it is there before. If nothing is, the next request is refused and names its own time.
LONGEST_HINT_S = 60.0

# Refused without a time. Vendors count by the minute, so a good part of one; short, since it may be a burst's limit.
UNTIMED_REST_S = 5.0

_LIMITED = 429
_OVERLOADED = frozenset({503, 529})  # 529: Anthropic's

_OPENAI = ("requests", "tokens")
_ANTHROPIC = ("requests", "tokens", "input-tokens", "output-tokens")
# What remains, when it is all back, and how much there is at all.
_ALLOWANCES = (
    *((f"x-ratelimit-remaining-{of}", f"x-ratelimit-reset-{of}", f"x-ratelimit-limit-{of}") for of in _OPENAI),
    *((f"{of}-remaining", f"{of}-reset", f"{of}-limit") for of in (f"anthropic-ratelimit-{of}" for of in _ANTHROPIC)),
    ("x-ratelimit-remaining", "x-ratelimit-reset", "x-ratelimit-limit"),
    ("ratelimit-remaining", "ratelimit-reset", "ratelimit-limit"),
)

_NUMBER = re.compile(r"[0-9]{1,20}(?:\.[0-9]{1,20})?")
_DURATION = re.compile(r"(?:[0-9]{1,20}(?:\.[0-9]{1,20})?(?:d|h|ms|m|us|µs|ns|s))+")  # Go's, and days
_PART = re.compile(r"([0-9.]+)([a-zµ]+)")
_UNITS_S = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_LONGEST_TEXT = 64  # characters; every form above is shorter

# A plain number this large is no length of time but a moment: Unix seconds since 2001, or milliseconds.
_UNIX_SECONDS = 1e9
_UNIX_MILLISECONDS = 1e12


def rest_s(status: int, headers: Mapping[str, str], now_unix: float) -> float | None:
    """Seconds for which the key that was used should not be used again. None: not at all.

    `headers`: of the answer, found by names in lower case.
    1. 429: what Retry-After says, else until what is used up comes back, else a short while.
    2. 503 and 529: what Retry-After says. Without it they are failures, and the breaker's affair.
    3. Any other: until what is used up comes back, and no longer than a minute.
    """
    if status == _LIMITED:
        told = _told_s(headers, now_unix) or _used_up_s(headers, now_unix) or UNTIMED_REST_S
        return min(told, LONGEST_REST_S)
    if status in _OVERLOADED:
        return _at_most(LONGEST_REST_S, _told_s(headers, now_unix))
    return _at_most(LONGEST_HINT_S, _used_up_s(headers, now_unix))


def _told_s(headers: Mapping[str, str], now_unix: float) -> float | None:
    """What the upstream asks for in so many words; the finer form counts. None also for a time that has passed."""
    for name in ("retry-after-ms", "x-ms-retry-after-ms"):
        text = headers.get(name, "").strip()
        if _NUMBER.fullmatch(text) and float(text) > 0:
            return float(text) / 1000
    return _wait_s(headers.get("retry-after"), headers, now_unix)


def _used_up_s(headers: Mapping[str, str], now_unix: float) -> float | None:
    """Until all that is used up is back."""
    longest = 0.0
    for remaining, reset, limit in _ALLOWANCES:
        left = headers.get(remaining)
        # A limit of nothing is none: a key without an allowance would not have got an answer at all.
        if left is not None and _is_zero(left) and not _is_zero(headers.get(limit, "")):
            longest = max(longest, _wait_s(headers.get(reset), headers, now_unix) or 0.0)
    return longest or None


def _wait_s(text: str | None, headers: Mapping[str, str], now_unix: float) -> float | None:
    """Seconds from now, of any form there is. None: unreadable, or not in the future."""
    text = (text or "").strip()
    if not text or len(text) > _LONGEST_TEXT:
        return None
    if _NUMBER.fullmatch(text):
        number = float(text)
        if number >= _UNIX_MILLISECONDS:
            wait = number / 1000 - now_unix
        elif number >= _UNIX_SECONDS:
            wait = number - now_unix
        else:
            wait = number
    elif _DURATION.fullmatch(text):
        wait = sum(float(number) * _UNITS_S[unit] for number, unit in _PART.findall(text))
    else:
        moment = _unix_s(text)
        if moment is None:
            return None
        # By the upstream's own clock, where it tells it: ours may be a minute off.
        sent = _unix_s(headers.get("date", "")[:_LONGEST_TEXT])
        wait = moment - (now_unix if sent is None else sent)
    return wait if wait > 0 else None


def _unix_s(text: str) -> float | None:
    """Of an RFC 3339 time or an HTTP date, in any of its three forms."""
    for parse in (datetime.fromisoformat, parsedate_to_datetime):
        try:
            moment = parse(text)
            return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
        except (ValueError, OverflowError, TypeError, IndexError):
            continue
    return None


def _at_most(longest_s: float, rest: float | None) -> float | None:
    return None if rest is None else min(rest, longest_s)


def _is_zero(text: str) -> bool:
    return bool(_NUMBER.fullmatch(text.strip())) and float(text) == 0
