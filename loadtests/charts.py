"""The charts of the report: Vega-Lite drawings made into SVG text, so the page needs no script and no network.

Colours are CSS variables of the page; one drawing serves its light and its dark look.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import vl_convert

from loadtests.driver import Result
from loadtests.workload import Workload
from semcache.types import Tier, Verdict

# One colour per kind of outcome, in the order they stack and are listed.
COLOURS = {
    "exact hit": "var(--exact)",
    "semantic hit": "var(--semantic)",
    "false hit": "var(--false)",
    "stale": "var(--stale)",
    "coalesced": "var(--coalesced)",
    "miss": "var(--miss)",
    "bypass": "var(--bypass)",
    "refused": "var(--refused)",
    "error": "var(--error)",
}
ORDER = list(COLOURS)
CURVE_POINTS = 160  # per curve: more than the eye can tell on a chart this wide
TIME_BINS = 60
_WIDTH, _HEIGHT = 470, 220

_LOOK: dict[str, Any] = {
    "background": "transparent",
    "font": "system-ui, -apple-system, 'Segoe UI', sans-serif",
    "view": {"stroke": None},
    "axis": {
        "labelColor": "var(--soft)",
        "titleColor": "var(--soft)",
        "gridColor": "var(--line)",
        "domainColor": "var(--line)",
        "tickColor": "var(--line)",
        "titleFontWeight": "normal",
        "labelFontSize": 11,
        "titleFontSize": 11,
        "titlePadding": 8,
    },
    "legend": {
        "labelColor": "var(--text)",
        "title": None,
        "orient": "top",
        "labelFontSize": 11,
        "symbolSize": 90,
        "symbolStrokeWidth": 2,
        "columnPadding": 14,
        "padding": 0,
        "offset": 10,
    },
}


def verdict_name(result: Result) -> str:
    """What the charts and tables call a finished request, false hits not told apart."""
    if result.verdict is not Verdict.HIT:
        return result.verdict.value
    return "semantic hit" if result.tier is Tier.SEMANTIC else "exact hit"


def verdicts_over_time(results: Sequence[Result]) -> str:
    """Stacked: requests in each slice of time, by outcome."""
    span_s = max((result.started_s for result in results), default=0.0) or 1.0
    slice_s = span_s / TIME_BINS
    counts: dict[tuple[int, str], int] = {}
    for result in results:
        place = min(int(result.started_s / slice_s), TIME_BINS - 1), _outcome(result)
        counts[place] = counts.get(place, 0) + 1
    rows = [
        {"from": bin_ * slice_s, "to": (bin_ + 1) * slice_s, "outcome": name, "per_s": count / slice_s}
        for (bin_, name), count in counts.items()
    ]
    names = _present(name for _, name in counts)
    return _draw(
        rows,
        {"type": "bar", "binSpacing": 0.5},
        {
            "x": {**_quantity("from", "seconds"), "bin": {"binned": True}, "axis": {"grid": False, "tickCount": 8}},
            "x2": {"field": "to"},
            "y": {**_quantity("per_s", "requests / s"), "stack": "zero"},
            "color": _colour("outcome", names),
            "order": {"field": "rank"},
        },
        transform=[{"calculate": f"indexof({ORDER}, datum.outcome)", "as": "rank"}],
    )


def running_hit_rate(results: Sequence[Result], workload: Workload) -> str:
    """The hit rate of all requests so far, with the ceilings of the workload so far as dashed lines."""
    in_order = sorted(results, key=lambda result: result.started_s)
    marks = set(np.linspace(0, len(in_order) - 1, CURVE_POINTS).astype(int)) if in_order else set()
    rows, hits, texts, groups = [], 0, set(), set()
    for place, result in enumerate(in_order):
        hits += result.is_hit
        texts.add(result.request.text)
        groups.add(result.request.group)
        if place in marks:
            asked = place + 1
            rows += [
                {"n": asked, "rate": hits / asked, "line": "hit rate"},
                {"n": asked, "rate": 1 - len(groups) / asked, "line": "knows the groups"},
                {"n": asked, "rate": 1 - len(texts) / asked, "line": "equal texts only"},
            ]
    lines = {"hit rate": "var(--semantic)", "knows the groups": "var(--soft)", "equal texts only": "var(--exact)"}
    return _draw(
        rows,
        {"type": "line", "strokeWidth": 2, "interpolate": "monotone"},
        {
            "x": _quantity("n", "requests"),
            "y": {**_quantity("rate", None), "axis": {"format": ".0%"}, "scale": {"domain": [0, 1]}},
            "color": {
                "field": "line",
                "type": "nominal",
                "scale": {"domain": list(lines), "range": list(lines.values())},
                "legend": {"symbolType": "stroke"},
            },
            "strokeDash": {
                "field": "line",
                "type": "nominal",
                "scale": {"domain": list(lines), "range": [[1, 0], [5, 4], [5, 4]]},
            },
        },
    )


def latency_curves(results: Sequence[Result]) -> str:
    """For each verdict: the share of requests whose first byte had come after so many milliseconds."""
    rows: list[dict[str, Any]] = []
    names = _present(verdict_name(result) for result in results if result.error is None)
    for name in names:
        times = [r.ttfb_ms for r in results if r.error is None and verdict_name(r) == name and r.ttfb_ms]
        if times:
            shares = np.linspace(0, 1, CURVE_POINTS)
            points = np.quantile(times, shares)
            rows += [{"ms": float(m), "share": float(s), "v": name} for m, s in zip(points, shares, strict=True)]
    all_ms = [row["ms"] for row in rows] or [1.0]
    # Whole decades around what there is.
    decades = range(int(np.floor(np.log10(min(all_ms)))), int(np.ceil(np.log10(max(all_ms)))) + 1)
    return _draw(
        rows,
        {"type": "line", "strokeWidth": 2},
        {
            "x": {
                **_quantity("ms", "milliseconds to the first byte"),
                "scale": {"type": "log", "domain": [10.0 ** decades[0], 10.0 ** decades[-1]], "nice": False},
                "axis": {"format": "~g", "values": [10.0**power for power in decades]},
            },
            "y": {**_quantity("share", None), "axis": {"format": ".0%"}},
            "color": _colour("v", names, symbol="stroke"),
            "order": {"field": "share"},
        },
    )


def similarities(results: Sequence[Result]) -> str:
    """How near the stored questions of semantic hits were: right ones and false ones."""
    near = [r for r in results if r.is_hit and r.similarity is not None]
    low = min((r.similarity for r in near if r.similarity is not None), default=0.9)
    start = np.floor(low * 50) / 50
    edges = np.linspace(start, 1.0, 26)
    rows = []
    for name, wrong in (("semantic hit", False), ("false hit", True)):
        values = [r.similarity for r in near if r.is_false_hit is wrong]
        for count, begin, end in zip(np.histogram(values, edges)[0], edges[:-1], edges[1:], strict=True):
            rows.append({"from": float(begin), "to": float(end), "count": int(count), "kind": name})
    return _draw(
        rows,
        {"type": "bar", "binSpacing": 1},
        {
            "x": {
                **_quantity("from", "cosine to the stored question"),
                "bin": {"binned": True},
                "axis": {"grid": False, "format": ".2f", "tickCount": 6},
                "scale": {"domain": [float(start), 1.0]},
            },
            "x2": {"field": "to"},
            "y": {**_quantity("count", "hits"), "stack": "zero", "axis": {"tickMinStep": 1}},
            "color": _colour("kind", ["semantic hit", "false hit"]),
        },
    )


def _outcome(result: Result) -> str:
    if result.error is not None:
        return "error"
    return "false hit" if result.is_false_hit else verdict_name(result)


def _present(names: Any) -> list[str]:
    return sorted(set(names), key=ORDER.index)


def _quantity(field: str, title: str | None) -> dict[str, Any]:
    return {"field": field, "type": "quantitative", "title": title}


def _colour(field: str, names: Sequence[str], symbol: str = "square") -> dict[str, Any]:
    scale = {"domain": list(names), "range": [COLOURS[name] for name in names]}
    return {"field": field, "type": "nominal", "scale": scale, "legend": {"symbolType": symbol}}


def _draw(
    rows: Sequence[dict[str, Any]],
    mark: dict[str, Any],
    encoding: dict[str, Any],
    transform: Sequence[dict[str, Any]] = (),
) -> str:
    if not rows:
        return "<p>Nothing to show.</p>"
    chart = {
        "width": _WIDTH,
        "height": _HEIGHT,
        "data": {"values": list(rows)},
        "transform": list(transform),
        "mark": mark,
        "encoding": encoding,
        "config": _LOOK,
    }
    return str(vl_convert.vegalite_to_svg(chart))
