"""Entries to put into a store. An answer says whose question it belongs to, so a mix-up shows."""

from __future__ import annotations

from hashlib import blake2b

import numpy as np

from semcache.types import Answer, Entry, Form, Key, Scope, Usage, Vector

STAMP = "words-8"
NOW = 1_800_000_000.0  # as tests.fakes.Clock


def make_entry(
    question: str,
    *,
    tenant: str = "shop",
    namespace: str = "faq",
    model: str = "gpt-4o",
    user: str | None = None,
    created_at: float = NOW,
    ttl_s: float = 3600.0,
    grace_s: float = 60.0,
    embedder: str | None = STAMP,
    padding: int = 0,
) -> Entry:
    scope = Scope(tenant, namespace, "openai", "chat/completions", model)
    return Entry(
        id=entry_id(question, tenant, created_at),
        scope=scope,
        key=Key(digest(f"{scope}{question}"), digest(f"{scope}{embedder}") if embedder else None),
        question=question,
        vector=unit_vector(question) if embedder else None,
        embedder=embedder,
        answer=Answer("openai", Form.JSON, (answer_to(question) + b" " * padding,), (), Usage(5, 6)),
        created_at=created_at,
        ttl_s=ttl_s,
        grace_s=grace_s,
        user=user,
        writer=tenant,
    )


def entry_id(question: str, tenant: str = "shop", created_at: float = NOW) -> str:
    return digest(f"{tenant} {question} {created_at}").hex()[:20]


def answer_to(question: str) -> bytes:
    return b'{"answers":"%s"}' % digest(question).hex().encode()


def belongs(entry: Entry) -> bool:
    return entry.question is not None and entry.answer.parts[0].rstrip() == answer_to(entry.question)


def digest(text: str) -> bytes:
    return blake2b(text.encode(), digest_size=32).digest()


def unit_vector(text: str, dimensions: int = 8) -> Vector:
    vector = np.random.default_rng(int.from_bytes(digest(text)[:8], "big")).normal(size=dimensions).astype(np.float32)
    return np.asarray(vector / np.linalg.norm(vector), dtype=np.float32)
