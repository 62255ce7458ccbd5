"""The settings: one YAML file -> frozen models, in settings/, with unit, default and reason beside each field.

Unknown keys are errors, `${NAME}` and `${NAME:-default}` are taken from the environment, and every complaint names the
path, the value and the remedy. The file is a public contract: it may grow, it never breaks.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Set
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import Field, TypeAdapter, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from semcache.errors import ConfigError
from semcache.settings.guardrails import Guardrails, Hook
from semcache.settings.primitives import Seconds, Section
from semcache.settings.routing import (
    DEFAULT_POOLS,
    Arm,
    Backend,
    Health,
    Hedge,
    Overflow,
    Pool,
    PoolChoice,
    Prefix,
    Price,
    PromptSize,
    Queue,
    Retry,
    Route,
)
from semcache.settings.serving import AnswersJudge, Cache, Embedder, Match, Server, Tls
from semcache.settings.tenants import Audit, Chain, Jwt, Keys, Limits, TenantSettings, Usage

__all__ = [
    "DEFAULT_POOLS",
    "AnswersJudge",
    "Arm",
    "Audit",
    "Backend",
    "Cache",
    "Chain",
    "Config",
    "Embedder",
    "Guardrails",
    "Health",
    "Hedge",
    "Hook",
    "Jwt",
    "Keys",
    "Limits",
    "Match",
    "Overflow",
    "Pool",
    "PoolChoice",
    "Prefix",
    "Price",
    "PromptSize",
    "Queue",
    "Retry",
    "Route",
    "Server",
    "TenantSettings",
    "Tls",
    "Usage",
    "build",
    "load",
    "parse",
    "read_duration",
]

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")

_ROUTE_ONLY_GLOBAL = {"store", "max_entries", "region"}  # one store serves all routes
_INHERITED = ("cache", "match", "guardrails")


class Config(Section):
    server: Server = Server()
    cache: Cache = Cache()
    embedder: Embedder = Embedder()
    match: Match = Match()
    pools: dict[str, Pool] = Field(default=DEFAULT_POOLS, min_length=1)
    routes: tuple[Route, ...] = ()
    guardrails: Guardrails = Guardrails()
    tenants: tuple[TenantSettings, ...] = ()
    keys: Keys | None = None
    jwt: Jwt | None = None
    chain: Chain | None = None
    usage: Usage = Usage()
    audit: Audit | None = None  # null: nothing is written; a path comes by default with the section

    @model_validator(mode="before")
    @classmethod
    def _inherit(cls, raw: Any) -> Any:
        """A route's `cache`, `match` and `guardrails` are the global sections with the fields it names replaced."""
        if not isinstance(raw, Mapping) or not isinstance(raw.get("routes") or (), (list, tuple)):
            return raw
        if not all(isinstance(raw.get(section, {}) or {}, Mapping) for section in _INHERITED):
            return raw  # the field's own check says what is wrong
        routes = []
        for number, route in enumerate(raw.get("routes") or [{}]):
            if isinstance(route, Mapping):
                if not all(isinstance(route.get(section) or {}, Mapping) for section in _INHERITED):
                    routes.append(route)
                    continue
                for name in _ROUTE_ONLY_GLOBAL & set(route.get("cache") or {}):
                    raise ValueError(f"routes[{number}].cache.{name} belongs in the global cache section")
                own = {section: {**(raw.get(section) or {}), **(route.get(section) or {})} for section in _INHERITED}
                route = {**route, **own}
            routes.append(route)
        return {**raw, "routes": routes}

    @model_validator(mode="after")
    def _one_judge(self) -> Config:
        """Its words become evidence, and evidence of two judges cannot be compared."""
        files = {route.match.judge_weights for route in self.routes if route.match.judge is not None}
        files |= {route.match.judge_weights for route in self.routes if route.match.max_error is not None}
        if len(files) > 1:
            raise ValueError("match.judge_weights: routes name different files; one judge serves all of them")
        return self

    @model_validator(mode="after")
    def _pools_exist(self) -> Config:
        for number, route in enumerate(self.routes):
            places = [("pools", route.pools), *((f"split[{i}].pools", arm.pools) for i, arm in enumerate(route.split))]
            for place, choices in places:
                for choice in choices:
                    if choice.pool not in self.pools:
                        known = ", ".join(self.pools)
                        raise ValueError(f'routes[{number}].{place}: "{choice.pool}" is not a pool; there are {known}')
            judge = route.match.answers_judge
            if judge is not None and judge.pool not in self.pools:
                known = ", ".join(self.pools)
                where = "match" if judge == self.match.answers_judge else f"routes[{number}].match"
                raise ValueError(f'{where}.answers_judge.pool: "{judge.pool}" is not a pool; there are {known}')
        return self

    @model_validator(mode="after")
    def _tenants_are_told_apart(self) -> Config:
        """A key or a name that two tenants have would give one of them the other's answers."""
        names: set[str] = set()
        owners: dict[str, int] = {}
        for number, tenant in enumerate(self.tenants):
            if tenant.name in names:
                raise ValueError(f'tenants[{number}].name: "{tenant.name}" is taken: two tenants need two names')
            names.add(tenant.name)
            for key in tenant.keys:
                owner = owners.setdefault(key.get_secret_value(), number)
                if owner != number:
                    raise ValueError(f"tenants[{number}].keys: one of them is a key of tenants[{owner}] too")
        return self

    @model_validator(mode="after")
    def _tenants_can_come_in(self) -> Config:
        """Raises for names of tenants and routes that are not there, and for a tenant that nobody could be."""
        tenants = {tenant.name for tenant in self.tenants}
        routes = {route.name for route in self.routes if route.name is not None}
        if len(routes) < sum(route.name is not None for route in self.routes):
            raise ValueError("routes: two of them have the same name")
        for number, route in enumerate(self.routes):
            if unknown := set(route.tenants) - tenants:
                raise ValueError(f'routes[{number}].tenants: no tenant is called "{min(unknown)}"')
        for number, tenant in enumerate(self.tenants):
            if not tenant.keys and self.keys is None and self.jwt is None and self.chain is None:
                raise ValueError(f"tenants[{number}].keys: it has none, and there are no keys: or jwt: sections either")
            if unknown := set(tenant.routes) - routes:
                raise ValueError(f'tenants[{number}].routes: no route is called "{min(unknown)}"')
        for name, section in (("keys", self.keys), ("jwt", self.jwt)):
            if section is not None and not self.tenants:
                raise ValueError(f"{name}: callers are tenants, and there are none; write tenants:")
        return self


def load(
    path: Path | None, environ: Mapping[str, str] = os.environ, options: Mapping[str, Any] | None = None
) -> Config:
    """Read and check a file, with options of the command line over it; no file: the embedded default.

    Raises ConfigError with one line per complaint.
    """
    if path is None:
        return parse("", environ, "command line", options)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{path}: cannot be read: {exc}") from exc
    return parse(text, environ, str(path), options)


def parse(
    text: str,
    environ: Mapping[str, str] = os.environ,
    name: str = "config",
    options: Mapping[str, Any] | None = None,
) -> Config:
    try:
        raw = YAML(typ="safe", pure=True).load(text)
    except (YAMLError, ValueError) as exc:  # ValueError: what looks like a date and is none, a number without end
        raise ConfigError(f"{name}: not valid YAML: {' '.join(str(exc).split())}") from exc
    except RecursionError as exc:
        raise ConfigError(f"{name}: not valid YAML: lists or mappings are nested too deeply") from exc
    if raw is None:
        raw = {}
    if not isinstance(raw, dict):
        raise ConfigError(
            f"{name}: the file must hold sections such as `server:` and `cache:`, not a {type(raw).__name__}"
        )
    try:
        substituted = _substitute(raw, environ, "")
    except RecursionError as exc:  # an alias for what it is part of
        raise ConfigError(f"{name}: lists or mappings are nested too deeply") from exc
    return build(_override(substituted, options or {}), name)


def build(raw: Mapping[str, Any], name: str = "config") -> Config:
    """Check settings that are already a mapping. Raises ConfigError."""
    try:
        return Config.model_validate(raw)
    except ValidationError as exc:
        errors = exc.errors(include_url=False)
        wrong = {error["loc"] for error in errors}
        # A route inherits what is wrong globally; said once it is enough.
        own = [error for error in errors if error["loc"][:1] != ("routes",) or error["loc"][2:] not in wrong]
        # A list whose only item is wrong is counted as empty, too: that is no second mistake.
        own = [error for error in own if error["type"] != "too_short" or not _holds_a_mistake(error["loc"], wrong)]
        raise ConfigError("\n".join(f"{name}: {_complaint(error, raw)}" for error in own)) from exc


def _holds_a_mistake(place: tuple[str | int, ...], wrong: Set[tuple[str | int, ...]]) -> bool:
    return any(len(each) > len(place) and each[: len(place)] == place for each in wrong)


def _override(raw: dict[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Put options of the command line over the file: those of `server`, and upstream, store and threshold."""
    sections = {"store": "cache", "threshold": "match"}
    for name, value in options.items():
        if name == "upstream":
            raw = {**raw, "pools": {"upstream": {"backends": [{"url": value}]}}}
            if isinstance(routes := raw.get("routes"), list):
                raw["routes"] = [{**route, "pools": []} if isinstance(route, dict) else route for route in routes]
            continue
        section = sections.get(name, "server")
        settings = raw.get(section)
        if settings is None or isinstance(settings, dict):  # else the check of the file says what is wrong
            raw = {**raw, section: {**(settings or {}), name: value}}
    return raw


def read_duration(text: str, name: str) -> float:
    """Seconds. Raises ConfigError naming the option."""
    try:
        return float(TypeAdapter(Seconds).validate_python(text))
    except ValidationError as exc:
        raise ConfigError(f"{name}: {text!r}: write a duration such as 30s, 10m or 250ms") from exc


def _substitute(value: Any, environ: Mapping[str, str], path: str) -> Any:
    """Put environment variables into string values; never into keys or structure, so a value cannot add settings."""
    if isinstance(value, dict):
        return {key: _substitute(item, environ, f"{path}.{key}".lstrip(".")) for key, item in value.items()}
    if isinstance(value, list):
        return [_substitute(item, environ, f"{path}[{number}]") for number, item in enumerate(value)]
    if not isinstance(value, str):
        return value

    def variable(found: re.Match[str]) -> str:
        name, default = found[1], found[2]
        if name in environ:
            return environ[name] or (default or "")
        if default is None:
            raise ConfigError(f"{path}: environment variable {name} is not set; set it, or write ${{{name}:-default}}")
        return default

    return _VARIABLE.sub(variable, value)


def _complaint(error: Any, raw: Any) -> str:
    path, value = "", raw
    for part in error["loc"]:
        path += f"[{part}]" if isinstance(part, int) else f".{part}"
        try:
            value = value[part]
        except (KeyError, IndexError, TypeError):
            value = None
    path = path.lstrip(".")
    message = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        return f"{path}: no such setting{_meant(error['loc'])}; see config/reference.yaml for those there are"
    if error["type"] in ("tuple_type", "list_type"):
        message = f"write a list, such as [{value}]" if isinstance(value, str) else "write a list, such as [a, b]"
    elif error["type"] == "missing":
        message = "must be written out, it has no default"
    name = path.rpartition(".")[2].partition("[")[0]
    is_secret = name in ("key", "keys", "api_key", "api_keys", "admin_token", "pepper", "secret") or "@" in str(
        value
    )  # user:password@host
    if name in _SHARES:
        message += "; it is a share: 0.01 is 1 %"
    shown = "" if is_secret or value is None or isinstance(value, (dict, list)) else f"{value!r}: "
    return f"{path}: {shown}{message}" if path else message


_SHARES = ("max_error", "explore", "budget", "panic")
_SECTIONS: Mapping[str, type[Section]] = {
    "server": Server,
    "tls": Tls,
    "cache": Cache,
    "embedder": Embedder,
    "match": Match,
    "answers_judge": AnswersJudge,
    "backends": Backend,
    "price": Price,
    "health": Health,
    "queue": Queue,
    "prefix": Prefix,
    "overflow": Overflow,
    "routes": Route,
    "split": Arm,
    "prompt": PromptSize,
    "retry": Retry,
    "hedge": Hedge,
    "guardrails": Guardrails,
    "hook": Hook,
    "tenants": TenantSettings,
    "limits": Limits,
    "keys": Keys,
    "jwt": Jwt,
    "chain": Chain,
    "usage": Usage,
    "audit": Audit,
}


def _meant(place: tuple[str | int, ...]) -> str:
    """`, did you mean threshold?`, where a setting of the same section is written much alike."""
    *parents, name = [part for part in place if isinstance(part, str)]
    is_pool = parents[:1] == ["pools"] and len(parents) == 2
    section = Config if not parents else Pool if is_pool else _SECTIONS.get(parents[-1])
    near = get_close_matches(name, section.model_fields, 1) if section else []
    return f", did you mean {near[0]}?" if near else ""
