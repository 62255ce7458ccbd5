"""What settings are made of: a section, durations, ports, times of day."""

from __future__ import annotations

import re
from datetime import time
from typing import Annotated
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)?")
_HOURS = re.compile(r"(\d{1,2}:\d{2})\s*-\s*(\d{1,2}:\d{2})")
_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


def _seconds(value: object) -> object:
    if isinstance(value, str):
        found = _DURATION.fullmatch(value.strip())
        if not found:
            raise ValueError("write a duration such as 30s, 10m, 24h, 7d, 250ms, or a number of seconds")
        return float(found[1]) * _UNITS_S[found[2] or "s"]
    return value


def _zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as exc:
        raise ValueError("no such time zone; write a name such as Europe/Berlin, or UTC") from exc
    return name


def _hours(value: str) -> str:
    read_hours(value)
    return value


def read_hours(written: str) -> tuple[frozenset[int], time, time]:
    """Days (0: Monday), first and last moment of "22:00-06:00" or "sat,sun 00:00-24:00". Equal moments: all day.

    A window that ends before it begins ends on the next day, and its days are those on which it begins. Raises
    ValueError.
    """
    days, _, hours = written.strip().lower().rpartition(" ")
    found = _HOURS.fullmatch(hours)
    named = [day.strip() for day in days.split(",")] if days.strip() else list(_DAYS)
    if not found or any(day not in _DAYS for day in named):
        raise ValueError('write hours such as "22:00-06:00", or "sat,sun 00:00-24:00"')
    try:
        begin, end = (time.fromisoformat("00:00" if part == "24:00" else part.zfill(5)) for part in found.groups())
    except ValueError as exc:
        raise ValueError("an hour is 00:00 to 24:00") from exc
    return frozenset(_DAYS.index(day) for day in named), begin, end


Seconds = Annotated[float, BeforeValidator(_seconds), Field(ge=0, allow_inf_nan=False)]
Port = Annotated[int, Field(ge=0, le=65535)]  # 0: any free port, printed at the start
Share = Annotated[float, Field(ge=0, le=1)]
Zone = Annotated[str, AfterValidator(_zone)]
Hours = Annotated[str, AfterValidator(_hours)]
