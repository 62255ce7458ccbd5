"""The timeline of a kill and freeze run: who answered in each half second, and how long callers waited."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import vl_convert

if TYPE_CHECKING:
    from loadtests.failover import Asked, Run

BIN_S = 0.5
FAILED = "error"
_COLOURS = ("#1f6feb", "#12a594", "#8e6ce8", "#b98900")
_FAILED_COLOUR = "#e5484d"
_AWAY_COLOUR = "#98a2b3"
_WIDTH, _HEIGHT = 900, 240

_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>One backend killed, one frozen</title>
<style>
  body {{ margin: 32px auto; max-width: 1080px; padding: 0 20px; color: #1c2430;
         font: 15px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }}
  svg {{ width: 100%; height: auto; }}
  pre {{ background: #f6f7f9; border: 1px solid #e4e7ec; border-radius: 10px; padding: 14px 16px; overflow-x: auto; }}
</style>
<h1>One backend killed, one frozen</h1>
{svg}
<pre>{table}</pre>
</html>
"""


def write(played: Run, names: Sequence[str], table: Iterable[str], folder: Path) -> Path:
    """Write timeline.html, .svg and .png into the folder, and return the page."""
    folder.mkdir(parents=True, exist_ok=True)
    chart = draw(played, names)
    svg = str(vl_convert.vegalite_to_svg(chart))
    (folder / "timeline.svg").write_text(svg, encoding="utf-8")
    (folder / "timeline.png").write_bytes(vl_convert.vegalite_to_png(chart, scale=1.5))
    page = folder / "timeline.html"
    page.write_text(_PAGE.format(svg=svg, table=html.escape("\n".join(table))), encoding="utf-8")
    return page


def draw(played: Run, names: Sequence[str]) -> dict[str, Any]:
    """The Vega-Lite drawing: rates above, waits below, and grey where a backend was away."""
    x = {"type": "quantitative", "scale": {"domain": [0, played.span_s], "nice": False}}
    away = {
        "data": {"values": _away(played, names)},
        "layer": [
            {
                "mark": {"type": "rect", "color": _AWAY_COLOUR, "opacity": 0.18},
                "encoding": {"x": {**x, "field": "from"}, "x2": {"field": "to"}},
            },
            {
                "mark": {"type": "text", "align": "left", "dy": -7, "color": "#667085"},
                "encoding": {"x": {**x, "field": "from"}, "y": {"value": 0}, "text": {"field": "told"}},
            },
        ],
    }
    present = [*names, FAILED]
    colour = {
        "field": "who",
        "type": "nominal",
        "scale": {"domain": present, "range": [*_COLOURS[: len(names)], _FAILED_COLOUR]},
        "legend": {"orient": "top", "title": None, "symbolType": "stroke", "symbolStrokeWidth": 3, "symbolOpacity": 1},
    }
    rates = {
        "data": {"values": _rates(played, names)},
        "mark": {"type": "line", "interpolate": "step-after", "strokeWidth": 1.8},
        "encoding": {
            "x": {**x, "field": "at", "title": None},
            "y": {"field": "rate", "type": "quantitative", "title": "answers per second"},
            "color": colour,
        },
    }
    waits = {
        "data": {"values": [_wait(asked) for asked in played.requests if asked.done_s is not None]},
        "mark": {"type": "circle", "size": 9, "opacity": 0.55},
        "encoding": {
            "x": {**x, "field": "at", "title": "seconds"},
            "y": {
                "field": "wait",
                "type": "quantitative",
                "title": "first byte after, ms",
                "scale": {"type": "log"},
            },
            "color": colour,
        },
    }
    return {
        "vconcat": [
            {"width": _WIDTH, "height": _HEIGHT, "layer": [away, rates]},
            {"width": _WIDTH, "height": _HEIGHT * 2 // 3, "layer": [away, waits]},
        ],
        "config": {
            "background": "white",
            "font": "system-ui, -apple-system, 'Segoe UI', sans-serif",
            "view": {"stroke": None},
            "axis": {"gridColor": "#eef0f3", "titleFontWeight": "normal"},
        },
    }


def _rates(played: Run, names: Sequence[str]) -> list[dict[str, Any]]:
    """Answers and errors in each slice of time, by when they were whole."""
    counts: Counter[tuple[int, str]] = Counter()
    for asked in played.requests:
        if asked.done_s is not None:
            counts[int((asked.sent_s + asked.done_s) / BIN_S), _who(asked)] += 1
    slices = range(int(played.span_s / BIN_S))
    return [
        {"at": place * BIN_S, "who": who, "rate": counts[place, who] / BIN_S}
        for who in [FAILED, *names]  # what is drawn last lies on top
        for place in slices
    ]


def _wait(asked: Asked) -> dict[str, Any]:
    wait_s = asked.done_s if asked.first_byte_s is None else asked.first_byte_s
    return {"at": asked.sent_s, "who": _who(asked), "wait": max(1000 * (wait_s or 0), 1)}


def _who(asked: Asked) -> str:
    return FAILED if asked.error is not None else asked.backend


def _away(played: Run, names: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {"from": fault.begin_s, "to": played.ready_s[fault.victim], "told": f"{names[fault.victim]} {fault.kind}"}
        for fault in played.faults
    ]
