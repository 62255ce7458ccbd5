"""The settings: one YAML file -> frozen models. Unit, default and reason stand beside each field.

Unknown keys are errors, `${NAME}` and `${NAME:-default}` are taken from the environment, and every complaint names the
path, the value and the remedy. The file is a public contract: it may grow, it never breaks.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, get_args
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    SecretStr,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from semcache.errors import ConfigError

_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)?")
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")


def _seconds(value: object) -> object:
    if isinstance(value, str):
        found = _DURATION.fullmatch(value.strip())
        if not found:
            raise ValueError("write a duration such as 30s, 10m, 24h, 7d, 250ms, or a number of seconds")
        return float(found[1]) * _UNITS_S[found[2] or "s"]
    return value


def _context(value: object) -> object:
    """`last: N` comes as a mapping, or as a text, for YAML reads `context: last: 3` as neither; it becomes N."""
    if isinstance(value, str):
        value = value.strip()
        if value in ("equal", "similar"):
            return value
    found: object = value.get("last") if isinstance(value, Mapping) and set(value) == {"last"} else None
    if isinstance(value, str) and (written := re.fullmatch(r"last:? *([0-9]{1,4})", value)):
        found = int(written[1])
    if type(found) is int and 1 <= found <= 1000:
        return found
    raise ValueError('write equal, similar, or "last: N" with a number from 1 to 1000, such as "last: 3"')


Seconds = Annotated[float, BeforeValidator(_seconds), Field(ge=0, allow_inf_nan=False)]
Port = Annotated[int, Field(ge=0, le=65535)]  # 0: any free port, printed at the start
Guard = Literal[
    "numbers",
    "units",
    "dates",
    "comparison",
    "negation",
    "roles",
    "question",
    "entities",
    "code",
    "language",
]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


def _octal(value: object) -> object:
    if not isinstance(value, str) or not re.fullmatch("0?[0-7]{3}", value):
        raise ValueError('write permissions in quotes and octal digits, such as "0660"')  # unquoted they are a decimal
    return value


class Tls(_Section):
    certificate: str = Field(min_length=1)  # a PEM file: the server's own certificate, then those that vouch for it
    key: str = Field(min_length=1)  # a PEM file, not encrypted


class Server(_Section):
    host: str | None = "127.0.0.1"  # local only: a cache without keys must not be open to a network by default
    port: Port = 8080
    tls: Tls | None = None  # for host and port; read again when the files change
    unix_socket: str | None = Field(default=None, min_length=1)  # a path, plain HTTP; host null: there alone
    unix_socket_mode: Annotated[str, BeforeValidator(_octal)] = "0660"  # its owner and group: as open as a local port
    admin_host: str = "127.0.0.1"  # metrics and admin calls have a listener of their own
    admin_port: Port = 8081
    admin_token: SecretStr = SecretStr("")  # empty: only /metrics, /healthz and /readyz answer from other hosts
    workers: int = Field(default=1, ge=1, le=64)  # processes sharing the port; each embeds and follows the same store
    max_body: ByteSize = ByteSize(32 * 1024 * 1024)  # 32 MiB: the largest request the vendors accept
    max_upload: ByteSize = ByteSize(520 * 1024 * 1024)  # of what passes as it comes: a file of 512 MB, and its form
    drain: Seconds = 600.0  # after SIGTERM running streams get this long: the longest answer an SDK waits for
    header_timeout: Seconds = 10.0  # from the first byte of a request to the end of its headers
    body_timeout: Seconds = 30.0  # for a body of up to 1 MB; larger ones get a second more per 64 KB
    keepalive: Seconds = 75.0  # idle connections are closed after this
    send_timeout: Seconds = 60.0  # a reader that takes nothing for this long is cut
    compress_from: ByteSize | None = ByteSize(16_000)  # of JSON: what is smaller arrives in one round trip anyway
    max_connections: int = Field(default=0, ge=0)  # 0: what the open-file limit allows, less 64 kept for the store
    request_log: str = "stdout"  # one JSON line a request: stdout, off, or a path that may be rotated away
    log_prompts: bool = False  # the request log then holds questions: personal data

    @model_validator(mode="after")
    def _listens_somewhere(self) -> Server:
        if self.host is None and self.unix_socket is None:
            raise ValueError("host is null and there is no unix_socket: nobody could ask anything")
        if self.host is None and self.tls is not None:
            raise ValueError("tls is for host and port, and host is null: a unix_socket is on this machine alone")
        return self


class Cache(_Section):
    store: str = "sqlite:./var/semcache.db"  # sqlite:PATH | memory:   (redis:// comes later)
    ttl: Seconds = 86400.0  # a day: long enough to pay, short enough to forget a mistake
    # Of questions about now ("today", "latest", "weather"); short enough to be near the truth. See match.time_bound.
    time_bound_ttl: Seconds = 600.0
    grace: Seconds = 600.0  # past ttl an answer is still given for this long while one refresh runs
    max_entries: int = Field(default=1_000_000, ge=1)  # each about 3 KB on disk, and 1.3 to 2.3 KB in memory
    max_answer: ByteSize = ByteSize(1024 * 1024)  # longer answers are relayed, not kept
    sharing: Literal["tenant", "namespace", "all"] = "tenant"  # who may get whose answers; tenant: keys never share
    # Where answers are shared: so many tenants must have fetched the same answer to the same question before others get
    # it. 1: shared at once, since every tenant is one the operator lists; more: one key alone plants nothing.
    min_uses: int = Field(default=1, ge=1, le=16)
    # Of one tenant, in each worker; past it answers are relayed, not kept. None: a key may be a whole service, and only
    # who runs it knows how much that asks.
    inserts_per_minute: int | None = Field(default=None, ge=1)
    replay: Literal["instant", "recorded"] | Annotated[float, Field(gt=0)] = "instant"  # number: tokens per second
    identity: Literal["fresh", "original"] = "fresh"  # a hit's id and created: clients may treat ids as unique
    usage: Literal["original", "zero"] = "original"  # a hit's token counts: clients meter by them; zero: what it cost
    store_tools: bool = False  # keep answers that call tools (exact tier only): a replayed call acts again
    transcriptions: bool = False  # keep transcripts, for equal audio: the upload is held in memory to be read
    on_client_gone: Literal["cancel", "finish"] = "cancel"  # a fetch nobody waits for: tokens cost money

    @field_validator("store")
    @classmethod
    def _is_built(cls, store: str) -> str:
        if store != "memory:" and not re.match("sqlite:.", store):
            scheme = store.partition(":")[0]  # the rest may hold a password
            raise ValueError(f'this version has no store "{scheme}": write sqlite:PATH or memory:')
        return store


class Embedder(_Section):
    model: str = "all-MiniLM-L6-v2"  # an installed model, a folder, or a hub name for sentence-transformers
    engine: Literal["onnx", "torch", "openai"] = "onnx"  # onnx: int8, no torch while serving
    url: str | None = None  # engine openai: "http://127.0.0.1:8002/v1"
    api_key: SecretStr = SecretStr("")  # engine openai
    dimensions: int | None = Field(default=None, ge=1)  # engine openai: asked of the server, and checked
    window: int = Field(default=512, ge=1)  # engine openai: tokens the model reads (local models know theirs)
    sessions: Annotated[int, Field(ge=1)] | Literal["auto"] = (
        "auto"  # onnx: one-thread sessions in parallel; auto: one per core
    )
    batch: int = Field(default=32, ge=1)  # torch, openai: texts per call
    max_wait: Seconds = 0.002  # torch, openai: how long a batch waits to fill
    deadline: Seconds = 0.25  # past it the request is a BYPASS, never a wait
    max_queue: int = Field(default=1024, ge=1)  # questions waiting; one more is a BYPASS
    remember: int = Field(default=10_000, ge=0)  # recently embedded texts kept, 1.6 KB each

    @model_validator(mode="after")
    def _remote_has_url(self) -> Embedder:
        if self.engine == "openai" and not self.url:
            raise ValueError('engine openai needs a url, for instance "http://127.0.0.1:8002/v1"')
        return self


class AnswersJudge(_Section):
    """A model that says whether two answers say the same, where texts and vectors leave a doubt."""

    pool: str = Field(min_length=1)  # it is asked with the keys of this pool's backends, never with a caller's
    model: str = Field(min_length=1)
    deadline: Seconds = 30.0  # nobody waits for it but the next comparison
    per_hour: int = Field(default=100, ge=1)  # in each worker; past it a doubt stays one


class Match(_Section):
    mode: Literal["serve", "shadow", "off"] = "serve"  # shadow: look up, forward all the same, compare
    threshold: float = Field(default=0.90, ge=0, le=1)  # cosine; see docs for the error rates of each value
    # Of the answers served as semantic hits, at most this share is wrong, with 95 % confidence: semcache learns from
    # evidence which candidates keep that, and threshold and judge are not asked. null: the threshold decides.
    max_error: Annotated[float, Field(gt=0, le=0.5)] | None = None
    explore: float = Field(default=0.05, ge=0, le=0.5)  # of would-be hits: this share at most is forwarded to learn
    explore_usd: Annotated[float, Field(ge=0)] | None = None  # a day, spent on exploring by a process; null: no limit
    guards: tuple[Guard, ...] = get_args(Guard)  # asked in this order; docs/decisions.md has what each does
    # The least probability, of the pair judge, that a stored answer serves; null: it is not asked.
    judge: Annotated[float, Field(ge=0, le=1)] | None = None
    judge_weights: str | None = None  # a file of `semcache tune train`; null: the weights that come with semcache
    # A cross-encoder that reads both questions together, at milliseconds a pair: of `semcache tune train-reranker`, or
    # any sentence-transformers CrossEncoder, by folder or hub name. null: none. Asked last, of what guards let pass.
    reranker: str | None = Field(default=None, min_length=1)
    reranker_min: float = Field(default=0.9, ge=0, le=1)  # its least probability; other models want other values
    # Cosines in which its word counts instead of the threshold's: below the first nothing is a hit, from the second on
    # it is not asked. All the way up by default, for twins ("turn it on", "turn it off") are nearer than paraphrases.
    reranker_band: tuple[float, float] = (0.80, 1.0)
    reranker_deadline: Seconds = 0.25  # for all candidates of a question; past it those left are refused
    neighbours: int = Field(
        default=4, ge=1, le=64
    )  # candidates looked at: the second may pass where a guard vetoed the first
    # How the turns before the question count. equal: as everything else. similar: near is enough, by a vector of their
    # own, and without a guard's objection. N (written `last: N`): the last N are equal, older ones do not count.
    context: Annotated[Literal["equal", "similar"] | int, BeforeValidator(_context)] = "equal"
    # Of `similar`: the least cosine of the turns. Above the question's, for what was said before is longer, and so
    # differs by more before its vector does.
    context_threshold: float = Field(default=0.95, ge=0, le=1)
    # Questions about now. exact: only the exact tier, and cache.time_bound_ttl; serve: as any other.
    time_bound: Literal["exact", "serve"] = "exact"
    # Questions with data of somebody, or about the asker's own affairs ("my balance"). exact: only the exact tier, of
    # the same user where requests name one; private: and nothing at all where they do not; serve: as any other.
    personal: Literal["exact", "private", "serve"] = "exact"
    max_temperature: float = Field(default=1.0, ge=0)  # above it a request wants variety: exact tier only
    # Hold fresh answers against stored ones that were near. auto: in mode shadow, and for max_error; comparing costs
    # some milliseconds of the embedder, after the answer has left.
    learn: Literal["auto", "always", "off"] = "auto"
    # Cosines of two answers: from the first on they say the same, below the second they do not, between is doubt.
    answers_alike: float = Field(default=0.85, ge=0, le=1)
    answers_differ: float = Field(default=0.60, ge=0, le=1)
    answers_judge: AnswersJudge | None = None  # none: of a doubt nothing is learned

    @model_validator(mode="after")
    def _cuts_are_in_order(self) -> Match:
        if self.answers_differ > self.answers_alike:
            raise ValueError("answers_differ is above answers_alike: two answers cannot differ and be alike")
        if self.max_error is not None and self.learn == "off":
            raise ValueError("max_error learns from comparing answers, and learn is off: write learn: auto")
        low, high = self.reranker_band
        if not 0 <= low <= high <= 1:
            raise ValueError("reranker_band is two cosines from 0 to 1, the lower one first, such as [0.80, 1.0]")
        return self


class Backend(_Section):
    url: str
    api_key: SecretStr = SecretStr("")  # empty: the caller's own key is passed through
    weight: float = Field(default=1, gt=0)
    region: str | None = None
    dialect: Literal["openai", "azure", "anthropic", "ollama"] = "openai"  # what it speaks, and so what it is sent
    stream_usage: bool = (
        True  # ask for usage in streams (`stream_options.include_usage`); false for servers that refuse it
    )
    # It ends its streams with [DONE]. False for servers that do not (transformers serve): an end that the framing
    # proves then counts, after a finish reason for each choice. Not the default, as half answers would be kept.
    stream_done: bool = True

    @field_validator("url")
    @classmethod
    def _is_a_base_url(cls, url: str) -> str:
        if not re.match(r"https?://[^/\s]+", url):
            raise ValueError('this has no http(s) scheme: write for instance "http://127.0.0.1:8000/v1"')
        parts = urlsplit(url)
        if parts.username is not None or parts.query or parts.fragment:
            raise ValueError('write the base URL alone, such as "http://127.0.0.1:8000/v1"; a key goes into api_key')
        try:
            parts.port  # noqa: B018  # read for its check: 0 to 65535
        except ValueError as exc:
            raise ValueError("this has no valid port") from exc
        return url.rstrip("/")


class Pool(_Section):
    backends: tuple[Backend, ...] = Field(min_length=1)
    balance: Literal["least-load", "prefix", "weighted", "latency"] = "least-load"
    connect: Seconds = 5.0
    first_byte: Seconds = 120.0  # to the first event: a long prompt on a busy GPU
    between_bytes: Seconds = 60.0  # silence inside an answer
    max_connections: int = Field(default=1000, ge=1)  # to each backend


# Without a config: the vendors, with the caller's own key.
DEFAULT_POOLS = {
    "openai": Pool(backends=(Backend(url="https://api.openai.com/v1"),)),
    "anthropic": Pool(backends=(Backend(url="https://api.anthropic.com/v1", dialect="anthropic"),)),
}


class Route(_Section):
    models: tuple[str, ...] = Field(default=("*",), min_length=1)  # globs
    pools: tuple[str, ...] = ()  # in order of preference; empty: every pool
    cache: Cache = Cache()  # written: the fields that differ; read: the whole section
    match: Match = Match()


class Limits(_Section):
    requests_per_minute: int | None = Field(default=None, ge=1)
    tokens_per_minute: int | None = Field(default=None, ge=1)
    usd_per_day: float | None = Field(default=None, gt=0)


class TenantSettings(_Section):
    name: str = Field(min_length=1)
    keys: tuple[SecretStr, ...] = Field(min_length=1)
    regions: tuple[str, ...] = ()
    namespaces: tuple[str, ...] = ()
    limits: Limits = Limits()

    @field_validator("keys")
    @classmethod
    def _not_empty(cls, keys: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        if not all(key.get_secret_value() for key in keys):
            raise ValueError("a key is empty: is its environment variable set?")
        return keys


class Audit(_Section):
    path: str = "./var/audit.jsonl"


_ROUTE_ONLY_GLOBAL = {"store", "max_entries"}  # one store serves all routes


class Config(_Section):
    server: Server = Server()
    cache: Cache = Cache()
    embedder: Embedder = Embedder()
    match: Match = Match()
    pools: dict[str, Pool] = Field(default=DEFAULT_POOLS, min_length=1)
    routes: tuple[Route, ...] = ()
    tenants: tuple[TenantSettings, ...] = ()
    audit: Audit = Audit()

    @model_validator(mode="before")
    @classmethod
    def _inherit(cls, raw: Any) -> Any:
        """A route's `cache` and `match` are the global sections with the fields it names replaced."""
        if not isinstance(raw, Mapping) or not isinstance(raw.get("routes") or (), (list, tuple)):
            return raw
        if not all(isinstance(raw.get(section, {}) or {}, Mapping) for section in ("cache", "match")):
            return raw  # the field's own check says what is wrong
        routes = []
        for number, route in enumerate(raw.get("routes") or [{}]):
            if isinstance(route, Mapping):
                if not all(isinstance(route.get(section) or {}, Mapping) for section in ("cache", "match")):
                    routes.append(route)
                    continue
                for name in _ROUTE_ONLY_GLOBAL & set(route.get("cache") or {}):
                    raise ValueError(f"routes[{number}].cache.{name} belongs in the global cache section")
                own = {
                    section: {**(raw.get(section) or {}), **(route.get(section) or {})}
                    for section in ("cache", "match")
                }
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
            for name in route.pools:
                if name not in self.pools:
                    raise ValueError(
                        f'routes[{number}].pools: "{name}" is not a pool; there are {", ".join(self.pools)}'
                    )
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

    def without_effect(self) -> list[str]:
        """Settings that are accepted and do nothing yet, one line each: an operator must not rely on them."""
        lines = []
        if "audit" in self.model_fields_set:
            lines.append("audit: the audit log comes later")
        for number, tenant in enumerate(self.tenants):
            if tenant.limits != Limits():
                lines.append(f"tenants[{number}].limits: requests and money are not limited by this version")
        for name, pool in self.pools.items():
            if pool.balance != "least-load" or len({b.weight for b in pool.backends}) > 1:
                lines.append(f"pools.{name}: backends are tried in the order written; balance and weight come later")
        return lines


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
    except YAMLError as exc:
        raise ConfigError(f"{name}: not valid YAML: {' '.join(str(exc).split())}") from exc
    if raw is None:
        raw = {}
    if not isinstance(raw, dict):
        raise ConfigError(
            f"{name}: the file must hold sections such as `server:` and `cache:`, not a {type(raw).__name__}"
        )
    return build(_override(_substitute(raw, environ, ""), options or {}), name)


def build(raw: Mapping[str, Any], name: str = "config") -> Config:
    """Check settings that are already a mapping. Raises ConfigError."""
    try:
        return Config.model_validate(raw)
    except ValidationError as exc:
        errors = exc.errors(include_url=False)
        wrong = {error["loc"] for error in errors}
        # A route inherits what is wrong globally; said once it is enough.
        own = [error for error in errors if error["loc"][:1] != ("routes",) or error["loc"][2:] not in wrong]
        raise ConfigError("\n".join(f"{name}: {_complaint(error, raw)}" for error in own)) from exc


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
    is_secret = name in ("key", "keys", "api_key", "admin_token") or "@" in str(value)  # user:password@host
    if name in _SHARES:
        message += "; it is a share: 0.01 is 1 %"
    shown = "" if is_secret or value is None or isinstance(value, (dict, list)) else f"{value!r}: "
    return f"{path}: {shown}{message}" if path else message


_SHARES = ("max_error", "explore")
_SECTIONS: Mapping[str, type[_Section]] = {
    "server": Server,
    "tls": Tls,
    "cache": Cache,
    "embedder": Embedder,
    "match": Match,
    "answers_judge": AnswersJudge,
    "backends": Backend,
    "routes": Route,
    "tenants": TenantSettings,
    "limits": Limits,
    "audit": Audit,
}


def _meant(place: tuple[str | int, ...]) -> str:
    """`, did you mean threshold?`, where a setting of the same section is written much alike."""
    *parents, name = [part for part in place if isinstance(part, str)]
    is_pool = parents[:1] == ["pools"] and len(parents) == 2
    section = Config if not parents else Pool if is_pool else _SECTIONS.get(parents[-1])
    near = get_close_matches(name, section.model_fields, 1) if section else []
    return f", did you mean {near[0]}?" if near else ""
