"""The charts of the page: lines, bands and whiskers as SVG text, in the page's colours: one drawing is light and dark.

Charts of three kinds do not justify the 84 MB of the library that draws the load test's: `semcache tune evidence` runs
where the store is, and that is the small image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from semcache.tuning.report import percent

WIDTH, HEIGHT = 520, 300
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 12, 44
COLOURS = {
    "threshold": "var(--threshold)",
    "+ guards": "var(--guards)",
    "+ judge": "var(--judge)",
    "+ reranker": "var(--reranker)",
    "error-bounded": "var(--bounded)",
}
SHARES = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0)  # where a share of false hits is marked

Points = Sequence[Mapping[str, Any]]
Place = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Axis:
    least: float
    most: float
    start: float  # pixels
    end: float
    bend: Callable[[float], float] = float  # sqrt spreads out what is small, and has a place for zero

    def at(self, value: float) -> float:
        low, high = self.bend(self.least), self.bend(self.most)
        share = (self.bend(min(max(value, self.least), self.most)) - low) / (high - low or 1.0)
        return self.start + share * (self.end - self.start)


def across(least: float, most: float, bend: Callable[[float], float] = float) -> Axis:
    return Axis(least, most, LEFT, WIDTH - RIGHT, bend)


def upwards(most: float) -> Axis:
    return Axis(0.0, most, HEIGHT - BOTTOM, TOP)


def trade(study: Mapping[str, Any], gained: str) -> str:
    """What is gained against what is false, a line for each strategy, with 95 % bands and the target."""
    curves = {name: _told(curve["points"]) for name, curve in study["curves"].items()}
    if study["bounds"]:
        curves["error-bounded"] = _told(study["bounds"])
    curves = {name: points for name, points in curves.items() if points}
    if not curves:
        return "<p>Nothing was served by meaning.</p>"
    x = across(0.0, 0.3, math.sqrt)
    y = upwards(_nice(max(point["hit_rate"] for points in curves.values() for point in points)))
    drawn = [_frame(x, [0.0, *SHARES[:7]], y, "false, of hits by meaning (95 % intervals shaded)", gained)]
    for name, points in curves.items():
        low, high = ([(x.at(_interval(p)[side]), y.at(p["hit_rate"])) for p in points] for side in (0, 1))
        drawn.append(_band([*low, *reversed(high)], COLOURS[name]))
    for name, points in curves.items():
        places = [(x.at(_false(p)), y.at(p["hit_rate"])) for p in points]
        drawn.append(_line(places, COLOURS[name]))
        setting = study["curves"][name]["setting"] if name in study["curves"] else "max_error"
        drawn.extend(
            _dot(place, COLOURS[name], _tip(name, setting, point)) for place, point in zip(places, points, strict=True)
        )
    found = study["recommendation"]
    drawn.append(_target(x.at(found["target"]), found["target"]))
    for point in curves.get(found["strategy"], ()):
        if point["setting"] == found["setting"]:
            drawn.append(
                f'<circle class="chosen" cx="{x.at(_false(point)):.1f}" cy="{y.at(point["hit_rate"]):.1f}" r="8"/>'
            )
    return _svg(drawn) + _legend(curves)


def by_setting(name: str, curve: Mapping[str, Any], study: Mapping[str, Any], gained: str) -> str:
    """One strategy: what is gained and what is false at each setting."""
    points = curve["points"]
    settings = [point["setting"] for point in points]
    x, y = across(min(settings), max(settings)), upwards(1.0)
    drawn = [_frame(x, _ticks(settings), y, f"match.{curve['setting']}", "share", _plain)]
    told = _told(points)
    low, high = ([(x.at(p["setting"]), y.at(_interval(p)[side])) for p in told] for side in (0, 1))
    drawn.append(_band([*low, *reversed(high)], "var(--false)"))
    drawn.append(_line([(x.at(p["setting"]), y.at(p["hit_rate"])) for p in points], COLOURS[name]))
    drawn.append(_line([(x.at(p["setting"]), y.at(_false(p))) for p in told], "var(--false)"))
    for point in points:
        tip = _tip(name, curve["setting"], point)
        drawn.append(_dot((x.at(point["setting"]), y.at(point["hit_rate"])), COLOURS[name], tip))
    for point in told:
        drawn.append(
            _dot((x.at(point["setting"]), y.at(_false(point))), "var(--false)", _tip(name, curve["setting"], point))
        )
    found = study["recommendation"]
    if found["strategy"] == name:
        at = x.at(found["setting"])
        drawn.append(f'<path class="target" d="M{at:.1f} {TOP}V{HEIGHT - BOTTOM}"/>')
    return _svg(drawn) + _key([(gained, COLOURS[name]), ("false, of hits by meaning", "var(--false)")])


def promised(bounds: Points) -> str:
    """Error bounds: what was allowed, and what was seen after the warm-up."""
    most = max(max(_interval(each)[1] if each["by_meaning"] else 0.0, each["max_error"]) for each in bounds)
    y = upwards(_nice(min(most, 4 * max(each["max_error"] for each in bounds))))
    step = (WIDTH - LEFT - RIGHT) / len(bounds)
    drawn = [_frame(across(0, 1), [], y, "match.max_error", "false, of hits by meaning")]
    for place, each in enumerate(bounds):
        middle = LEFT + (place + 0.5) * step
        drawn.append(_words(middle, HEIGHT - BOTTOM + 16, percent(each["max_error"]), "middle"))
        allowed = y.at(each["max_error"])
        drawn.append(f'<path class="target" d="M{middle - step * 0.3:.1f} {allowed:.1f}h{step * 0.6:.1f}"/>')
        if each["by_meaning"]:
            low, high = (y.at(value) for value in _interval(each))
            drawn.append(
                f'<path class="whisker" d="M{middle:.1f} {low:.1f}V{high:.1f}m-5 0h10M{middle - 5:.1f} {low:.1f}h10"/>'
            )
            drawn.append(_dot((middle, y.at(_false(each))), COLOURS["error-bounded"], _tip("", "max_error", each), 5))
        else:
            drawn.append(_words(middle, HEIGHT - BOTTOM - 8, "served none", "middle"))
    return _svg(drawn) + _key([("seen, with its 95 % interval", COLOURS["error-bounded"]), ("allowed", "var(--text)")])


# Parts of a chart


def _frame(
    x: Axis, ticks: Sequence[float], y: Axis, below: str, beside: str, say: Callable[[float], str] = percent
) -> str:
    drawn = []
    for part in range(6):
        value = y.most * part / 5
        at = y.at(value)
        drawn.append(f'<path class="grid" d="M{LEFT} {at:.1f}H{WIDTH - RIGHT}"/>')
        drawn.append(_words(LEFT - 6, at + 4, percent(value), "end"))
    for value in ticks:
        at = x.at(value)
        drawn.append(f'<path class="grid" d="M{at:.1f} {TOP}V{HEIGHT - BOTTOM}"/>')
        drawn.append(_words(at, HEIGHT - BOTTOM + 16, say(value).replace(" %", "%"), "middle"))
    drawn.append(_words((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, below, "middle"))
    drawn.append(
        f'<text transform="translate(12 {(TOP + HEIGHT - BOTTOM) / 2:.0f}) rotate(-90)" text-anchor="middle">'
        f"{escape(beside)}</text>"
    )
    return "".join(drawn)


def _band(places: Iterable[Place], colour: str) -> str:
    return f'<path d="{_path(places)}Z" style="fill:{colour}" class="band"/>'


def _line(places: Iterable[Place], colour: str) -> str:
    return f'<path d="{_path(places)}" style="stroke:{colour}" class="line"/>'


def _path(places: Iterable[Place]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)


def _dot(place: Place, colour: str, tip: str, radius: float = 3) -> str:
    x, y = place
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" style="fill:{colour}"><title>{escape(tip)}</title></circle>'


def _target(at: float, target: float) -> str:
    word = _words(at + 4, TOP + 10, f"target {percent(target)}", "start")
    return f'<path class="target" d="M{at:.1f} {TOP}V{HEIGHT - BOTTOM}"/>{word}'


def _words(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(parts: Iterable[str]) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{"".join(parts)}</svg>'


def _legend(names: Iterable[str]) -> str:
    return _key([(name, COLOURS[name]) for name in names])


def _key(named: Iterable[tuple[str, str]]) -> str:
    words = (f'<span><i style="background:{colour}"></i>{escape(name)}</span>' for name, colour in named)
    return f'<p class="key">{"".join(words)}</p>'


# Values of a point


def _told(points: Points) -> list[Mapping[str, Any]]:
    return [point for point in points if point["by_meaning"]]


def _false(point: Mapping[str, Any]) -> float:
    return float(point["false_of_by_meaning"]["value"])


def _interval(point: Mapping[str, Any]) -> tuple[float, float]:
    low, high = point["false_of_by_meaning"]["95%"]
    return low, high


def _tip(name: str, setting: str, point: Mapping[str, Any]) -> str:
    low, high = _interval(point)
    return (
        f"{name} {setting} {point.get('setting', point.get('max_error')):g}: {percent(point['hit_rate'])}, "
        f"false {percent(_false(point))} ({percent(low)} to {percent(high)}) of {point['by_meaning']:,.0f} by meaning"
    ).strip()


def _nice(most: float) -> float:
    """The end of an axis: at or above `most`, and a fifth of it can be read."""
    return next((end for end in (0.01, 0.02, 0.05, 0.1, 0.2, 0.25, 0.5, 0.75) if end >= most), 1.0)


def _ticks(settings: Sequence[float]) -> list[float]:
    least, most = min(settings), max(settings)
    step = 0.05 if most - least <= 0.31 else 0.1
    return [
        round(step * number, 2) for number in range(math.ceil(least / step - 1e-9), math.floor(most / step + 1e-9) + 1)
    ]


def _plain(value: float) -> str:
    return f"{value:.2f}"
