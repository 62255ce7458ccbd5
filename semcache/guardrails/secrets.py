"""Finding credentials by the shapes that their makers gave them, so that a scanner can tell them from other text.

Only what has a prefix, a frame or a name of its own is looked for. A password in a sentence, or a key without a prefix,
looks like any other word and is not found. Prefixes are those that the vendors document for secret scanners; a part
that is not random enough, or that says "example", is a placeholder.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import orjson


class Secret(NamedTuple):
    rule: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class SecretRule:
    """A shape. Group 1 of the pattern, where it has one, is the secret; else all that it matches."""

    id: str
    needles: tuple[str, ...]  # one of them is in every text that the pattern finds
    pattern: re.Pattern[str]
    is_real: Callable[[str], bool]


def find_secrets(text: str, rules: tuple[SecretRule, ...]) -> list[Secret]:
    """The secrets in a text, in order; where two overlap, the one that begins first, or the longer one."""
    found = [secret for rule in rules for secret in _find(text, rule)]
    found.sort(key=lambda secret: (secret.start, -secret.end))
    apart: list[Secret] = []
    for secret in found:
        if not apart or secret.start >= apart[-1].end:
            apart.append(secret)
    return apart


def may_hold(text: str) -> tuple[SecretRule, ...]:
    """The rules that could find anything in a text. A search for a plain string takes a microsecond for 10 KB."""
    return tuple(rule for rule in SECRETS if any(needle in text for needle in rule.needles))


def _find(text: str, rule: SecretRule) -> Iterator[Secret]:
    for found in rule.pattern.finditer(text):
        group = 1 if rule.pattern.groups else 0
        if rule.is_real(found[group]):
            yield Secret(rule.id, *found.span(group))


# What tells a secret from a placeholder

_MIN_BITS = 2.8  # Shannon entropy per character; 20 random ones of base 62 have above 3.3 in 999 of 1,000 draws
_PLACEHOLDER = re.compile(r"example|sample|your|xxxx|\*\*\*|\.\.\.|0{6}|123456|abcdef|placeholder|redacted|dummy", re.I)


def _is_random(text: str) -> bool:
    if _PLACEHOLDER.search(text):
        return False
    counts = Counter(text)
    return -sum(n / len(text) * math.log2(n / len(text)) for n in counts.values()) >= _MIN_BITS


def _is_jwt(text: str) -> bool:
    """Whether its header is that of a signed or encrypted token."""
    header = text.partition(".")[0]
    try:
        fields = orjson.loads(base64.urlsafe_b64decode(header + "=" * (-len(header) % 4)))
    except (binascii.Error, ValueError):
        return False
    return isinstance(fields, dict) and "alg" in fields


def _is_password(text: str) -> bool:
    """Of a URL: not a word that stands for one."""
    return text.lower() not in _NO_PASSWORDS and text[0] not in "<{$[%*" and not _PLACEHOLDER.search(text)


_NO_PASSWORDS = frozenset({"password", "pass", "passwd", "pwd", "secret", "user", "username", "token", "key", "port"})


def _rule(id: str, needles: str, pattern: str, is_real: Callable[[str], bool] = _is_random) -> SecretRule:
    """`needles`: separated by `|`. No letter or digit goes on at either end; `\\n` of JSON in a string is no letter."""
    whole = rf"(?:(?<![A-Za-z0-9])|(?<=\\[nrt]))(?:{pattern})(?![A-Za-z0-9])"
    return SecretRule(id, tuple(needles.split("|")), re.compile(whole), is_real)


_PRIVATE = r"[A-Z0-9 ]{0,30}PRIVATE KEY(?: BLOCK)?-----"
_PEM = (  # its lines may be escaped once more, in JSON inside a string; one that was cut has no end
    rf"-----BEGIN {_PRIVATE}(?:(?:[A-Za-z0-9+/=\s\\:,.()]|-(?!-)){{40,16384}}-----END {_PRIVATE}"
    r"|[A-Za-z0-9+/=\s\\]{64,16384})"
)
_PASSWORD = r"://[^\s/@:\"'<>\\]{0,64}:([^\s/@\"'<>\\]{3,128})@[A-Za-z0-9\[]"

SECRETS: tuple[SecretRule, ...] = (
    _rule("semcache-key", "sk-sc-", r"sk-sc-[A-Za-z0-9_-]{24,128}"),
    _rule("openai-key", "T3BlbkFJ", r"sk-(?:[A-Za-z0-9_-]{0,160})T3BlbkFJ[A-Za-z0-9_-]{20,160}"),  # "OpenAI", in base64
    _rule("anthropic-key", "sk-ant-", r"sk-ant-[a-z]{2,8}\d{2}-[A-Za-z0-9_-]{60,140}"),
    _rule("model-api-key", "sk-", r"sk-(?:or-v1-|lf-|proj-|svcacct-|admin-)?[A-Za-z0-9]{32,128}"),
    _rule("model-api-key", "gsk_", r"gsk_[A-Za-z0-9]{40,64}"),
    _rule("model-api-key", "xai-", r"xai-[A-Za-z0-9]{60,100}"),
    _rule("model-api-key", "pplx-", r"pplx-[A-Za-z0-9]{40,64}"),
    _rule("model-api-key", "nvapi-", r"nvapi-[A-Za-z0-9_-]{56,80}"),
    _rule("huggingface-token", "hf_", r"hf_[A-Za-z0-9]{30,40}"),
    _rule("github-token", "ghp_|gho_|ghu_|ghs_|ghr_", r"gh[pousr]_[A-Za-z0-9]{36,255}"),
    _rule("github-token", "github_pat_", r"github_pat_[A-Za-z0-9]{22}_[A-Za-z0-9]{59}"),
    _rule(
        "gitlab-token",
        "glpat-|gldt-|glrt-|glptt-|glft-|glsoat-|glcbt-|glagent-|gloas-",
        r"gl(?:pat|dt|rt|ptt|ft|soat|cbt|agent|oas)-[A-Za-z0-9_-]{20,300}(?:\.[0-9a-z]{2}\.?[0-9a-z]{7})?",
    ),
    _rule("aws-access-key", "AKIA|ASIA|ABIA|ACCA", r"(?:AKIA|ASIA|ABIA|ACCA)[A-Z2-7]{16}"),
    _rule(
        "aws-secret-key",
        "ecret|ECRET",
        r"[Aa][Ww][Ss]_?[Ss][Ee][Cc][Rr][Ee][Tt]_?(?:[Aa][Cc][Cc][Ee][Ss][Ss]_?)?[Kk][Ee][Yy][\"'\s:=\\]{1,8}([A-Za-z0-9/+]{40})",
    ),
    _rule("google-api-key", "AIza", r"AIza[A-Za-z0-9_-]{35}"),
    _rule("google-oauth", "GOCSPX-|ya29.", r"GOCSPX-[A-Za-z0-9_-]{28}|ya29\.[A-Za-z0-9_-]{40,512}"),
    _rule("slack-token", "xox|xapp-", r"xox[abeoprs]-[A-Za-z0-9-]{20,250}|xapp-\d-[A-Za-z0-9-]{30,250}"),
    _rule(
        "slack-webhook",
        "hooks.slack.com",
        r"https://hooks\.slack\.com/(?:services|workflows|triggers)/([A-Za-z0-9]{8,12}/[A-Za-z0-9]{8,24}/[A-Za-z0-9]{20,32})",
    ),
    _rule(
        "stripe-key",
        "k_live_|k_test_|whsec_",
        r"(?:sk|rk)_(?:live|test)_[A-Za-z0-9]{16,120}|whsec_[A-Za-z0-9+/]{24,64}",
    ),
    _rule("npm-token", "npm_", r"npm_[A-Za-z0-9]{36}"),
    _rule("pypi-token", "pypi-AgE", r"pypi-AgE[A-Za-z0-9_-]{60,400}"),
    _rule("sendgrid-key", "SG.", r"SG\.[A-Za-z0-9_-]{22}\.[A-Za-z0-9_-]{43}"),
    _rule("digitalocean-token", "do_v1_|dop_v1_|doo_v1_", r"do[opr]_v1_[a-f0-9]{64}"),
    _rule("shopify-token", "shpat_|shpca_|shppa_|shpss_", r"shp(?:at|ca|pa|ss)_[a-fA-F0-9]{32}"),
    _rule("azure-storage-key", "AccountKey=", r"AccountKey=([A-Za-z0-9+/]{86}==)"),
    # It begins a run of its letters, or "-eyJ" again and again would be read a thousand times over.
    _rule(
        "jwt", "eyJ", r"(?<![_-])eyJ[A-Za-z0-9_-]{8,1024}+\.eyJ[A-Za-z0-9_-]{8,8192}+\.[A-Za-z0-9_-]{16,1024}", _is_jwt
    ),
    SecretRule("url-password", ("://",), re.compile(_PASSWORD), _is_password),
    SecretRule("private-key", ("PRIVATE KEY",), re.compile(_PEM), bool),
)
