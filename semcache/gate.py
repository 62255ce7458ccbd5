"""THE GATE: what a request passes between its arrival and its plan, and between its plan and its answer.

    identify   who asks, and whether he may be here at all; before the body is read
    let_in     what guardrails say of it, and whether its limits allow it; before anything answers it
    settle     what it was let in for and did not use is given back

What is refused here is a ClientError in the caller's dialect.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from time import monotonic

from multidict import CIMultiDictProxy

from semcache.access.credentials import KeySetStale, NoReader, Reader
from semcache.access.quota import NOTHING, Quotas
from semcache.admit import Admission
from semcache.config import Hook
from semcache.guardrails.extraction import ExtractionWatch
from semcache.guardrails.hook import FirewallHook, Question
from semcache.guardrails.suspicion import Action, Suspicion, refusal
from semcache.metering import Tab
from semcache.planning import Plan
from semcache.residency import Residency
from semcache.tunnel import with_offered_key
from semcache.types import Outcome, Tenant
from semcache.usage.estimates import expected_tokens

_UPSTREAMS_LIMITS = ("x-ratelimit-", "anthropic-ratelimit-")


class Gate:
    def __init__(
        self,
        admission: Admission,
        quotas: Quotas,
        residency: Callable[[], Residency],
        clock: Callable[[], float] = time.time,
        now: Callable[[], float] = monotonic,
        reader: Reader = NoReader(),
    ) -> None:
        """`residency`: of the settings in force. `clock`: unix seconds. `now`: monotonic seconds. `reader`: of what a
        semcache in front of us says of who asks."""
        self._admission = admission
        self._quotas = quotas
        self._residency = residency
        self._clock = clock
        self._now = now
        self._reader = reader
        self._watch = ExtractionWatch(now)
        self._hooks: dict[Hook, FirewallHook] = {}

    async def identify(self, headers: CIMultiDictProxy[str], outcome: Outcome) -> Tenant:
        """Raises ClientError: 401, or 403 for a tenant that may not be here."""
        tenant = self._reader.identify(headers, self._clock())
        if tenant is None:
            with_key = with_offered_key(headers)
            try:
                tenant = self._admission.identify(with_key)
            except KeySetStale:  # a token that names a key its issuer has made since we last asked
                await self._admission.learn_keys()
                tenant = self._admission.identify(with_key)
        outcome.tenant, outcome.key, outcome.regions = tenant.id, tenant.key, tenant.regions
        self._residency().refuse_outsiders(tenant.regions)
        return tenant

    async def let_in(self, plan: Plan, outcome: Outcome) -> Tab:
        """Raises ClientError: 403 for what guardrails refuse, 429 for a limit that is used up."""
        if plan.inspection.suspicions:
            outcome.flags = plan.inspection.flags
            if plan.inspection.refused is not None:
                raise refusal(plan.inspection.refused)
        tab = self._reserve(plan)
        guardrails = plan.route.guardrails
        try:  # limits come first: whoever is over his has no firewall asked, and gets nothing that he could copy
            if guardrails.extraction != "off":
                self._heed(self._watch.seen(plan.tenant.id, plan.tenant.key, plan.key.exact, guardrails), outcome)
            if guardrails.hook is not None:
                self._heed(await self._ask_hook(guardrails.hook, plan, outcome), outcome)
        except BaseException:
            self.settle(tab)
            raise
        return tab

    def _reserve(self, plan: Plan) -> Tab:
        subjects = self._admission.limits(plan.tenant)
        if not subjects:
            return Tab(NOTHING)
        tokens = expected_tokens(plan.ask)
        return Tab(self._quotas.reserve(subjects, tokens, self._clock(), may_be_free=True), subjects)

    def let_pass(self, tenant: Tenant) -> Tab:
        """A request that no dialect here understands: it counts, and what it costs is not known. Raises ClientError."""
        subjects = self._admission.limits(tenant)
        tab = Tab(self._quotas.reserve(subjects, 0, self._clock()), subjects)
        self.settle(tab)
        return tab

    def limited(self, headers: list[tuple[str, str]], tab: Tab, *, is_relayed: bool = True) -> list[tuple[str, str]]:
        """A reply's fields with what is left of this caller's limits, if he has any, in the place of what an upstream
        says of ours.

        `is_relayed`: there are fields of an upstream among them.
        """
        if not tab.subjects:
            return headers
        if is_relayed:
            headers = [(name, value) for name, value in headers if not name.lower().startswith(_UPSTREAMS_LIMITS)]
        return headers + self._quotas.headers(tab.reservation, self._clock())

    def settle(self, tab: Tab) -> None:
        """The request is over. What a fetch of it costs is settled when the fetch is."""
        if tab.reservation is not NOTHING and not tab.is_fetching:
            self._quotas.settle(tab.reservation, None, None, self._clock())

    def _heed(self, said: Suspicion | None, outcome: Outcome) -> None:
        if said is None:
            return
        outcome.flags = (*outcome.flags, said.flag)
        if said.action is Action.REFUSE:
            raise refusal(said)

    async def _ask_hook(self, settings: Hook, plan: Plan, outcome: Outcome) -> Suspicion | None:
        hook = self._hooks.get(settings)
        if hook is None:
            hook = self._hooks[settings] = FirewallHook(settings, self._residency().here, self._now)
        asked = Question(
            request_id=outcome.request_id,
            tenant=plan.tenant.id,
            route=plan.route_name,
            model=plan.ask.model,
            endpoint=plan.ask.endpoint,
            body=plan.ask.body,
        )
        return await hook.ask(asked, plan.regions)

    async def close(self) -> None:
        for hook in self._hooks.values():
            await hook.close()

    def stats(self) -> Mapping[str, Mapping[str, float]]:
        firewall: dict[str, float] = {}
        for hook in self._hooks.values():
            for name, figure in hook.stats().items():
                firewall[name] = firewall.get(name, 0) + figure
        return {
            "firewall": firewall,
            "quotas": self._quotas.stats(),
            "extraction": self._watch.stats(),
            "admission": self._admission.stats(),
        }
