"""EXPLAIN in words: one sentence that a person understands, from the verdict and the evidence for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from semcache.cache.explain import Elsewhere, Evidence, GuardWord, Neighbour, Stored
from semcache.cache.policy import Ruling
from semcache.cache.verify import probability_of
from semcache.types import Reason, Tier, Unstorable, Verdict

# What a guard's veto says of the nearest stored question.
DIFFERENCES: Mapping[str, str] = {
    "numbers": "differs in a number",
    "negation": "says the opposite, or denies what is asked",
    "entities": "names somebody or something else",
    "units": "differs in a unit or a currency",
    "dates": "is about another day, month, year or hour",
    "roles": "swaps who does what, or the direction",
    "comparison": "compares the other way round",
    "question": "asks for something else about it (who, when, how many)",
    "code": "differs in a quotation or in code",
    "language": "is in another language or script",
}

# What a reason says of the request, as the end of "This would be a MISS: ...".
REASONS: Mapping[Reason, str] = {
    Reason.NO_ENTRY: "nothing that answers it was stored",
    Reason.BELOW_THRESHOLD: "the nearest stored question was below the threshold",
    Reason.FEEDBACK: "the nearest stored answer was called wrong, for this question or for others as near",
    Reason.UNPROVEN: "the nearest stored answer was brought by another tenant, and too few have fetched the same "
    "(cache.min_uses)",
    Reason.JUDGE: "the pair judge does not think that the nearest stored answer serves",
    Reason.RERANKER: "the cross-encoder does not think that the nearest stored answer serves, or was late to say so",
    Reason.BOUND: "a stored answer is near, but the evidence does not show that such answers are wrong as seldom as "
    "match.max_error allows",
    Reason.EXPLORING: "a stored answer would serve, but the request is forwarded to see how a fresh one compares "
    "(shadow mode, or exploring for match.max_error)",
    Reason.TOOLS: "the request declares tools, so only an equal request may be answered from the store",
    Reason.SAMPLING: "the request asks for variety (a high temperature, or several choices), so only an equal request "
    "may be answered from the store",
    Reason.TOO_LONG: "the question is longer than the embedder reads, so only an equal request may be answered from "
    "the store",
    Reason.AGENT: "the request is a step of a running agent (tool results, or a turn that only drives it on), so only "
    "an equal request may be answered from the store",
    Reason.FOLLOW_UP: "the question means nothing without the turns before it, so only an equal request may be "
    "answered from the store",
    Reason.CONTEXT: "the nearest stored question was asked after other turns",
    Reason.LOOP: "the stored answer is what the assistant said last in this conversation, and to say it again "
    "would not help",
    Reason.MEDIA: "the request carries images, audio or files, so only an equal request may be answered from the store",
    Reason.PERSONAL: "the question is personal (it carries somebody's data, or asks for the asker's own affairs), so "
    "only an equal request of the same user may be answered from the store",
    Reason.TIME_BOUND: "the question is about now, so only an equal request may be answered from the store, and not "
    "for long",
    Reason.PARTIAL: "only some items of the batch are stored; the others are fetched",
    Reason.EXACT_ONLY: "only an equal request may be answered from the store",
    Reason.NO_CACHE: "the caller asked for a fresh answer (Cache-Control: no-cache)",
    Reason.MAX_AGE: "the stored answer is older than the caller accepts (max-age)",
    Reason.EXPIRED: "the stored answer is past its ttl and its grace",
    Reason.DISABLED: "the route's mode is off",
    Reason.NO_STORE: "the caller wants no trace in the cache (Cache-Control: no-store)",
    Reason.ENDPOINT: "this path is not cached",
    Reason.REGION: "the cache lies outside the regions that this request is bound to",
    Reason.STATE: "the request reads or leaves something at the upstream, which no stored answer can stand for",
    Reason.LEARNED: "answers to this request were found not to be storable a short while ago",
    Reason.CACHE_FAULT: "a part of the cache failed or was late",
}

_EXACT_ONLY = frozenset(
    {
        Reason.TOOLS,
        Reason.SAMPLING,
        Reason.TOO_LONG,
        Reason.AGENT,
        Reason.FOLLOW_UP,
        Reason.MEDIA,
        Reason.PERSONAL,
        Reason.TIME_BOUND,
        Reason.EXACT_ONLY,
    }
)


def say(
    verdict: Verdict, reason: Reason | None, evidence: Evidence, ruling: Ruling, learned: Unstorable | None = None
) -> str:
    """`reason`: why there is no hit; None for one."""
    lead = f"This would be a {verdict.upper()}"
    if reason is None:
        return f"{lead}: {_why_hit(evidence, ruling)}."
    if verdict is Verdict.COALESCED:
        return f"{lead}: an equal request is being fetched right now, and its answer would serve this one too."
    because = _why_not(reason, evidence, ruling, learned)
    return f"{lead}: {because}.{_elsewhere(evidence.elsewhere)}"


def why_exact_only(ruling: Ruling) -> str | None:
    """Why there is no semantic tier; None where there is one."""
    if ruling.exact_only is Reason.PERSONAL and ruling.personal is not None:
        return (
            f"the question is personal: {ruling.personal}, so only an equal request of the same user may be answered "
            "from the store"
        )
    return None if ruling.exact_only is None else REASONS.get(ruling.exact_only)


def tell(verdict: Verdict, reason: Reason | None, tier: Tier | None, similarity: float | None) -> str:
    """The same for a request that is over, of which only its outcome is known."""
    lead = f"This was a {verdict.upper()}"
    near = "" if similarity is None else f" at {similarity:.3f}"
    if verdict in (Verdict.HIT, Verdict.STALE):
        how = (
            "the same request was stored" if tier is Tier.EXACT else f"a question of the same meaning was stored{near}"
        )
        late = "; it was past its ttl and within its grace, and was refreshed" if verdict is Verdict.STALE else ""
        return f"{lead}: {how}{late}."
    if verdict is Verdict.COALESCED:
        return f"{lead}: another request's fetch answered this one too."
    if reason is None:
        return f"{lead}."
    return f"{lead}: {_in_words(reason)}{f'; the nearest was{near}' if near else ''}."


def age(seconds: float) -> str:
    """A length of time in its two largest units: `3 h 20 min`."""
    whole = round(abs(seconds))
    parts = []
    for name, size in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        count, whole = divmod(whole, size)
        if count:
            parts.append(f"{count} {name}")
    return " ".join(parts[:2]) or "0 s"


def name_of(vetoes: Sequence[GuardWord]) -> str:
    """`differs in a number (guard numbers)`, for each of them."""
    return " and ".join(f"{DIFFERENCES.get(word.guard, 'differs in a detail')} (guard {word.guard})" for word in vetoes)


def percent(share: float) -> str:
    """`1 %`, `0.96 %`."""
    return f"{share * 100:.3g} %"


def likely(probability: float) -> str:
    """A probability with four digits, which is never rounded up to certainty."""
    return ">0.9999" if probability >= 0.99995 else f"{probability:.4f}"


def _why_hit(evidence: Evidence, ruling: Ruling) -> str:
    if evidence.items_stored:
        return f"each of the {len(evidence.items_stored)} items is stored"
    match = evidence.finding.match
    assert match is not None
    if match.tier is Tier.EXACT:
        how = "the same question with the same context is stored (exact)"
    elif ruling.limits is not None:
        how = f"a stored question is near ({match.similarity:.3f}), no guard objects, and {_weighed(evidence, ruling)}"
    elif ruling.rerank is not None and match.similarity < ruling.rerank.sure_from:
        how = (
            f"a stored question means the same ({match.similarity:.3f}, no guard objects, and the cross-encoder gives "
            f"it {ruling.rerank.least:g} at least)"
        )
    else:
        how = (
            f"a stored question means the same ({match.similarity:.3f}, the threshold is {ruling.threshold:.3g}, "
            "and no guard objects)"
        )
    if match.is_stale:
        return (
            f"{how}; its answer is {age(match.age_s)} old, past its ttl and within its grace, so it would be refreshed"
        )
    return f"{how}; its answer is {age(match.age_s)} old and fresh for another {age(match.ttl_left_s)}"


def _why_not(reason: Reason, evidence: Evidence, ruling: Ruling, learned: Unstorable | None) -> str:
    """The nearest candidate's own story where there is one; else what the reason says of any request."""
    nearest = next((each for each in evidence.neighbours if each.is_looked_at), None)
    if reason is Reason.PERSONAL and ruling.skip_lookup is Reason.PERSONAL:
        return (
            f"the question is personal: {ruling.personal}, and the request names no user, so it is neither looked up "
            "nor kept (match.personal: private)"
        )
    if reason is Reason.PERSONAL and ruling.exact_only is None:
        return "the nearest stored question is personal, so its answer is for the user who asked it alone"
    if reason in _EXACT_ONLY:
        return f"{why_exact_only(ruling) or REASONS[reason]}, and none is stored"
    if reason is Reason.LEARNED and learned is not None:
        return f"{REASONS[reason]} ({learned})"
    if reason is Reason.CACHE_FAULT and evidence.fault:
        return f"{REASONS[reason]} ({evidence.fault})"
    if reason is Reason.EXPIRED and evidence.exact is not None and evidence.exact.freshness == "too old":
        return f"{REASONS[reason]}: it is {age(evidence.exact.age_s)} old"
    if reason is Reason.NO_ENTRY and not evidence.partition_entries:
        return "nothing is stored for this tenant, model and context"
    if nearest is None:
        return _in_words(reason)
    if reason is Reason.BOUND and (weighed := _weighed(evidence, ruling)):
        return weighed
    return _story(nearest, reason, ruling)


def _weighed(evidence: Evidence, ruling: Ruling) -> str:
    """What the error bound makes of the candidate that it decides about; empty where that is not known."""
    opinion, limits = evidence.opinion, ruling.limits
    looked_at = (each for each in evidence.neighbours if each.is_looked_at)
    decided = next((each for each in looked_at if each.objection in (None, Reason.BOUND)), None)
    if opinion is None or limits is None or decided is None or decided.weighed is None:
        return ""
    aim = f"at most {percent(limits.max_error)} of hits wrong (match.max_error)"
    near = f"the nearest that nothing else speaks against, at {decided.similarity:.3f},"
    if opinion.cut is None:
        enough = f"{opinion.needed:,} without an error are the least"
        if max(opinion.observed, opinion.observed_of_tenant) >= opinion.needed:
            enough = f"the surest of them hold too many wrong ones, or are too few: {enough}"
        return (
            f"{near} may serve, but the evidence does not prove {aim}: there are {opinion.observed:,} comparisons for "
            f"this scope and {opinion.observed_of_tenant:,} in all; {enough}"
        )
    cut, probability = likely(probability_of(opinion.cut.score)), likely(decided.weighed.probability)
    if decided.objection is Reason.BOUND:
        return f"{near} serves with a probability of {probability}, and {cut} is what keeps {aim}"
    return f"its answer serves with a probability of {probability}, where {cut} keeps {aim}"


def _story(nearest: Neighbour, reason: Reason, ruling: Ruling) -> str:
    at = f"the nearest stored question, at {nearest.similarity:.3f},"
    if reason is Reason.BELOW_THRESHOLD and ruling.limits is not None and nearest.similarity < ruling.floor:
        return f"{at} is too far away: below {ruling.floor:.3g} none is weighed"
    if reason is Reason.BELOW_THRESHOLD:
        return f"{at} is below the threshold of {ruling.threshold:.3g}"
    if nearest.is_near_enough and nearest.vetoes and reason in {word.reason for word in nearest.vetoes}:
        return f"{at} {name_of(nearest.vetoes)}"
    if reason in (Reason.EXPIRED, Reason.MAX_AGE):
        return f"{at} would serve, but {_in_words(reason)}: it is {age(nearest.stored.age_s)} old"
    if reason is Reason.NO_ENTRY and not nearest.is_near_enough:
        return f"{at} is too far away"
    return f"{_in_words(reason)}; the nearest stored question is at {nearest.similarity:.3f}"


def _in_words(reason: Reason) -> str:
    found = REASONS.get(reason)
    if found is None and reason.startswith("guard-"):
        return f"a guard found that the nearest stored question asks something else ({reason})"
    return found or f"the reason is {reason}"


def _elsewhere(homes: Sequence[Elsewhere]) -> str:
    """What is stored under the very same question where this request may not look."""
    if not homes:
        return ""
    entries = sum(home.entries for home in homes)
    newest = homes[0]
    what = {"context": "another context (earlier turns, system prompt, parameters or tools)"}
    differs = " and ".join(what.get(name, f"another {name}") for name in newest.differs)
    times = "once" if entries == 1 else f"{entries} times"
    return f" The same question is stored {times} elsewhere, {'' if entries == 1 else 'the newest '}with {differs}."


def freshness_of(stored: Stored) -> str:
    """`fresh, 23 h 59 min left`."""
    if stored.freshness == "fresh":
        return f"fresh, {age(stored.ttl_left_s)} left"
    return f"{stored.freshness}, {age(stored.ttl_left_s)} past its ttl"
