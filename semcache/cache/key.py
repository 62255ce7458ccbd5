"""KEY: everything that may enter a cache key is decided here. Nothing else in the program puts key material together.

First partition hard, then search. Scope, context and embedder are equality keys; only the question may be near instead
of equal. So a neighbour from another tenant, model or conversation can never be seen, whatever its cosine.
"""

from __future__ import annotations

from hashlib import blake2b

from semcache.types import Ask, Key, Scope, Tenant

_VERSION = b"semcache-key-3"  # part of every key: changing what goes in must change this, so old entries are never met


def derive_scope(ask: Ask, tenant: Tenant, namespace: str, sharing: str) -> Scope:
    """Say who may share the answer. `sharing` is `cache.sharing`.

    Without a namespace, asked for or given by the tenant's settings (see admit.py), an answer stays with its tenant
    even where namespaces are shared: sharing is chosen, never fallen into.
    """
    match sharing:
        case "all":
            owner, group = "", ""
        case "namespace" if namespace:
            owner, group = "", namespace
        case _:
            owner, group = tenant.id, namespace
    return Scope(owner, group, ask.dialect, ask.endpoint, ask.model)


def derive_key(
    ask: Ask,
    scope: Scope,
    embedder: str | None,
    shorter: bytes | None = None,
    *,
    is_personal: bool = False,
    regions: frozenset[str] = frozenset(),
) -> Key:
    """Return the exact key and, where `embedder` (its stamp) is given and there is a question, the partition.

    `shorter`: the context without the turns that need not be equal for a near question (see conversation.py). It
    makes the partition; the exact key always holds the whole.

    `is_personal`: the answer is for the user whom the request names. Without one it is for all who name none, and never
    for somebody who does: so such keys are of a kind of their own.
    """
    shared = _share(ask, scope, ask.context, regions)
    if is_personal:
        said = () if ask.question is None else (ask.question.encode(),)
        return Key(_digest(b"personal", shared, (ask.user or "").encode(), *said), None)
    if ask.question is None:
        return Key(exact=_digest(b"exact", shared), partition=None)
    exact = _digest(b"exact", shared, ask.question.encode())
    if embedder is None:
        return Key(exact, None)
    near = shared if shorter is None else _share(ask, scope, shorter, regions)
    return Key(exact, _digest(b"partition", near, embedder.encode()))


def _share(ask: Ask, scope: Scope, context: bytes, regions: frozenset[str]) -> bytes:
    return _digest(
        _VERSION,
        scope.tenant.encode(),
        scope.namespace.encode(),
        scope.dialect.encode(),
        scope.endpoint.encode(),
        scope.model.encode(),
        ask.target.encode(),
        context,
        # Where nobody is bound, keys are as they were before there were regions: one part fewer.
        *(name.encode() for name in sorted(regions)),
    )


def _digest(*parts: bytes) -> bytes:
    """Hash the parts with their lengths, so that no two lists of parts run together ("a:b","c" is not "a","b:c")."""
    framed = b"".join(len(part).to_bytes(8, "big") + part for part in parts)
    return blake2b(framed, digest_size=32).digest()
