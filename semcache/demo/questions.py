"""The made-up shop's questions, read from questions.yaml: which wordings may share an answer, and which may not.

A group is a set of wordings with one right answer. An answer written for one group and served to another is a false
hit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from ruamel.yaml import YAML


@dataclass(frozen=True, slots=True)
class Group:
    name: str  # "refund-when", "order-status/48213", "trap-3-negation/b"
    kind: str  # "topic", "template", or the kind of a trap: "negation", "number", "product", ...
    family: str  # groups of one family look alike: a template's fillings, the sides of a trap
    wordings: tuple[str, ...]

    @property
    def is_trap(self) -> bool:
        return self.kind != "topic"


def load_groups() -> list[Group]:
    text = files("semcache.demo").joinpath("questions.yaml").read_text(encoding="utf-8")
    raw = YAML(typ="safe", pure=True).load(text)
    return [*_topics(raw["topics"]), *_filled(raw["templates"]), *_traps(raw["traps"])]


def _topics(raw: dict[str, list[str]]) -> Iterator[Group]:
    for name, wordings in raw.items():
        yield Group(name, "topic", name, tuple(wordings))


def _filled(raw: dict[str, Any]) -> Iterator[Group]:
    for name, template in raw.items():
        ((slot, values),) = template["slots"].items()
        for value in values:
            wordings = tuple(wording.format_map({slot: value}) for wording in template["wordings"])
            yield Group(f"{name}/{value}", "template", name, wordings)


def _traps(raw: list[dict[str, Any]]) -> Iterator[Group]:
    for number, trap in enumerate(raw, start=1):
        family = f"trap-{number}-{trap['kind']}"
        for side, wordings in zip("abc", trap["groups"], strict=False):
            yield Group(f"{family}/{side}", trap["kind"], family, tuple(wordings))
