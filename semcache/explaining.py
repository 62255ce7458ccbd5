"""EXPLAIN, asked and answered: from what an operator writes to a planned request, and from the evidence to a report.

A question is planned as the request it stands for, by the same planner that real requests go through, and is never
forwarded. Reports are plain values for JSON. They hold stored questions, so they are for operators; secrets that
requests carry (tokens of tools, keys in texts) are not shown to anybody.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from multidict import CIMultiDict

from semcache import wire
from semcache.admit import ANONYMOUS, Admission
from semcache.cache.bound import Opinion
from semcache.cache.context_view import Member, shorten, view_context, without_secrets
from semcache.cache.explain import Evidence, Explainer, Neighbour, Stored
from semcache.cache.explain_words import freshness_of, say, tell, why_exact_only
from semcache.cache.policy import Ruling, read_directives, tighten
from semcache.cache.verify import probability_of
from semcache.config import Route, TenantSettings
from semcache.errors import ClientError, SemcacheError
from semcache.pipeline import Pipeline
from semcache.planning import PLAN_BODY_BYTES, Plan, Planner
from semcache.recent_requests import RecentRequests
from semcache.types import FWD, Reason, Tenant, Unstorable, Verdict
from semcache.wire import strict_json
from semcache.wire.strict_json import Tree

CHAT = "/v1/chat/completions"

_TEXTS = ("question", "model", "system", "user", "path", "tenant", "key", "namespace")
_FIELDS = (*_TEXTS, "body", "headers")


class Store(Protocol):
    async def newest_writer(self, endpoint: str, tenant: str | None, model: str | None) -> tuple[str, str] | None:
        """The tenant and the model of the newest entry, of these where they are given."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What an operator wants explained: a question, or a whole request."""

    path: str
    question: str | None
    system: str | None
    user: str | None  # whom the request names; a body says so itself
    body: bytes | None  # of a whole request
    headers: Mapping[str, str]  # as the caller sent them: some are part of the context, some ask things of the cache
    model: str | None
    tenant: str | None
    key: str | None
    namespace: str


class Explaining:
    def __init__(
        self,
        routes: Sequence[Route],
        tenants: Sequence[TenantSettings],
        admission: Admission,
        planner: Planner,
        pipeline: Pipeline,
        explainer: Explainer,
        store: Store,
        recent: RecentRequests,
    ) -> None:
        self._admission = admission
        self._planner = planner
        self._pipeline = pipeline
        self._explainer = explainer
        self._store = store
        self._recent = recent
        self.adopt(routes, tenants)

    def adopt(self, routes: Sequence[Route], tenants: Sequence[TenantSettings]) -> None:
        self._routes = routes
        self._tenants = tenants

    async def explain(self, body: bytes) -> Mapping[str, Any]:
        """What would become of a request, and why. Raises ClientError for one that cannot be understood."""
        # A request may have megabytes, and other requests must not wait for this one to be read and shown.
        asked = await asyncio.to_thread(read_asked, body)
        address = wire.find_address(asked.path)
        if address is None or address.opt_in is not None:
            raise ClientError(
                f'path: no requests to "{shorten(without_secrets(asked.path))}" are explained; chat is {CHAT}',
                param="path",
            )
        headers = CIMultiDict(asked.headers)
        if asked.key is not None:
            headers["Authorization"] = f"Bearer {asked.key}"
        directives = read_directives(headers.get("Cache-Control"), headers.get("Semcache-Control"))
        tenant, model, assumed = await self._assume(asked, headers, address.endpoint)
        namespace = self._admission.namespace(tenant, asked.namespace or directives.namespace)
        request = asked.body if asked.body is not None else _chat(asked, model)
        arguments = (address, headers, request, tenant, namespace)
        if len(request) > PLAN_BODY_BYTES:  # larger plans are not remembered, so another thread may make them
            plan = await asyncio.to_thread(self._planner.plan, *arguments)
        else:
            plan = self._planner.plan(*arguments)
        ruling = tighten(plan.ruling, directives)
        evidence = await self._explainer.gather(
            plan.ask, plan.scope, plan.key, ruling, [item.key for item in plan.items]
        )
        context = await asyncio.to_thread(view_context, plan.ask.context)
        found = evidence.finding.match
        is_circle = found is not None and not plan.items and await self._pipeline.turns_in_a_circle(plan, found)
        return self._report(plan, ruling, evidence, context, assumed, is_circle)

    def recall(self, request_id: str) -> Mapping[str, Any]:
        """What is known of a request that is over. Raises ClientError 404."""
        found = self._recent.find(request_id)
        if not found:
            raise ClientError(
                "no such request among the latest of this worker; older ones are in the request log", status=404
            )
        return {
            "request": request_id,
            "outcomes": [
                {"summary": tell(outcome.verdict, outcome.reason, outcome.tier, outcome.similarity), **line}
                for outcome, line in found
            ],
        }

    async def _assume(
        self, asked: Asked, headers: CIMultiDict[str], endpoint: str
    ) -> tuple[Tenant, str | None, list[str]]:
        """Whose request it is and of which model. What was not said is taken from the newest entry, and told.

        Raises ClientError where nothing tells.
        """
        has_key = any(name in headers for name in ("Authorization", "x-api-key", "api-key"))
        tenant = None
        if asked.tenant is not None:
            tenant = self._admission.named(asked.tenant)
        elif has_key:
            tenant = self._admission.identify(headers)
        elif len(self._tenants) == 1:
            tenant = self._admission.named(self._tenants[0].name)
        needs_model = asked.body is None and asked.model is None
        assumed: list[str] = []
        newest = None
        if tenant is None or needs_model:
            newest = await self._store.newest_writer(endpoint, tenant.id if tenant else None, asked.model)
        known = [settings.name for settings in self._tenants]
        if tenant is None and newest is not None and (not known or newest[0] in known):
            tenant = self._admission.named(newest[0])
            assumed.append(f"tenant {tenant.id}")
        if tenant is None:
            if known:
                raise ClientError(f"tenant: say whose request it is; there are {', '.join(known)}", param="tenant")
            tenant = ANONYMOUS
        if not needs_model:
            return tenant, asked.model, assumed
        if newest is None:
            raise ClientError("model: say which one; nothing is stored yet that tells", param="model")
        assumed.append(f"model {newest[1]}")
        return tenant, newest[1], assumed

    def _report(
        self,
        plan: Plan,
        ruling: Ruling,
        evidence: Evidence,
        context: Sequence[Member],
        assumed: Sequence[str],
        is_circle: bool,
    ) -> Mapping[str, Any]:
        learned = self._pipeline.learned(plan)
        is_fetched = self._pipeline.is_being_fetched(plan)
        verdict, reason = decide(plan, ruling, evidence, learned, is_fetched, is_circle)
        error = plan.way if isinstance(plan.way, SemcacheError) and verdict is not Verdict.HIT else None
        match = evidence.finding.match
        question = plan.ask.question
        return {
            "verdict": verdict,
            "reason": reason,
            "summary": say(verdict, reason, evidence, ruling, learned),
            "assumed": assumed,
            "question": None if question is None else without_secrets(question),
            "tenant": plan.tenant.id,
            "user": plan.ask.user,
            "scope": asdict(plan.scope),
            "target": without_secrets(plan.ask.target),
            "context": [member._asdict() for member in context],
            "route": self._route(plan.route, ruling),
            "exact_only": ruling.exact_only,
            "exact_only_because": why_exact_only(ruling),
            "no_lookup": ruling.skip_lookup,
            "no_backend": None if error is None else error.message,
            "exact": None if evidence.exact is None else _stored(evidence.exact),
            "items_stored": list(evidence.items_stored) or None,
            "partition": None if plan.key.partition is None else plan.key.partition.hex()[:16],
            "partition_entries": evidence.partition_entries,
            "candidates": [_candidate(neighbour) for neighbour in evidence.neighbours],
            "served": None if match is None or reason is not None else match.entry.id,
            "elsewhere": [asdict(home) for home in evidence.elsewhere],
            "fault": evidence.fault,
            "bound": evidence.opinion and _bound(evidence.opinion),
        }

    def _route(self, route: Route, ruling: Ruling) -> Mapping[str, Any]:
        """The route's settings, as strict as this caller made them."""
        number = next((number for number, each in enumerate(self._routes) if each is route), None)
        return {
            "number": number,
            "models": route.models,
            "pools": [choice.pool for choice in route.pools],
            "mode": route.match.mode,
            "threshold": ruling.threshold,
            "judge": ruling.judge,
            "max_error": ruling.limits and ruling.limits.max_error,
            "context": route.match.context if isinstance(route.match.context, str) else f"last: {route.match.context}",
            "guards": ruling.guards,
            "neighbours": ruling.neighbours,
            "ttl_s": ruling.ttl_s,
            "grace_s": ruling.grace_s,
            "sharing": route.cache.sharing,
            "min_uses": route.cache.min_uses,
            "may_store": ruling.may_store,
        }


def decide(
    plan: Plan,
    ruling: Ruling,
    evidence: Evidence,
    learned: Unstorable | None,
    is_being_fetched: bool,
    turns_in_a_circle: bool,
) -> tuple[Verdict, Reason | None]:
    """The verdict, and why there is no hit, as the pipeline's `respond` comes to them.

    1. What is not looked up, for the caller's or the operator's reasons, goes forward.
    2. A match is served where the route serves, unless the conversation has its answer already.
    3. An answer must be fetched: refused where it may not or cannot be, else as what the reason says.
    """
    match = evidence.finding.match
    if ruling.skip_lookup is not None:
        reason = ruling.skip_lookup
    elif match is not None and ruling.may_serve and turns_in_a_circle and not ruling.only_if_cached:
        reason = Reason.LOOP
    elif match is not None and ruling.may_serve and not (evidence.items_stored and not all(evidence.items_stored)):
        return Verdict.STALE if match.is_stale else Verdict.HIT, None
    elif match is None and learned is not None:
        reason = Reason.LEARNED
    elif any(evidence.items_stored) and not all(evidence.items_stored):
        reason = Reason.PARTIAL
    else:
        reason = evidence.finding.reason or Reason.EXPLORING
    if ruling.only_if_cached:
        return Verdict.REFUSED, reason
    if ruling.may_coalesce and reason is not Reason.LEARNED and is_being_fetched:
        return Verdict.COALESCED, reason
    if isinstance(plan.way, SemcacheError):
        return Verdict.REFUSED, reason
    return Verdict.BYPASS if FWD[reason] == "bypass" else Verdict.MISS, reason


def read_asked(body: bytes) -> Asked:
    """Raises ClientError with what is wrong. An unknown field is refused: it might have been meant to matter."""
    tree = strict_json.parse(body)
    for name, value in tree.items():
        if name not in _FIELDS:
            raise ClientError(f"{shorten(name)}: no such field; there are {', '.join(_FIELDS)}", param=shorten(name))
        if name in _TEXTS and value is not None and type(value) is not str:
            raise ClientError(f"{name}: write a text, or leave the field out", param=name)
    headers = tree.get("headers") or {}
    if type(headers) is not dict or not all(type(value) is str for value in headers.values()):
        raise ClientError("headers: write an object of texts", param="headers")
    texts: dict[str, str | None] = {name: tree.get(name) or None for name in _TEXTS}
    request = _request(tree)
    if (texts["question"] is None) == (request is None):
        raise ClientError("say what to explain: a question, or the body of a request", param="question")
    if request is not None and (texts["model"] or texts["system"] or texts["user"]):
        raise ClientError("a body says itself which model it asks, the system prompt and the user", param="model")
    if request is None and texts["path"] not in (None, CHAT):
        raise ClientError("path: a question is asked as a chat completion; give a body for another path", param="path")
    if texts["tenant"] and texts["key"]:
        raise ClientError("write a tenant or a key: either says whose request it is", param="key")
    return Asked(
        path=texts["path"] or CHAT,
        question=texts["question"],
        system=texts["system"],
        user=texts["user"],
        body=request,
        headers=headers,
        model=texts["model"],
        tenant=texts["tenant"],
        key=texts["key"],
        namespace=texts["namespace"] or "",
    )


def _request(tree: Tree) -> bytes | None:
    """The request's body, given as an object or as its text. Numbers stay as they are written: keys depend on it."""
    body = tree.get("body")
    if body is None:
        return None
    if type(body) is str:
        return body.encode()
    if type(body) is dict:
        return strict_json.encode(body)
    raise ClientError("body: write the request's JSON, as an object or as a text", param="body")


def _chat(asked: Asked, model: str | None) -> bytes:
    system = [{"role": "system", "content": asked.system}] if asked.system is not None else []
    messages = [*system, {"role": "user", "content": asked.question}]
    user = {"user": asked.user} if asked.user is not None else {}
    return json.dumps({"model": model, "messages": messages, **user}).encode()


def _bound(opinion: Opinion) -> Mapping[str, Any]:
    """What the evidence supports. A cut is told as a probability, as candidates are."""
    cut = opinion.cut
    return {
        "observed": opinion.observed,
        "observed_of_tenant": opinion.observed_of_tenant,
        "needed": opinion.needed,
        "is_own": opinion.is_own,
        "cut": cut and round(probability_of(cut.score), 6),
        "observed_above": cut and cut.observed,
        "wrong_above": cut and cut.wrong,
        "upper": cut and round(cut.upper, 5),
    }


def _candidate(neighbour: Neighbour) -> Mapping[str, Any]:
    return {
        "similarity": round(neighbour.similarity, 6),
        "threshold": "passes" if neighbour.is_near_enough else "below",
        "turns_similarity": neighbour.turns_similarity,
        "guards": {
            word.guard: "not built" if word.vetoes is None else "vetoes" if word.vetoes else "passes"
            for word in neighbour.guards
        },
        "judge": None if neighbour.judged is None else round(neighbour.judged, 6),
        "probability": None if neighbour.weighed is None else round(neighbour.weighed.probability, 6),
        "objection": neighbour.objection,
        "is_looked_at": neighbour.is_looked_at,
        **_stored(neighbour.stored),
    }


def _stored(stored: Stored) -> Mapping[str, Any]:
    return {**asdict(stored), "freshness_in_words": freshness_of(stored)}
