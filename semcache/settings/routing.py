"""The settings of backends, pools and routes: where a miss may go, and in which order."""

from __future__ import annotations

import re
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, SecretStr, field_validator, model_validator

from semcache.settings.guardrails import Guardrails
from semcache.settings.primitives import Hours, Seconds, Section, Share, Zone
from semcache.settings.serving import Cache, Match

Glob = Annotated[str, Field(min_length=1)]
_FIELD_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, token
_OWN_FIELDS = frozenset(  # written here, as each connection, body and key needs them
    "host content-length content-encoding transfer-encoding connection keep-alive te trailer upgrade expect via "
    "accept-encoding proxy-authorization proxy-connection authorization x-api-key api-key".split()
)


class Price(Section):
    """US dollars per million tokens, instead of the price list's."""

    input: float = Field(ge=0)
    output: float = Field(ge=0)
    cached_input: Annotated[float, Field(ge=0)] | None = None  # of prompts the upstream had cached; null: as input


class Backend(Section):
    url: str
    api_key: SecretStr = SecretStr("")  # empty: the caller's own key is passed through
    # Several keys of one upstream: each counts as a backend of its own, so a limited one rests while the others work.
    api_keys: tuple[SecretStr, ...] = ()
    headers: dict[str, SecretStr] = Field(default_factory=dict)  # sent with every request, over the caller's own
    weight: float = Field(default=1, gt=0)
    region: str | None = None
    dialect: Literal["openai", "azure", "anthropic", "ollama"] = "openai"  # what it speaks, and so what it is sent
    # What it serves. any: whatever is asked; ask: what its own /v1/models says; a list of globs; or a mapping of the
    # name that is asked for to the name it has there.
    models: Literal["any", "ask"] | tuple[Glob, ...] | dict[str, str] = "any"
    price: Price | None = None  # null: the price list's, by model
    max_in_flight: Annotated[int, Field(ge=1)] | None = None  # requests at once; null: as many as it turns out to bear
    hours: tuple[Hours, ...] = ()  # when it takes requests, such as "22:00-06:00"; empty: always
    timezone: Zone = "UTC"  # of `hours`: where the backend stands
    drain: bool = False  # takes nothing new; what runs there ends in peace
    # env: HTTP(S)_PROXY and NO_PROXY say; none; or the URL of an HTTP proxy, which may hold a password.
    proxy: SecretStr = SecretStr("env")
    chain: bool = False  # it is another semcache: told who asks, under `chain.secret`
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

    @field_validator("headers")
    @classmethod
    def _are_header_fields(cls, headers: dict[str, SecretStr]) -> dict[str, SecretStr]:
        for name, value in headers.items():
            if not _FIELD_NAME.fullmatch(name) or name.lower() in _OWN_FIELDS:
                raise ValueError(f'"{name}" cannot be set here; a key goes into api_key')
            if re.search(r"[\r\n\0]", value.get_secret_value()):
                raise ValueError(f'the value of "{name}" holds a line break')
        return headers

    @field_validator("api_keys")
    @classmethod
    def _are_told_apart(cls, keys: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        values = [key.get_secret_value() for key in keys]
        if not all(values):
            raise ValueError("a key is empty: is its environment variable set?")
        if len(set(values)) < len(values):
            raise ValueError("the same key is written twice")
        return keys

    @field_validator("proxy")
    @classmethod
    def _is_a_proxy(cls, proxy: SecretStr) -> SecretStr:
        if proxy.get_secret_value() in ("env", "none"):
            return proxy
        try:
            parts = urlsplit(proxy.get_secret_value())
            is_usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:  # the port
            is_usable = False
        if not is_usable:
            raise ValueError('write env, none, or the URL of an HTTP proxy such as "http://proxy.internal:3128"')
        return proxy

    @model_validator(mode="after")
    def _one_way_to_name_keys(self) -> Backend:
        if self.api_keys and self.api_key.get_secret_value():
            raise ValueError("api_key and api_keys are both written; put all keys into api_keys")
        return self


class Health(Section):
    """When a backend is left out, and when it is let back in."""

    path: str | None = None  # asked with GET at the root of its host, such as /health; null: /models of its base URL
    # Between active checks; 0: none. null: 2 s where a request could go elsewhere, to a second backend or a later pool.
    interval: Seconds | None = None
    # Of a check. With a quarter of the interval before the first one, two unanswered checks find a frozen process in
    # 1.7 s. Short, as a check of a backend that has sent anything in the meantime does not count.
    timeout: Annotated[Seconds, Field(gt=0)] = 0.6
    unhealthy_after: int = Field(default=2, ge=1)  # checks in a row; the second is asked at once
    healthy_after: int = Field(default=1, ge=1)
    failures: int = Field(default=5, ge=1)  # of requests in a row: the breaker opens
    open: Seconds = 30.0  # then half-open: single requests try it
    successes: int = Field(default=2, ge=1)  # in half-open: the breaker closes
    slow_start: Seconds = 10.0  # after a return its share grows over this long
    # With fewer than this share of a pool looking alive, health is not believed and all are tried; 0: when none does.
    # Not a half: with one of three alive two of three requests would have to be repeated, and the retry budget allows
    # one of five, while a request that waits for the one alive is served.
    panic: Share = 0.0


class Queue(Section):
    """Requests that wait for a backend of the pool."""

    size: int = Field(default=200, ge=0)  # one more is refused, or goes to the next pool
    deadline: Seconds = 10.0  # waited at most; then the next pool, or a refusal with Retry-After


class Prefix(Section):
    """What `balance: prefix` remembers of prompts, so that a backend's KV cache is used again."""

    chunk: int = Field(default=512, ge=16)  # bytes of prompt that are hashed together; some 128 tokens
    remember: int = Field(default=100_000, ge=1)  # chunks of each backend; the oldest are forgotten first
    # The best match is left when its backend has more in flight than the least loaded one, by both of these. Model
    # servers run hundreds at once, so that a few more cost little, and a prompt read twice costs twice.
    imbalance: int = Field(default=32, ge=0)  # requests
    imbalance_ratio: float = Field(default=1.5, ge=1)
    explore: Share = 0.01  # of requests go by load alone, so that no backend is forgotten


class Overflow(Section):
    """When a request goes to the route's next pool although this one could take it."""

    queue: Annotated[int, Field(ge=0)] | None = None  # all are busy and this many wait; null: as soon as all are busy
    ttft: Annotated[Seconds, Field(gt=0)] | None = None  # the first token is expected later than this


class Pool(Section):
    backends: tuple[Backend, ...] = Field(min_length=1)
    balance: Literal["least-load", "prefix", "weighted", "latency"] = "least-load"
    connect: Seconds = 5.0
    first_byte: Seconds = 120.0  # to the first event: a long prompt on a busy GPU
    between_bytes: Seconds = 60.0  # silence inside an answer
    max_connections: int = Field(default=1000, ge=1)  # to each backend
    connection_age: Seconds = 300.0  # a kept connection is not used again after this: names are then resolved anew
    adaptive: bool = True  # learn how many requests at once each backend bears; max_in_flight stays the most
    health: Health = Health()
    queue: Queue = Queue()
    prefix: Prefix = Prefix()
    overflow: Overflow = Overflow()


# Without a config: the vendors, with the caller's own key.
DEFAULT_POOLS = {
    "openai": Pool(backends=(Backend(url="https://api.openai.com/v1"),)),
    "anthropic": Pool(backends=(Backend(url="https://api.anthropic.com/v1", dialect="anthropic"),)),
}


class PoolChoice(Section):
    """A pool of a route; a name alone is enough."""

    pool: str = Field(min_length=1)
    model: str | None = Field(default=None, min_length=1)  # asked for there instead; its answers are that model's


def _choice(value: object) -> object:
    return {"pool": value} if isinstance(value, str) else value


Choice = Annotated[PoolChoice, BeforeValidator(_choice)]


class Arm(Section):
    """One side of an experiment, or of a canary."""

    name: str = Field(min_length=1)
    weight: float = Field(gt=0)  # its share is this of the sum of all
    pools: tuple[Choice, ...] = Field(min_length=1)
    model: str | None = Field(default=None, min_length=1)


class PromptSize(Section):
    """In tokens, estimated at four bytes each."""

    min: int = Field(default=0, ge=0)
    max: int | None = Field(default=None, ge=0)


class Retry(Section):
    """Going on to the next backend, as long as nothing has been sent to the caller."""

    attempts: int = Field(default=3, ge=1)  # of one request, the first included
    budget: Share = 0.2  # extra requests, as a share of all: more would make an outage worse
    backoff: Seconds = 0.05  # before the first repetition to a backend that failed; doubles, with jitter


class Hedge(Section):
    """Asking a second backend when the first is slow to begin, and taking whoever begins first."""

    after: Seconds = 1.0  # without a first byte
    budget: Share = 0.05


class Route(Section):
    name: str | None = Field(default=None, min_length=1)  # for logs, keys and reports; null: its number
    # All that are written must fit; the first route that does is taken.
    models: tuple[str, ...] = Field(default=("*",), min_length=1)  # globs
    paths: tuple[Glob, ...] = ()  # globs, such as "/v1/embeddings"
    tenants: tuple[str, ...] = ()  # names
    headers: dict[str, str] = Field(default_factory=dict)  # name -> glob of its value
    tenant_regions: tuple[str, ...] = ()  # the tenant is bound to regions, and all of them are among these
    prompt: PromptSize = PromptSize()
    # Where it goes.
    pools: tuple[Choice, ...] = ()  # in order of preference; empty: every pool
    order: Literal["written", "nearest"] = "written"  # nearest: by measured round trip, written order between equals
    model: str | None = Field(default=None, min_length=1)  # asked for instead of what the caller named
    split: tuple[Arm, ...] = ()  # canaries and experiments, instead of pools
    # What decides the arm. request: equal requests go the same way; session: equal beginnings of a conversation do.
    sticky: Annotated[str, Field(pattern="^(tenant|user|session|request|header:.+)$")] = "user"
    regions: tuple[str, ...] = ()  # it may use; empty: any that the tenant may
    retry: Retry = Retry()
    hedge: Hedge | None = None  # null: no request is asked twice for speed
    priority: Literal["interactive", "batch"] = "interactive"  # batch waits behind all others
    cache: Cache = Cache()  # written: the fields that differ; read: the whole section
    match: Match = Match()
    guardrails: Guardrails = Guardrails()

    @model_validator(mode="after")
    def _one_way_to_go(self) -> Route:
        if self.pools and self.split:
            raise ValueError("pools and split are both written; each arm of split names its own pools")
        return self
