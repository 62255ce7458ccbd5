"""How a report of `semcache explain` looks on a terminal: the verdict first, then who said what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from semcache.cache.context_view import shorten
from semcache.cache.explain_words import age, likely, percent
from semcache.types import Reason, Verdict

SHOWN_CHARS = 300  # of a question; --json has all of it

Report = Mapping[str, Any]  # as POST /semcache/explain gives it

# What speaks against a candidate and stands in no other column, in a word or two.
_OBJECTIONS = {
    Reason.FEEDBACK: "called wrong",
    Reason.CONTEXT: "other turns",
    Reason.UNPROVEN: "too few vouch",
    Reason.JUDGE: "judge",
    Reason.RERANKER: "reranker",
    Reason.BOUND: "error bound",
}

_STYLES = {Verdict.HIT: "bold green", Verdict.STALE: "bold yellow", Verdict.REFUSED: "bold red"}


def show(report: Report, console: Console) -> None:
    """What is printed comes from callers' prompts too, so none of it is taken for markup, and control characters go."""
    console.print(Text(_plain(report["summary"]), _STYLES.get(report["verdict"], "bold")))
    if report["assumed"]:
        named = " and ".join(_plain(each) for each in report["assumed"])
        console.print(Text(f"Taken from the newest answer stored, since it was not said: {named}.", "dim"))
    console.print()
    console.print(_facts(report))
    if report["candidates"]:
        console.print()
        console.print(_candidates(report))
    if report["elsewhere"]:
        console.print()
        console.print(_elsewhere(report))


def show_outcomes(report: Report, console: Console) -> None:
    """What the request log knows of a request that is over."""
    for outcome in report["outcomes"]:
        console.print(Text(_plain(outcome["summary"]), _STYLES.get(outcome["verdict"], "bold")))
        console.print()
        table = Table(box=None, show_header=False, padding=(0, 1))
        table.add_column(style="dim", no_wrap=True)
        table.add_column(overflow="fold")
        for name, value in outcome.items():
            if name != "summary" and value not in (None, "", {}, False):
                table.add_row(name, Text(_plain(_readable(value))))
        console.print(table)


def _readable(value: object) -> object:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_readable(each)}" for name, each in value.items())
    return round(value, 3) if isinstance(value, float) else value


def _facts(report: Report) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 1))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    route, scope, exact = report["route"], report["scope"], report["exact"]
    settings = [
        f"{route['mode']}, {_decided_by(route)}, ttl {age(route['ttl_s'])}, grace {age(route['grace_s'])}",
        f"guards {', '.join(_built(report)) or 'none'}",
    ]
    rows: list[tuple[str, object]] = [
        ("question", shorten(report["question"] or "none: there is no text of a user to compare", SHOWN_CHARS)),
        (
            "scope",
            ", ".join(f"{name} {value}" for name, value in scope.items() if value) + f" (sharing: {route['sharing']})",
        ),
        ("route", f"routes[{route['number']}] {' '.join(route['models'])}: {'; '.join(settings)}"),
    ]
    if report["exact_only"]:
        rows.append(("exact tier only", f"{report['exact_only']}: {report['exact_only_because']}"))
    if Reason.PERSONAL in (report["exact_only"], report["no_lookup"]):
        rows.append(("user", report["user"] or "the request names none (--user ID asks for one)"))
    if report["no_lookup"]:
        rows.append(("no lookup", report["no_lookup"]))
    if report["items_stored"]:
        rows.append(("items", f"{sum(report['items_stored'])} of {len(report['items_stored'])} are stored"))
    elif exact is None:
        rows.append(("exact entry", "none"))
    else:
        rows.append(("exact entry", f"{exact['entry']}, {exact['freshness_in_words']}{_origin(exact)}"))
    if report["partition_entries"] is not None:
        count = report["partition_entries"]
        rows.append(("partition", f"{report['partition']}: {count:,} question{'s'[: count != 1]} to compare with"))
    rows += [("context" if not place else "", _member(each)) for place, each in enumerate(report["context"])]
    if report["bound"]:
        rows.append(("error bound", _bound(route["max_error"], report["bound"])))
    if report["no_backend"]:
        rows.append(("no backend", report["no_backend"]))
    if report["fault"]:
        rows.append(("fault", report["fault"]))
    for name, value in rows:
        table.add_row(name, Text(_plain(value)))
    return table


def _decided_by(route: Mapping[str, Any]) -> str:
    if route["max_error"] is None:
        return f"threshold {route['threshold']:g}"
    return f"max_error {route['max_error']:g} (of candidates from {route['threshold']:g} on)"


def _bound(max_error: float, bound: Mapping[str, Any]) -> str:
    """What the evidence supports, in words."""
    whose = "of this scope" if bound["is_own"] else "of all scopes of the tenant"
    aim = f"at most {percent(max_error)} of hits wrong"
    if bound["cut"] is None:
        return (
            f"{aim}: not supported by the evidence, so nothing is served by meaning; "
            f"{bound['observed']:,} comparisons here, {bound['observed_of_tenant']:,} in all, and {bound['needed']:,} "
            "without an error are the least that would prove it"
        )
    return (
        f"{aim}: candidates are served from a probability of {likely(bound['cut'])} on; "
        f"there {bound['wrong_above']} of {bound['observed_above']:,} comparisons {whose} were wrong, so at most "
        f"{percent(bound['upper'])} of hits are (95 % confidence)"
    )


def _origin(stored: Mapping[str, Any]) -> str:
    """Whose request brought an answer, and who else fetched the same."""
    parts = [f"brought by {stored['writer']}" if stored["writer"] else ""]
    parts.append(f"in request {stored['request']}" if stored["request"] else "")
    parts.append(f"from {stored['backend']}" if stored["backend"] else "")
    others = [name for name in stored["vouchers"] if name != stored["writer"]]
    vouched = f", vouched for by {', '.join(others)} too" if others else ""
    told = " ".join(part for part in parts if part)
    return f"; {told}{vouched}" if told else ""


def _member(member: Mapping[str, str]) -> str:
    return f"{member['name']} = {member['value']}"


def _candidates(report: Report) -> Table:
    route, candidates = report["route"], report["candidates"]
    table = Table(box=None, padding=(0, 1), header_style="dim")
    table.add_column("cosine", justify="right", no_wrap=True)
    table.add_column(f">= {route['threshold']:g}", no_wrap=True)
    compares_turns = any(each["turns_similarity"] is not None for each in candidates)
    if compares_turns:
        table.add_column("turns", justify="right", no_wrap=True)
    table.add_column("guards")
    judges = [name for name in ("judge", "probability") if any(each[name] is not None for each in candidates)]
    for name in judges:
        table.add_column(name, justify="right", no_wrap=True)
    objections = [_OBJECTIONS.get(each["objection"], "") for each in candidates]
    if any(objections):
        table.add_column("objection", no_wrap=True)
    table.add_column("freshness", no_wrap=True)
    table.add_column("entry", no_wrap=True)
    is_shared = route["sharing"] != "tenant"
    if is_shared:
        table.add_column("brought by")
    table.add_column("stored question", ratio=1, overflow="fold")
    for each, objection in zip(candidates, objections, strict=True):
        is_near = each["threshold"] == "passes"
        entry = Text(each["entry"], "bold green" if each["entry"] == report["served"] else "")
        table.add_row(
            f"{each['similarity']:.3f}",
            Text("passes", "green") if is_near else Text("below", "red"),
            *([f"{each['turns_similarity'] or 0:.3f}"] if compares_turns else []),
            _guards(each["guards"]),
            *("-" if each[name] is None else likely(each[name]) for name in judges),
            *([Text(objection, "red" if is_near else "dim")] if any(objections) else []),
            Text(each["freshness"], "green" if each["freshness"] == "fresh" else "yellow"),
            entry,
            *([Text(_plain(", ".join(each["vouchers"] or [each["writer"]])))] if is_shared else []),
            Text(_plain(shorten(each["question"] or "", SHOWN_CHARS)), "" if each["is_looked_at"] else "dim"),
        )
    if not all(each["is_looked_at"] for each in candidates):
        table.caption = f"a lookup reads the nearest {route['neighbours']} (match.neighbours); the others are shown dim"
        table.caption_justify = "left"
    return table


def _built(report: Report) -> list[str]:
    """The guards of the route, those marked that this version does not have."""
    words = report["candidates"][0]["guards"] if report["candidates"] else {}
    return [f"{name} (not built)" if words.get(name) == "not built" else name for name in report["route"]["guards"]]


def _guards(words: Mapping[str, str]) -> Text:
    """Every one that objects by its name, and how many do not."""
    vetoes = [name for name, word in words.items() if word == "vetoes"]
    passes = sum(word == "passes" for word in words.values())
    if not vetoes:
        return Text("all pass" if passes else "none", "green" if passes else "dim")
    said = f"{', '.join(vetoes)} {'veto' if len(vetoes) > 1 else 'vetoes'}"
    return Text.assemble((said, "red"), (f", {passes} pass" if passes else "", "dim"))


def _elsewhere(report: Report) -> Table:
    table = Table(box=None, padding=(0, 1), header_style="dim", title="The same question, stored elsewhere")
    table.title_justify = "left"
    for name in ("differs in", "tenant", "namespace", "endpoint", "model", "entries", "newest"):
        table.add_column(name, justify="right" if name in ("entries", "newest") else "left")
    for home in report["elsewhere"]:
        scope = home["scope"]
        cells = [", ".join(home["differs"]), *_shown(scope, ("tenant", "namespace", "endpoint", "model"))]
        table.add_row(
            *(Text(_plain(cell)) for cell in cells), f"{home['entries']:,}", f"{age(home['newest_age_s'])} ago"
        )
    return table


def _shown(scope: Mapping[str, str], names: Sequence[str]) -> list[str]:
    return [scope[name] or "-" for name in names]


def _plain(value: object) -> str:
    """On one line, and without what a terminal obeys."""
    text = " ".join(str(value).split())
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in text)
