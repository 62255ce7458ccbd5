"""What would become of a sample request: which route takes it and why, and which backends may answer it, or why not.

The rule: the planner decides, as it does for a real request, and what is said here only explains its decision. What
depends on the moment (health, load, the models that a backend lists) is not known without a running proxy; hours are.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from semcache.admit import ANONYMOUS, Admission
from semcache.backends.models import accepts
from semcache.backends.routing import BYTES_PER_TOKEN, Asking, Option, Way, why_not
from semcache.backends.state import BackendState
from semcache.backends.target import Target, targets_of
from semcache.config import Config, Guardrails, PoolChoice, Route
from semcache.errors import ConfigError, SemcacheError
from semcache.planning import Going, Planner
from semcache.types import Ask, Tenant, Traits
from semcache.wire import find_address, is_model_path, vendor_of

DEFAULT_PATH = "/v1/chat/completions"
_WORDS = "model path tenant prompt user at".split()


@dataclass(frozen=True, slots=True)
class Sample:
    """A request as it is written after --try."""

    path: str = DEFAULT_PATH
    model: str | None = None
    tenant: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)  # lower-case names
    prompt_tokens: int = 0
    user: str | None = None
    at: datetime | None = None  # when it is asked; None: now
    body: bytes | None = None  # a real one: model, user and size are read from it


@dataclass(frozen=True, slots=True)
class Passed:
    """A route that did not take it."""

    route: str
    because: str


@dataclass(frozen=True, slots=True)
class Candidate:
    """A backend of a pool of the route, with one of its keys."""

    name: str  # "local[0]"
    url: str
    region: str | None
    model: str | None  # what it is asked for; None: the model that the request names, or none
    obstacle: str | None  # why it is not asked; None: it is
    note: str = ""  # what is not known here


@dataclass(frozen=True, slots=True)
class Step:
    """A pool that is asked, in its turn."""

    pool: str
    balance: str
    stored_as: str | None  # the model under which answers from here are kept
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True, slots=True)
class Trial:
    """All that can be said of a sample. `refusal` is what the caller would be told, with `status`; then nothing is
    forwarded."""

    asked: Mapping[str, str]
    passed: tuple[Passed, ...] = ()
    route: str | None = None  # its name or its number
    rules: str = ""
    refusal: str | None = None
    status: int | None = None
    regions: tuple[str, ...] = ()  # that it is bound to; empty: none
    arm: str | None = None
    shares: Mapping[str, float] = field(default_factory=dict)  # of the split
    sticky: str | None = None
    steps: tuple[Step, ...] = ()
    order: str = "written"
    lookup: str = ""  # what the cache does, and under which model
    limits: Mapping[str, float] = field(default_factory=dict)
    guardrails: Mapping[str, Any] = field(default_factory=dict)
    flags: tuple[str, ...] = ()  # what they say of a real body

    @property
    def is_taken(self) -> bool:
        return self.route is not None and self.refusal is None


def read_sample(written: str, read_file: Callable[[str], bytes]) -> Sample:
    """`model=llama-3 tenant=shop header:X-Team=blue prompt=1200`, or with `@FILE` a request's body among these words.

    `read_file`: the bytes of a file by its name. Raises ConfigError.
    """
    try:
        words = shlex.split(written)
    except ValueError as exc:
        raise ConfigError(f"--try: {exc}") from exc
    sample, headers = Sample(), dict[str, str]()
    for word in words:
        if word.startswith("@"):
            sample = _of_file(sample, word[1:], read_file(word[1:]))
            headers |= sample.headers
            continue
        name, sign, value = word.partition("=")
        if not sign:
            raise ConfigError(f'--try: "{word}": write NAME=VALUE, or @FILE; there are {_known()}')
        if name.startswith("header:") and len(name) > len("header:"):
            headers[name.removeprefix("header:").lower()] = value
        else:
            sample = _with(sample, name, value)
    return replace(sample, headers=headers)


def _with(sample: Sample, name: str, value: str) -> Sample:
    if name not in _WORDS:
        raise ConfigError(f'--try: "{name}" is nothing a route is chosen by; there are {_known()}')
    if name == "prompt":
        if not (value.isascii() and value.isdigit() and len(value) < 12):
            raise ConfigError(f'--try: prompt={value}: write a number of tokens, such as "prompt=1200"')
        return replace(sample, prompt_tokens=int(value))
    if name == "at":
        try:
            moment = datetime.fromisoformat(value)
        except ValueError as exc:
            raise ConfigError(f'--try: at={value}: write a time such as "at=2026-03-01T23:30" (UTC)') from exc
        return replace(sample, at=moment if moment.tzinfo else moment.replace(tzinfo=UTC))
    if name == "path" and not value.startswith("/"):
        value = f"/{value}"
    changed: dict[str, Any] = {name: value or None}
    return replace(sample, **changed)


def _of_file(sample: Sample, name: str, content: bytes) -> Sample:
    """A file holds a request's body, or `{"path": ..., "headers": {...}, "tenant": ..., "body": {...}}`."""
    try:
        tree = json.loads(content)
    except ValueError as exc:
        raise ConfigError(f"--try: {name}: not JSON: {exc}") from exc
    if not isinstance(tree, dict):
        raise ConfigError(f"--try: {name}: not a JSON object")
    if "body" not in tree or not set(tree) <= {"body", "path", "headers", "tenant"}:
        return replace(sample, body=content)
    headers, body = tree.get("headers") or {}, tree["body"]
    if not isinstance(headers, dict) or not isinstance(body, dict):
        raise ConfigError(f"--try: {name}: headers and body must be JSON objects")
    named: dict[str, Any] = {key: str(tree[key]) for key in ("path", "tenant") if tree.get(key)}
    fields = {str(key).lower(): str(value) for key, value in headers.items()}
    return replace(sample, **named, headers=fields, body=json.dumps(body, ensure_ascii=False).encode())


def _known() -> str:
    return ", ".join(f"{word}=" for word in _WORDS) + " and header:NAME="


def try_route(config: Config, sample: Sample, now: datetime) -> Trial:
    """Raises ConfigError for a sample that cannot be: a tenant that is not there, a body that is no request."""
    planner = Planner(config, "")
    tenant = _tenant(config, sample)
    ask = _ask(sample)
    path = sample.path.partition("?")[0]
    size = sample.prompt_tokens or len(sample.body or b"") // BYTES_PER_TOKEN
    asking = Asking(ask.model or None, path, tenant, sample.headers, size)
    trial = Trial(_facts(config, asking, sample))
    if find_address(sample.path) is None and not is_model_path(path):
        return replace(trial, refusal="no such path here; the models are under /v1/", status=404)
    try:
        going = planner.find_route(asking, ask.dialect, ask)
    except SemcacheError as error:
        return replace(trial, passed=_passed(config, asking, None), refusal=error.message, status=error.status)
    route = going.route
    settings = next((one for one in config.tenants if one.name == tenant.id), None)
    trial = replace(
        trial,
        passed=_passed(config, asking, route),
        route=going.name,
        rules=rules_of(route),
        regions=tuple(sorted(going.regions)),
        arm=going.arm,
        shares={arm.name: arm.weight / sum(each.weight for each in route.split) for arm in route.split},
        sticky=route.sticky if route.split else None,
        order=route.order,
        lookup=_lookup(planner, config, sample, going, asking.model, tenant),
        limits=settings.limits.model_dump(exclude_none=True) if settings else {},
        guardrails=in_force(route.guardrails),
    )
    steps = _steps(config, going, asking.model, ask.dialect, (sample.at or now).timestamp())
    if isinstance(going.way, SemcacheError):
        trial = replace(trial, refusal=going.way.message, status=going.way.status)
    elif all(each.obstacle for step in steps for each in step.candidates):
        trial = replace(trial, refusal="no backend takes requests at this time", status=503)
    return replace(trial, steps=steps, flags=_flags(planner, sample, tenant))


def _tenant(config: Config, sample: Sample) -> Tenant:
    if sample.tenant is None:
        if config.tenants:
            names = ", ".join(tenant.name for tenant in config.tenants)
            raise ConfigError(f"--try: whose request is it? Write tenant=NAME; there are {names}")
        return ANONYMOUS
    try:
        return Admission(config.tenants).named(sample.tenant)
    except SemcacheError as error:
        raise ConfigError(f"--try: {error.message}") from error


def _ask(sample: Sample) -> Ask:
    """The request as its dialect reads it, or what of it a sample tells."""
    address = find_address(sample.path)
    if sample.body is not None and address is not None:
        try:
            return address.dialect.parse(address, sample.body, sample.headers)
        except SemcacheError as error:
            raise ConfigError(f"--try: {sample.path} would refuse this body: {error.message}") from error
    vendor = vendor_of(sample.path, sample.headers) if address is None else address.vendor
    model = sample.model or (address.model if address else None)
    return Ask(
        dialect=vendor,
        endpoint=address.endpoint if address else "",
        target=sample.path,
        model=model or "",
        question=repr(sample),
        context=b"",
        stream=False,
        include_usage=False,
        user=sample.user,
        traits=Traits(),
        body=sample.body or b"",
    )


def _facts(config: Config, asking: Asking, sample: Sample) -> Mapping[str, str]:
    facts = {"model": asking.model or "(none)", "path": asking.path}
    if config.tenants:
        facts["tenant"] = asking.tenant.id
    facts |= {f"header {name}": value for name, value in asking.headers.items()}
    if asking.prompt_tokens:
        facts["prompt"] = f"about {asking.prompt_tokens} tokens"
    if sample.at is not None:
        facts["at"] = sample.at.isoformat(timespec="minutes")
    return facts


def _passed(config: Config, asking: Asking, taken: Route | None) -> tuple[Passed, ...]:
    """The routes before the one that takes it, each with its first rule that does not fit."""
    passed = []
    for number, route in enumerate(config.routes):
        if route is taken:
            break
        if (because := why_not(route, asking)) is not None:
            passed.append(Passed(title_of(number, route), because))
    return tuple(passed)


def _lookup(planner: Planner, config: Config, sample: Sample, going: Going, asked: str | None, tenant: Tenant) -> str:
    """What the cache does with it, before anything is fetched."""
    route = going.route
    if find_address(sample.path) is None or asked is None:
        return "passes through: this path is not cached"
    if route.match.mode == "off":
        return "neither looked up nor kept (match.mode off)"
    if not planner.residency.may_store(going.regions):
        return f"neither looked up nor kept: the store is in {planner.residency.store}"
    model = going.way.model if isinstance(going.way, Way) and going.way.model else asked
    shared = {"tenant": f"within tenant {tenant.id}", "namespace": "within the namespace", "all": "by everybody"}
    does = "looked up, and forwarded all the same" if route.match.mode == "shadow" else "looked up"
    if not planner.residency.may_embed(going.regions):
        does += f", by equal requests alone as the embedder is in {planner.residency.embedder}"
    return f"{does}; as {model}, shared {shared[route.cache.sharing]}"


def _steps(config: Config, going: Going, asked: str | None, dialect: str, unix_s: float) -> tuple[Step, ...]:
    arm = next((arm for arm in going.route.split if arm.name == going.arm), None)
    choices = (arm.pools if arm else going.route.pools) or tuple(PoolChoice(pool=name) for name in config.pools)
    model = (arm.model if arm else None) or going.route.model
    options = list(going.way.options) if isinstance(going.way, Way) else []
    spoken = {backend.dialect for pool in config.pools.values() for backend in pool.backends}
    steps = []
    for choice in choices:
        wanted = choice.model or model
        is_next = options and options[0].pool == choice.pool and options[0].model in (wanted, wanted or asked)
        option = options.pop(0) if is_next else None
        pool = config.pools[choice.pool]
        candidates = []
        for target in targets_of(choice.pool, pool):
            chosen = _in(option, target)
            obstacle: str | None
            if chosen is None:
                obstacle = _obstacle(target, dialect, wanted or asked, going.regions, len(spoken) == 1)
            else:
                obstacle = _off_duty(BackendState(target, pool), unix_s)
            backend = target.backend
            note = "if its own list has the model" if backend.models == "ask" and obstacle is None else ""
            name = chosen.model if chosen is not None else None
            candidates.append(Candidate(target.name, backend.url, backend.region, name, obstacle, note))
        steps.append(Step(choice.pool, pool.balance, wanted or asked, tuple(candidates)))
    return tuple(steps)


def _in(option: Option | None, target: Target) -> Target | None:
    """The target as the planner has chosen it, with the model that it is asked for."""
    return next((one for one in option.targets if one.name == target.name), None) if option else None


def _obstacle(target: Target, dialect: str, model: str | None, regions: frozenset[str], speaks_all: bool) -> str:
    """Why a backend is not one of the way."""
    backend = target.backend
    if backend.dialect != dialect and not speaks_all:
        return f"it speaks the {backend.dialect} dialect, and this is a request in {dialect}'s"
    if model and accepts(backend.models, model) is None:
        return f"it does not serve {model}"
    place = f"is in {backend.region}" if backend.region else "names no region"
    return f"it {place}, and the request is bound to {', '.join(sorted(regions))}"


def _off_duty(state: BackendState, unix_s: float) -> str | None:
    if state.is_on_duty(unix_s):
        return None
    backend = state.target.backend
    if backend.drain:
        return "it is drained"
    return f"it is off duty: its hours are {', '.join(backend.hours)} in {backend.timezone}"


def _flags(planner: Planner, sample: Sample, tenant: Tenant) -> tuple[str, ...]:
    """What guardrails say of a real body."""
    address = find_address(sample.path)
    if sample.body is None or address is None:
        return ()
    inspection = planner.plan(address, sample.headers, sample.body, tenant, "").inspection
    return inspection.flags


# What is said of a route and a pool without a sample, too


def title_of(number: int, route: Route) -> str:
    return f"routes[{number}]" + (f" {route.name}" if route.name else "")


def rules_of(route: Route) -> str:
    """All that must fit, in words."""
    rules = []
    if route.models != ("*",):
        rules.append(f"model {' or '.join(route.models)}")
    for word, values in (("path", route.paths), ("tenant", route.tenants)):
        if values:
            rules.append(f"{word} {' or '.join(values)}")
    rules += [f"header {name} like {glob}" for name, glob in route.headers.items()]
    if route.tenant_regions:
        rules.append(f"a tenant of {' or '.join(route.tenant_regions)}")
    if route.prompt.min or route.prompt.max is not None:
        most = f" to {route.prompt.max}" if route.prompt.max is not None else " or more"
        rules.append(f"prompt of {route.prompt.min}{most} tokens")
    return ", ".join(rules) or "any request"


def in_force(guardrails: Guardrails) -> Mapping[str, Any]:
    """What is switched on, as it is written."""
    found = {
        name: getattr(guardrails, name)
        for name in Guardrails.model_fields
        if getattr(guardrails, name) not in ("off", None) and name not in ("hook", "extraction_per_hour")
    }
    return found | ({"hook": guardrails.hook.url} if guardrails.hook else {})
