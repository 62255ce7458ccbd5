"""What the replays of labelled streams came to (quality_streams.py), as tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from loadtests.quality_replay import FalseHit, Tally
from loadtests.report import wilson

NOTE = (
    "by hits, by requests: of which at most that share is false; x: times those of the first line; "
    "false: semantic hits with another class's answer, with the 95 % interval of their share; "
    "contradicted: exact hits of equal texts that the file has under two classes, not counted as false; "
    "decision: of those lookups that found something near enough to be judged"
)


HEADINGS = (
    "setting",
    "hit rate",
    "semantic",
    "x hits",
    "x semantic",
    "false/hits",
    "/semantic",
    "/requests",
    "contradicted",
    "decision ms p50, p99",
)


class Line(NamedTuple):
    """One replay in a table: what it came to and the setting it was made with."""

    name: str
    setting: str
    tally: Tally | None  # None: no setting is strict enough

    def cells(self, reference: Tally | None) -> Iterable[str]:
        yield f"  {self.name}"
        if self.tally is None:
            yield "none"
            yield from [""] * (len(HEADINGS) - 1)
            return
        tally = self.tally
        yield self.setting
        yield percent(tally.hit_rate)
        yield percent(tally.semantic_rate)
        yield times(tally.hits, reference.hits if reference else 0)
        yield times(tally.semantic, reference.semantic if reference else 0)
        yield with_interval(tally.false, tally.hits)
        yield f"{tally.false_of_semantic:.2%}"
        yield f"{tally.false_of_requests:.2%}"
        yield f"{tally.contradicted or ''}"
        yield " ".join(f"{tally.verify_ms[point]:.3f}" for point in ("p50", "p99")) if tally.verify_ms else ""


def show_strategies(groups: Mapping[str, Sequence[Line]], limit: float, console: Console) -> None:
    """A section for each stream; the first line of each is what the others are compared with."""
    table = Table(title=f"streams: the best setting of each strategy with false/hits <= {limit:.1%}", caption=NOTE)
    table.add_column("stream and strategy", no_wrap=True)
    for heading in HEADINGS:
        table.add_column(heading, justify="right", no_wrap=True)
    for name, lines in groups.items():
        table.add_row(f"[bold]{escape(name)}[/bold]")
        for number, line in enumerate(lines, start=1):
            table.add_row(*line.cells(lines[0].tally), end_section=number == len(lines))
    console.print(table)


class BoundedLine(NamedTuple):
    """One replay under an error bound, beside the best fixed threshold whose hits were no more often false."""

    order: int
    bound: float
    tally: Tally
    threshold: float | None
    fixed: Tally | None

    @property
    def is_kept(self) -> bool:
        """Whether the observed share may still be chance: of all hits, and of the semantic ones, which is stricter."""
        tally = self.tally
        return all(wilson(tally.false, trials)[0] <= self.bound for trials in (tally.hits, tally.semantic))

    def cells(self) -> Iterable[str]:
        tally, fixed = self.tally, self.fixed
        yield f"  {self.bound:.1%}, " + ("the file's order" if self.order == 0 else f"shuffle {self.order}")
        yield percent(tally.hit_rate)
        yield percent(tally.semantic_rate)
        yield percent(tally.explored / max(tally.requests, 1))
        yield with_interval(tally.false, tally.hits)
        yield with_interval(tally.false, tally.semantic)
        yield f"{tally.false_of_requests:.2%}"
        yield "yes" if self.is_kept else "[bold red]NO[/bold red]"
        yield "none" if fixed is None else f"{percent(fixed.hit_rate)} at {self.threshold:.2f}"
        yield times(tally.hits, fixed.hits if fixed else 0)


def show_bounded(groups: Mapping[str, Sequence[BoundedLine]], warm_up: int, console: Console) -> None:
    table = Table(
        title=f"streams: match.max_error after a warm-up of {warm_up} requests",
        caption="within: the lower end of both 95 % intervals is no more than the bound; "
        "explored: would-be hits that were forwarded to compare, which are misses; "
        "fixed: the best threshold alone whose hits were no more often false, on the same order",
    )
    table.add_column("stream, bound and order", no_wrap=True)
    for heading in (
        "hit rate",
        "semantic",
        "explored",
        "false/hits",
        "false/semantic hits",
        "/requests",
        "within",
        "fixed",
        "x hits",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, lines in groups.items():
        table.add_row(f"[bold]{escape(name)}[/bold]")
        for number, line in enumerate(lines, start=1):
            table.add_row(*line.cells(), end_section=number == len(lines))
    console.print(table)


def show_examples(title: str, hits: Sequence[FalseHit], number: int, console: Console) -> None:
    """The nearest false hits: what was asked, and the stored question that it was taken for."""
    console.rule(f"{title}: {min(number, len(hits))} of {len(hits)} false hits")
    for hit in hits[:number]:
        text = f"[dim]{hit.similarity:.3f}[/dim]  {escape(hit.asked)}  [dim]|[/dim]  {escape(hit.stored)}"
        console.print(text, soft_wrap=True, highlight=False)


def percent(rate: float) -> str:
    return f"{rate:.1%}"


def times(this: int, other: int) -> str:
    return f"{this / other:.2f}" if other else "-"


def with_interval(events: int, trials: int) -> str:
    low, high = wilson(events, trials)
    return f"{events / max(trials, 1):.2%} [dim]{low:.1%}-{high:.1%}[/dim]"
