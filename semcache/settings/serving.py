"""The settings of the listener, the cache, the embedder and of what counts as the same question."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Literal, get_args

from pydantic import BeforeValidator, ByteSize, Field, SecretStr, field_validator, model_validator

from semcache.settings.primitives import Port, Seconds, Section

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


def _octal(value: object) -> object:
    if not isinstance(value, str) or not re.fullmatch("0?[0-7]{3}", value):
        raise ValueError('write permissions in quotes and octal digits, such as "0660"')  # unquoted they are a decimal
    return value


class Tls(Section):
    certificate: str = Field(min_length=1)  # a PEM file: the server's own certificate, then those that vouch for it
    key: str = Field(min_length=1)  # a PEM file, not encrypted


class Server(Section):
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
    # Where this node is, its store and its logs with it. A tenant that is bound to regions is refused by a node outside
    # them. null: not known, and taken to be where the tenants may be.
    region: str | None = None
    request_log_region: str | None = (
        None  # where its lines go; null: region. Lines of tenants bound elsewhere are left out
    )
    reload_on_change: bool = True  # read the file again when it has changed; SIGHUP and the admin call always do

    @model_validator(mode="after")
    def _listens_somewhere(self) -> Server:
        if self.host is None and self.unix_socket is None:
            raise ValueError("host is null and there is no unix_socket: nobody could ask anything")
        if self.host is None and self.tls is not None:
            raise ValueError("tls is for host and port, and host is null: a unix_socket is on this machine alone")
        return self


class Cache(Section):
    store: str = "sqlite:./var/semcache.db"  # sqlite:PATH | memory:   (redis:// comes later)
    ttl: Seconds = 86400.0  # a day: long enough to pay, short enough to forget a mistake
    # Of questions about now ("today", "latest", "weather"); short enough to be near the truth. See match.time_bound.
    time_bound_ttl: Seconds = 600.0
    grace: Seconds = 600.0  # past ttl an answer is still given for this long while one refresh runs
    # Past ttl an answer is given for this long where no backend could give a fresh one (RFC 5861). 0: not past grace.
    stale_if_error: Seconds = 0.0
    region: str | None = None  # where the store is; null: server.region
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


class Embedder(Section):
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
    region: str | None = None  # engine openai: where that server is; null: server.region

    @model_validator(mode="after")
    def _remote_has_url(self) -> Embedder:
        if self.engine == "openai" and not self.url:
            raise ValueError('engine openai needs a url, for instance "http://127.0.0.1:8002/v1"')
        return self


class AnswersJudge(Section):
    """A model that says whether two answers say the same, where texts and vectors leave a doubt."""

    pool: str = Field(min_length=1)  # it is asked with the keys of this pool's backends, never with a caller's
    model: str = Field(min_length=1)
    deadline: Seconds = 30.0  # nobody waits for it but the next comparison
    per_hour: int = Field(default=100, ge=1)  # in each worker; past it a doubt stays one


class Match(Section):
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
