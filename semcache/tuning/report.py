"""What a study comes to: plain values for JSON, sentences, and the lines to paste into a configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from semcache.shadow import wilson
from semcache.tuning.bounded import WARM_UP, Played
from semcache.tuning.curves import Count, Point
from semcache.tuning.studies import Study

GAINED = {
    "stream": "hit rate",
    "pairs": "right pairs served",
    "evidence": "of compared requests served",
}
SIZED = {"stream": "rows", "pairs": "pairs", "evidence": "requests"}


def report(studies: Sequence[Study], about: Mapping[str, Any], now: float) -> dict[str, Any]:
    """Everything the page and the table say."""
    written = datetime.fromtimestamp(now, UTC).isoformat(timespec="seconds")
    return {"written": written, **about, "studies": [study_report(study) for study in studies]}


def study_report(study: Study) -> dict[str, Any]:
    found = study.recommendation
    return {
        "name": study.name,
        "kind": study.kind,
        SIZED[study.kind]: study.size,
        "notes": list(study.notes),
        "curves": {
            name: {"setting": study.strategies[name].swept, "points": [_point(point) for point in points]}
            for name, points in study.curves.items()
        },
        "bounds": [_bound(each, study.bound_rows) for each in study.bounds],
        "recommendation": {
            "target": found.target,
            "strategy": found.strategy,
            "setting": found.setting,
            "checked": found.checked and _count(found.checked),
            "best": found.best,
            "more": found.more,
            "more_rows": found.more_rows,
            "says": say(study),
            "yaml": yaml_lines(study),
            "or": say_bounded(study),
        },
    }


def _point(point: Point) -> dict[str, Any]:
    return {"setting": point.setting, **_count(point.whole), "halves": [_count(half) for half in point.halves]}


def _count(count: Count) -> dict[str, Any]:
    hits = count.exact + count.served
    return {
        "of": count.of,
        "gained": count.gained,
        "hit_rate": count.hit_rate,
        "exact": count.exact,
        "by_meaning": count.served,
        "false": count.false,
        "false_of_by_meaning": {"value": count.false_rate, "95%": list(count.interval)},
        "false_of_hits": count.false / hits if hits else 0.0,
        "false_of_requests": count.false / count.of if count.of else 0.0,
    }


def _bound(played: Played, rows: int) -> dict[str, Any]:
    return {
        "max_error": played.bound,
        "rows": rows,
        "warm_up": WARM_UP,
        "explored": played.explored,
        "within": keeps(played),
        **_count(played.whole),
    }


def keeps(played: Played) -> bool:
    """Whether the share of false hits that was seen may be chance, if the bound holds."""
    return wilson(played.whole.false, played.whole.served)[0] <= played.bound


def say(study: Study) -> str:
    """The recommendation as a sentence."""
    found = study.recommendation
    target = percent(found.target)
    wanted = f"For at most {target} false hits"
    what = SIZED[study.kind]
    if found.strategy is not None and found.setting is not None and found.checked is not None:
        return (
            f"{wanted}: {name_setting(study, found.strategy, found.setting)}. On the half that had no say in this, "
            f"{_tell(study.kind, found.checked)}."
        )
    if found.best is None or found.checked is None:
        return (
            f"{wanted} there is not enough evidence: nothing was served by meaning yet. "
            f"{found.more:,} more hits by meaning would tell, if none of them is false."
        )
    best = f"{name_setting(study, *found.best)} comes nearest: {_tell(study.kind, found.checked)}"
    if found.more is None:
        return f"{wanted} none of the settings tried will do. {best}. Allow more of them, or set match.max_error."
    return (
        f"{wanted} there is not enough evidence: {found.more:,} more hits by meaning, in some {found.more_rows:,} more "
        f"{what} like these, would tell. {best}."
    )


def say_bounded(study: Study) -> str | None:
    """What `match.max_error` would have done with this target; None where it was not tried."""
    played = next((each for each in study.bounds if each.bound == study.recommendation.target), None)
    if played is None:
        return None
    lines = f"Or let the evidence decide, without labels (match.max_error: {played.bound:g})"
    if not played.whole.served:
        return f"{lines}: on these rows it found too little evidence to serve anything by meaning."
    kept = "" if keeps(played) else ", more than it promises"
    return f"{lines}: after {WARM_UP} requests to learn, {_tell(study.kind, played.whole)}{kept}."


def name_setting(study: Study, strategy: str, setting: float) -> str:
    return f'"{strategy}" at {study.strategies[strategy].swept} {setting:g}'


def _tell(kind: str, count: Count) -> str:
    low, high = count.interval
    gained = f"{percent(count.hit_rate)} {GAINED[kind]}"
    return f"{gained}, {percent(count.false_rate)} of hits by meaning false ({percent(low)} to {percent(high)})"


def yaml_lines(study: Study) -> str | None:
    found = study.recommendation
    if found.strategy is None or found.setting is None:
        return None
    lines = (f"  {name}: {_yaml(value)}" for name, value in study.lines(found.strategy, found.setting).items())
    return "\n".join(["match:", *lines])


def _yaml(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_yaml, value))}]"
    return f"{value:.2f}" if isinstance(value, float) and round(value, 2) == value else str(value)


def percent(share: float) -> str:
    """Two digits that count: 0.35 %, 4.2 %, 37 %."""
    return f"{share * 100:.2g} %" if share < 0.1 else f"{share * 100:.0f} %"
