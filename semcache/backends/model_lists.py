"""What backends say they serve: asked at the start, every minute, and when one has come back.

The rule: the last good answer counts until there is a better one. A backend that has never answered may serve anything,
so it is asked for a model only where no other backend is known to have it: a list that cannot be had, for want of a key
or of the path, puts no backend out of use.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from urllib.parse import quote

from multidict import CIMultiDict

from semcache.backends.fetch import Fetcher, UpstreamRequest
from semcache.backends.models import Models, is_listed, merge_models, offered, read_page
from semcache.backends.routing import Way
from semcache.backends.target import Target
from semcache.config import Backend
from semcache.errors import ClientError, SemcacheError, UpstreamError

log = logging.getLogger(__name__)

INTERVAL_S = 60.0
DEADLINE_S = 10.0  # of one list, all its pages; a model server answers in milliseconds, a vendor in one or two seconds
MAX_PAGES = 20
MAX_BYTES = 8 * 1024 * 1024  # of a list; the largest known, of a broker of some 500 models, has one

_PATHS: Mapping[str, str] = {"ollama": "/api/tags", "anthropic": "/v1/models?limit=1000"}  # else: /v1/models
_FIELDS: Mapping[str, Mapping[str, str]] = {"anthropic": {"anthropic-version": "2023-06-01"}}
_CONDITIONS = ("If-None-Match", "If-Modified-Since", "Range")  # a caller's, on our list and not on theirs


def is_asked(backend: Backend) -> bool:
    """Azure is not: it lists what could be deployed, and is asked for deployments."""
    return backend.models == "ask" and backend.dialect != "azure"


class ModelLists:
    def __init__(self, fetcher: Fetcher, interval_s: float = INTERVAL_S) -> None:
        self._fetcher = fetcher
        self._interval_s = interval_s
        self._targets: dict[str, Target] = {}  # by name: those whose list is kept
        self._lists: dict[str, Models] = {}
        self._mute: set[str] = set()  # their last question brought no answer
        self._due: set[str] = set()
        self._is_due = asyncio.Event()
        self.asked = 0

    def watch(self, targets: Iterable[Target]) -> None:
        """Keep the lists of these, and of no others. What is known of a backend stays if it is the same as before."""
        before = self._targets
        self._targets = {target.name: target for target in targets if is_asked(target.backend)}
        self._lists = {name: models for name, models in self._lists.items() if self._is_as(before, name)}
        self._mute &= self._targets.keys()
        self._due |= self._targets.keys() - self._lists.keys()
        if self._due:
            self._is_due.set()

    def _is_as(self, before: Mapping[str, Target], name: str) -> bool:
        target = self._targets.get(name)
        return target is not None and target.backend == before[name].backend

    def returned(self, name: str) -> None:
        """A backend has come back: perhaps with another model."""
        if name in self._targets:
            self._due.add(name)
            self._is_due.set()

    def serves(self, name: str, model: str) -> bool | None:
        """Whether a backend lists a model; None: nobody knows, as it has never answered or is not to be asked."""
        models = self._lists.get(name)
        return None if models is None else is_listed(model, models)

    def choose(self, targets: Sequence[Target], asked: str | None) -> Sequence[Target]:
        """Those that serve a model, in their order; where none is known to, those of which nobody knows.

        `asked`: as the caller names it; None: no model is. May be empty: none has it.
        """
        if asked is None or not any(is_asked(target.backend) for target in targets):
            return targets
        said = [
            (target, self.serves(target.name, target.model or asked) if is_asked(target.backend) else True)
            for target in targets
        ]
        return [target for target, has in said if has] or [target for target, has in said if has is None]

    def narrow(self, way: Way, asked: str | None) -> Way:
        """The way without those that do not serve the model. Raises ClientError (404) when nothing is left."""
        targets = way.targets
        kept = self.choose(targets, asked)
        if len(kept) == len(targets):
            return way
        if not kept:
            message = f"no backend of this route serves the model {(way.model or asked or '')[:100]!r}"
            raise ClientError(message, status=404, param="model", code="model_not_found")
        options = (
            replace(option, targets=tuple(target for target in option.targets if target in kept))
            for option in way.options
        )
        return replace(way, options=tuple(option for option in options if option.targets))

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                async with asyncio.timeout(self._interval_s):
                    await self._is_due.wait()
            except TimeoutError:
                self._due = set(self._targets)
            due, self._due = self._due, set()
            self._is_due.clear()
            await self.ask(due)

    async def ask(self, names: Iterable[str]) -> None:
        """Ask these backends at once. What goes wrong is logged when it begins and when it ends."""
        targets = [self._targets[name] for name in names if name in self._targets]
        await asyncio.gather(*(self._ask_one(target) for target in targets))

    async def _ask_one(self, target: Target) -> None:
        self.asked += 1
        try:
            models = await fetch_list(self._fetcher, target)
        except SemcacheError as exc:
            if target.name not in self._mute:
                self._mute.add(target.name)
                log.warning("which models %s serves is not known anew: %s", target.name, exc.message)
            return
        if self._targets.get(target.name) is not target:  # replaced meanwhile, by a reload
            return
        self._mute.discard(target.name)
        if models.keys() != self._lists.get(target.name, {}).keys():
            log.info("%s serves %s", target.name, ", ".join(list(models)[:20]) or "no model")
        self._lists[target.name] = models

    async def merged(
        self,
        targets: Sequence[Target],
        dialect: str,
        is_allowed: Callable[[str], bool],
        headers: Mapping[str, str],
        pass_key: bool,
        aliases: Iterable[str] = (),
    ) -> bytes:
        """The body of our own list of models: what these backends offer, under the names that callers use.

        `is_allowed`: whether a route takes this caller's request for a model. `headers`, `pass_key`: as of a request
        that passes through, for those backends whose list is not kept; they are asked at once, and who does not answer
        is left out. `aliases`: names that routes put another model in the place of.
        Raises UpstreamError when none answers.
        """
        one_of_each = {id(target.backend): target for target in targets}  # not each of a backend's keys
        lists = await asyncio.gather(
            *(self._list_of(target, headers, pass_key) for target in one_of_each.values()), return_exceptions=True
        )
        found = []
        error: BaseException | None = None
        for target, models in zip(one_of_each.values(), lists, strict=True):
            if isinstance(models, BaseException):
                if not isinstance(models, SemcacheError):
                    raise models
                error, models = models, {}
                if isinstance(target.backend.models, str):
                    continue
            found.append(offered(target.backend.models, models))
        if not found:
            raise error or UpstreamError("no backend was given")
        return merge_models([*found, {name: {} for name in aliases}], dialect, is_allowed)

    async def _list_of(self, target: Target, headers: Mapping[str, str], pass_key: bool) -> Models:
        if (known := self._lists.get(target.name)) is not None:
            return known
        return await fetch_list(self._fetcher, target, headers, pass_key)

    def stats(self) -> dict[str, object]:
        return {
            "asked": self.asked,
            "models": {name: sorted(models) for name, models in self._lists.items()},
            "mute": sorted(self._mute),
        }


async def fetch_list(
    fetcher: Fetcher, target: Target, headers: Mapping[str, str] | None = None, pass_key: bool = False
) -> Models:
    """Ask a backend which models it has. Raises UpstreamError; ClientError for headers that must not go."""
    dialect = target.backend.dialect
    fields = CIMultiDict(headers or {})
    for name in _CONDITIONS:
        fields.popall(name, None)
    fields.update(_FIELDS.get(dialect, {}))
    path = _PATHS.get(dialect, "/v1/models")
    found: dict[str, Mapping[str, object]] = {}
    try:
        async with asyncio.timeout(DEADLINE_S):
            for _ in range(MAX_PAGES):
                body = await _get(fetcher, target, path, fields, pass_key)
                models, last = read_page(body)
                found |= models
                if last is None:
                    return found
                path = f"/v1/models?limit=1000&after_id={quote(last, safe='')}"
    except TimeoutError as exc:
        message = f"{target.name} did not list its models within {DEADLINE_S:g} s"
        raise UpstreamError(message, status=504, code="upstream_timeout") from exc
    except ValueError as exc:
        raise UpstreamError(f"{target.name} answered with what is no list of models") from exc
    raise UpstreamError(f"{target.name} does not come to the end of its list of models")


async def _get(fetcher: Fetcher, target: Target, path: str, headers: CIMultiDict[str], pass_key: bool) -> bytes:
    request = UpstreamRequest("GET", path, headers, want_recording=True, pass_key=pass_key)
    reply = await fetcher.send(target, request)
    try:
        if reply.status != 200:
            raise UpstreamError(f"{target.name} answered with status {reply.status} when asked for its models")
        body = bytearray()
        async for piece in reply.chunks():
            body += piece
            if len(body) > MAX_BYTES:
                raise UpstreamError(f"{target.name} lists more models than anybody has")
        return bytes(body)
    finally:
        await reply.abort()
