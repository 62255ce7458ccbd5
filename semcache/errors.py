"""Whose fault it is. Foreign exceptions are translated into these in the file where they enter.

A ClientError, UpstreamError or Overloaded ends as a response in the client's dialect. A CacheFault never reaches a
client: the request goes forward as a BYPASS. A ConfigError ends the start of the program, or is refused by a reload.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil


class SemcacheError(Exception):
    """`message` is shown to whoever caused it, so it holds no secret and no other party's text."""

    status = 500
    code: str | None = None

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class ClientError(SemcacheError):
    """The request cannot be served as it is: 4xx."""

    status = 400

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code
        self.headers = dict(headers or {})


class OutOfRegion(ClientError):
    """It could only be served outside the regions it is bound to: 403.

    `regions`: those. A log outside them is told nothing of the refusal either.
    """

    def __init__(self, message: str, regions: frozenset[str]) -> None:
        super().__init__(message, status=403, code="region_not_allowed")
        self.regions = regions


class UpstreamError(SemcacheError):
    """No usable answer came from any backend: 502, or 504 when it was a deadline."""

    def __init__(self, message: str, *, status: int = 502, code: str = "upstream_error", sent: bool = False) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.sent = sent  # the request may have arrived, so it must not be sent again


class Overloaded(SemcacheError):
    """There is no place for the request now, at any backend that may take it: 503, and when to come back.

    Not 429: that says the caller has had his share, and is what a spent limit of his own answers. Nothing was sent, so
    nothing stands against asking again, and the SDKs do so by themselves after `Retry-After`.
    """

    status = 503
    code = "overloaded"

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.headers = {"Retry-After": str(max(1, ceil(retry_after_s)))}  # whole seconds (RFC 9110 section 10.2.3)


STOPPING = UpstreamError("the proxy is stopping", status=503, code="stopping")  # at the end of a drain


class CacheFault(SemcacheError):
    """A part of the cache failed or was late. The request goes forward all the same."""


class EmbedderFault(CacheFault):
    """The question could not be embedded: engine, deadline, full queue, or a vector that is not one."""


class RerankerFault(CacheFault):
    """A pair could not be scored: engine, deadline, or full queue. The candidate is then refused."""


class StoreFault(CacheFault):
    """The store could not be read or written."""


class TooLong(SemcacheError):
    """The question is longer than the embedder's window. Not a fault: it leaves only the exact tier."""


class ConfigError(SemcacheError):
    """A setting is wrong. The message names the path, the value and the remedy. Exit status 2."""


class StartError(SemcacheError):
    """The program cannot start: port taken, store or model unusable. One clear line, exit status 1."""
