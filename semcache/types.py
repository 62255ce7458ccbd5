"""The vocabulary: the values that pass between the phases of a request, and nothing that acts.

One word per idea, used everywhere. *Question*: the text that is compared. *Context*: everything else in the
request, which must be equal. *Candidate*: near, not yet trusted. *Match*: trusted. *Answer*: what is stored and played.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float32]  # shape (d,), unit length


class Verdict(StrEnum):
    """What became of a request: exactly one each."""

    HIT = "hit"  # a stored answer, fresh
    STALE = "stale"  # a stored answer in its grace; a refresh is under way
    MISS = "miss"  # looked up, not found, forwarded
    COALESCED = "coalesced"  # another request's fetch answered this one too
    BYPASS = "bypass"  # the cache took no part
    REFUSED = "refused"  # our own 4xx or 5xx


class Tier(StrEnum):
    EXACT = "exact"  # the same scope, context and question, byte for byte
    SEMANTIC = "semantic"  # the same scope and context, a question that means the same


class Reason(StrEnum):
    """Why a request was not answered from the store. The table below gives each its RFC 9211 `fwd` token."""

    NO_ENTRY = "no-entry"  # nothing stored in this partition, or nothing near
    BELOW_THRESHOLD = "below-threshold"  # something near, not near enough
    FEEDBACK = "feedback"  # near enough, but called wrong: for this question, or for others as near as this
    GUARD_NUMBER = "guard-number"  # near enough, but the numbers differ
    GUARD_UNIT = "guard-unit"  # ... the units or currencies differ
    GUARD_COMPARISON = "guard-comparison"  # ... one asks for the least where the other asks for the most
    GUARD_NEGATION = "guard-negation"  # ... one denies what the other affirms, or they ask for opposites
    GUARD_ROLES = "guard-roles"  # ... who does it to whom, or from where to where, differs
    GUARD_QUESTION = "guard-question"  # ... one asks when and the other where, or the like
    GUARD_LANGUAGE = "guard-language"  # ... they are in different languages, or want their answers in different ones
    GUARD_CODE = "guard-code"  # ... something quoted or written for machines differs
    GUARD_ENTITY = "guard-entity"  # ... a place, a person, a product or another name differs
    GUARD_DATE = "guard-date"  # ... the dates, or the times from today, differ
    CONTEXT = "context"  # ... but the turns before it are not near enough, or a guard objects to one of them
    UNPROVEN = "unproven"  # another tenant's answer, for which too few have vouched (cache.min_uses)
    JUDGE = "judge"  # near enough, but the pair judge gives it too little
    RERANKER = "reranker"  # near enough, but the cross-encoder gives it too little, or did not answer in time
    BOUND = "bound"  # near, but so are wrong answers: it would break the error bound, or the evidence is too thin
    EXPLORING = "exploring"  # would have been a hit; forwarded to compare (shadow mode, error bound)
    TOOLS = "tools"  # exact tier only, and no exact entry: the request declares tools
    SAMPLING = "sampling"  # ... it asks for more randomness than the operator lets the cache hide, or for n > 1
    TOO_LONG = "too-long"  # ... the question is longer than the embedder reads
    AGENT = "agent"  # ... a running agent loop: tool results, a tool's output in the user's turn, "go on" again
    FOLLOW_UP = "follow-up"  # ... it means nothing without the turns before it ("and in Paris?")
    MEDIA = "media"  # ... it carries images, audio or files
    PERSONAL = "personal"  # ... it carries somebody's data, or asks for the asker's own affairs ("my balance")
    TIME_BOUND = "time-bound"  # ... the question is about now, so its answer soon is another ("weather today")
    PARTIAL = "partial"  # some items of a batch are stored; only the others were fetched
    EXACT_ONLY = "exact-only"  # ... the operator or the caller asked for the exact tier
    LOOP = "loop"  # the stored answer stands in the conversation already: served again, an agent would turn in a circle
    NO_CACHE = "no-cache"  # the caller asked for a fresh answer
    MAX_AGE = "max-age"  # the stored answer is older than the caller accepts
    EXPIRED = "expired"  # the stored answer is past its ttl, and past its grace or the caller's max-stale
    DISABLED = "disabled"  # the operator switched the cache off here
    NO_STORE = "no-store"  # the caller wants no trace in the cache
    ENDPOINT = "endpoint"  # not a path that is cached
    REGION = "region"  # the cache is outside the regions that the tenant or the route is bound to
    STATE = "state"  # it reads or leaves something at the upstream, which no stored answer can stand for
    LEARNED = "learned"  # answers to this were found never to be storable
    CACHE_FAULT = "cache-fault"  # a part of the cache failed or was late


# RFC 9211 section 2.2: why the request went forward.
FWD: Mapping[Reason, Literal["miss", "request", "stale", "bypass"]] = {
    **dict.fromkeys(Reason, "miss"),
    Reason.NO_CACHE: "request",
    Reason.MAX_AGE: "request",
    Reason.EXPIRED: "stale",
    Reason.DISABLED: "bypass",
    Reason.NO_STORE: "bypass",
    Reason.ENDPOINT: "bypass",
    Reason.REGION: "bypass",
    Reason.STATE: "bypass",
    Reason.LEARNED: "bypass",
    Reason.CACHE_FAULT: "bypass",
}


class Unstorable(StrEnum):
    """Why an answer was not kept. Counted by reason; never shown as an error."""

    STATUS = "status"  # not a 200
    INCOMPLETE = "incomplete"  # the upstream stopped before its terminal event
    MALFORMED = "malformed"  # not JSON or SSE as the dialect has it
    ERROR = "error"  # an error object inside a 200
    FINISH = "finish"  # a finish reason other than a natural stop
    TOOL_CALLS = "tool-calls"  # tool calls, where the route does not allow them
    EMPTY = "empty"  # no choice, or no content
    TOO_LARGE = "too-large"  # past cache.max_answer
    ENCODING = "encoding"  # a content encoding we did not ask for
    REFUSED = "no-store"  # request, response or policy said no
    PURGED = "purged"  # a purge overtook the fetch
    STORE_FAULT = "store-fault"  # the store failed or its queue was full
    INSERT_LIMIT = "insert-limit"  # its tenant has had as many kept this minute as he may (cache.inserts_per_minute)


class Form(StrEnum):
    """How an answer was recorded. Either can be played as both."""

    JSON = "json"
    STREAM = "stream"


@dataclass(frozen=True, slots=True)
class Tenant:
    """Who pays. `id` is not a secret: the configured name, or a digest of the caller's own key."""

    id: str
    regions: frozenset[str] = frozenset()  # empty: any
    namespaces: tuple[str, ...] = ()  # those a configured tenant may name, the first by default; empty: none
    key: str = (
        ""  # public id of the virtual key, or of the caller, that spoke for him; empty: a key of the configuration
    )
    models: tuple[str, ...] = ()  # globs of those he may ask for; empty: any
    routes: tuple[str, ...] = ()  # names of those he may take; empty: any


@dataclass(frozen=True, slots=True)
class Traits:
    """What policy needs to know of a request, read once by its dialect."""

    has_tools: bool = False  # tools are declared
    has_tool_results: bool = False  # an agent loop is running
    has_hosted_tools: bool = False  # tools that the vendor runs: what they bring is of its moment
    has_media: bool = False  # images, audio or files anywhere
    is_stateful: bool = False  # it reads or leaves something at the upstream: a conversation, a background job
    id_is_a_handle: bool = False  # the answer's id names what the upstream keeps: a replay must show the same
    choices: int = 1  # n
    temperature: float | None = None  # None: the caller left it to the model


class Turn(NamedTuple):
    """What was said before the question, by the user or by the assistant."""

    role: Literal["user", "assistant"]
    text: str | None  # None: it holds more than a text, or something else, and can only be equal


@dataclass(frozen=True, slots=True)
class Ask:
    """One request as its dialect understood it. Equal body bytes give an equal Ask."""

    dialect: str  # whose backends may answer: "openai", "azure", "anthropic", "ollama"
    endpoint: str  # "chat/completions"
    target: str  # path and query as they go upstream: "/v1/chat/completions"; belongs to the key
    model: str
    question: str | None  # None: no user text to compare, exact tier only
    context: bytes  # canonical bytes of all that must be equal; see cache/key.py
    stream: bool  # delivery, not context
    include_usage: bool  # delivery, not context: the caller wants the usage chunk of a stream
    user: str | None  # the caller's end user, for purge and audit; not context
    traits: Traits
    body: bytes  # as received
    # What of the request shows in the answer without deciding it, by name, as JSON text: labels that the answer
    # repeats, the encoding of its numbers. A replay follows the caller's own.
    echo: tuple[tuple[str, bytes], ...] = ()
    # Of a batch: each item as a request for itself alone, in order. Equal items of any two batches have equal contexts.
    items: tuple[Ask, ...] = ()
    turns: tuple[Turn, ...] = ()  # of the conversation before the question, oldest first; in `context`, too


@dataclass(frozen=True, slots=True)
class Scope:
    """Who may share an answer. Every field is an equality key; see Sharing in config.py for how tenant is filled."""

    tenant: str
    namespace: str
    dialect: str
    endpoint: str
    model: str


@dataclass(frozen=True, slots=True)
class Key:
    exact: bytes  # 32 bytes: scope, context and question
    partition: bytes | None  # 32 bytes: scope, context and embedder; None: no semantic tier for this request


@dataclass(frozen=True, slots=True)
class Usage:
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0  # of the prompt: read from the upstream's own cache, and billed as such
    is_estimated: bool = False  # counted here, for the upstream told nothing


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer as the upstream gave it, ready to be played in either form.

    JSON form: one part, the body. Stream form: one part per event, the `data` payload without framing, the
    terminal `[DONE]` left out; `offsets_ms` has the arrival of each part since the first byte.
    """

    dialect: str
    form: Form
    parts: tuple[bytes, ...]
    offsets_ms: tuple[int, ...] = ()
    usage: Usage | None = None

    @property
    def size_bytes(self) -> int:
        return sum(map(len, self.parts))


@dataclass(frozen=True, slots=True)
class Entry:
    """A stored answer with all that decides who may get it and for how long. Immutable; a change is a new entry."""

    id: str  # public: `Semcache-Entry`
    scope: Scope
    key: Key
    question: str | None
    vector: Vector | None  # None: exact tier only
    embedder: str | None  # the stamp of the embedder that made the vector
    answer: Answer
    created_at: float  # unix seconds, wall clock
    ttl_s: float
    grace_s: float
    user: str | None = None
    writer: str = ""  # the tenant whose request wrote it: equals scope.tenant unless answers are shared
    vouchers: tuple[str, ...] = ()  # tenants that fetched the same, the writer among them; see cache/provenance.py
    request_id: str = ""  # of the request that was forwarded for it; empty: not known
    backend: str = ""  # that gave it; empty: none did, or it is not known
    region: str | None = None  # of that backend: where the answer was made
    # The turns before the question, where they need not be equal, but near: their texts, and the vector of them all.
    turns: tuple[str, ...] = ()
    turns_vector: Vector | None = None
    seq: int = 0  # given by the store; 0 before

    def age_s(self, now: float) -> float:
        """Seconds since creation, never negative: a wall clock that jumped back makes an entry young, not wrong."""
        return max(0.0, now - self.created_at)


CLOCK_SKEW_S = 5.0  # an entry from further in the future than this is stale: some clock was wrong


@dataclass(frozen=True, slots=True)
class Posting:
    """What the index keeps of an entry."""

    seq: int
    exact: bytes
    partition: bytes | None
    vector: Vector | None


@dataclass(frozen=True, slots=True)
class Change:
    """One numbered line of the store's log. The index is what these lines, followed in order, add up to."""

    seq: int
    added: Posting | None = None
    removed: tuple[int, ...] = ()  # seq numbers of entries that are gone


@dataclass(frozen=True, slots=True)
class Selector:
    """What a purge takes. Fields that are set must all match; none set matches everything."""

    entry: str | None = None
    model: str | None = None  # glob
    tenant: str | None = None
    namespace: str | None = None
    user: str | None = None
    text: str | None = None  # the question, compared after strip()
    writer: str | None = None  # the tenant that brought the answer, or fetched the same and so vouches for it


class Candidate(NamedTuple):
    """A neighbour from the same partition, not yet trusted."""

    seq: int
    similarity: float  # cosine, -1 to 1


class Match(NamedTuple):
    """A stored answer that may be served."""

    entry: Entry
    tier: Tier
    ttl_left_s: float  # of freshness; zero or less: stale, in its grace
    age_s: float
    similarity: float = 1.0

    @property
    def is_stale(self) -> bool:
        return self.ttl_left_s <= 0


class Occasion(StrEnum):
    """Why a fresh answer could be held against a stored one."""

    MISS = "miss"  # the request was forwarded anyhow: its evidence costs nothing
    EXPLORE = "explore"  # a would-be hit near the cut, forwarded to learn
    AUDIT = "audit"  # a would-be hit far above the cut, forwarded to stay sure
    SHADOW = "shadow"  # mode shadow: a would-be hit, forwarded like every request
    FEEDBACK = "feedback"  # a caller's word on a hit


class Considered(NamedTuple):
    """A candidate as a lookup judged it. A fresh answer, where there is one, is held against the stored one."""

    entry: Entry
    similarity: float
    objection: Reason | None  # why it was no match; None: it was, or would have been
    probability: float | None = None  # that its answer serves, where the lookup asked for it
    features: tuple[float, ...] = ()  # what the probability was made of; see cache/bound.py


class Finding(NamedTuple):
    """What a lookup found: a match, or why there is none (and, for the record, the best that was seen)."""

    match: Match | None
    reason: Reason | None = None
    best_similarity: float | None = None
    vector: Vector | None = None  # of the question, to be stored with a fresh answer: nothing is embedded twice
    considered: tuple[Considered, ...] = ()  # the candidates that were judged, nearest first
    occasion: Occasion = Occasion.MISS  # why it is forwarded, if it is
    share: float = 1.0  # of such requests that are forwarded
    instead: Match | None = None  # of one that is forwarded to learn: what it gets should that fail


class Said(StrEnum):
    """A caller's word on a hit."""

    WRONG = "wrong"
    RIGHT = "right"


class How(StrEnum):
    """What said whether two answers are the same."""

    EQUAL = "equal"  # their texts are, but for white space
    EMBEDDING = "embedding"  # their vectors are near, or far
    MODEL = "model"  # a judge model behind a pool was asked
    FEEDBACK = "feedback"  # a caller said so


@dataclass(frozen=True, slots=True)
class Observation:
    """A fresh answer was held against a stored one. Keys and figures, no text: this is what semcache learns from."""

    group: bytes  # whose traffic it belongs to: 16 bytes, see cache/bound.py
    route: int  # the place of the route in the configuration
    asked: bytes  # the exact key of the question that was asked
    entry_key: bytes  # of the stored answer
    entry_id: str
    similarity: float
    features: tuple[float, ...]  # of the pair; empty where no probability was asked for
    probability: float | None
    same: bool  # the stored answer would have served
    how: How
    occasion: Occasion
    share: float  # of such requests that are compared: 1 for a miss; its inverse is what this one stands for
    is_proposed: bool  # it is the candidate that would have been served; others are only evidence about pairs
    at: float  # unix seconds
    seq: int = 0  # given by the store; 0 before


class Effect(StrEnum):
    """What a caller's word on a hit has done."""

    QUARANTINED = "quarantined"  # the entry answers this question no more
    TIGHTENED = "tightened"  # ... and others only where they are nearer to it than those that were called wrong
    REMOVED = "removed"  # an exact hit: the entry is gone, since it was wrong for everybody who asks this
    RECORDED = "recorded"  # it is evidence, and changes nothing yet
    GONE = "gone"  # the entry, or the answer it had, has left in the meantime


@dataclass(frozen=True, slots=True)
class Feedback:
    """What a caller said of a hit. Keys and ids, no text."""

    said: Said
    entry_id: str
    entry_key: bytes  # the entry's exact key, which its successors have too
    asked: bytes  # the exact key of what was asked: equal to it for an exact hit
    similarity: float
    tenant: str
    request_id: str
    at: float  # unix seconds

    @property
    def is_exact(self) -> bool:
        return self.asked == self.entry_key


@dataclass(slots=True)
class Outcome:
    """Everything telemetry, usage and audit tell about one request. Filled along the way, read once at the end."""

    request_id: str
    started: float  # monotonic seconds
    verdict: Verdict = Verdict.REFUSED
    reason: Reason | None = None
    tier: Tier | None = None
    similarity: float | None = None  # of the match served, or of the best candidate seen
    entry_id: str | None = None
    entry_key: bytes | None = None  # its exact key; feedback needs it
    ttl_left_s: float | None = None
    age_s: float | None = None
    collapsed: bool = False
    stored: bool = False
    unstorable: Unstorable | None = None
    status: int = 0
    fwd_status: int | None = None  # what the upstream said
    tenant: str = ""
    key: str = ""  # public id of the virtual key; empty: another way in
    regions: frozenset[str] = frozenset()  # that the request is bound to; empty: any
    namespace: str = ""
    route: str = ""  # its name, or its number in the configuration
    dialect: str = ""
    endpoint: str = ""
    model: str = ""
    stream: bool = False
    backend: str | None = None
    region: str | None = None  # of the backend that answered
    attempts: int = 0  # backends that were asked for it, hedges included; 0: none
    error: str | None = None  # the class of our own error, never request text
    code: str | None = None  # of our own error, as the caller got it: "region_not_allowed"
    truncated: bool = False  # the client got a visibly cut answer, or left before its end
    question: str | None = None  # filled only where the operator has prompts logged
    flags: tuple[str, ...] = ()  # what guardrails said of it: "injection/override-instructions"
    feedback: Mapping[str, str] | None = None  # this was no question, but a word on an earlier hit: what it said
    usage: Usage | None = None  # of the answer delivered
    bytes_out: int = 0
    phases_ms: dict[str, float] = field(default_factory=dict)  # embed, search, verify, fetch, store, ...
    ttfb_ms: float | None = None
    total_ms: float | None = None
