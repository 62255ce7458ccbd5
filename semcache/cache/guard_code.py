"""The guard `code`: what is quoted or written for machines must be in both texts.

Quotations, code, URLs, mail addresses, paths, file names, digests, flags, operators and identifiers decide an answer,
and embeddings hardly see them. What one text marks so, the other must have too: marked as well, or at least as words,
since people leave quotation marks out. Case and white space are no difference: many people type without either.
"""

from __future__ import annotations

import re
import unicodedata
from typing import NamedTuple

from semcache.cache.remember import remember
from semcache.cache.vocabulary import stem
from semcache.cache.wording import is_context


def code_differ(asked: str, stored: str) -> bool:
    """Whether a piece of either text is missing in the other.

    1. Pieces on both sides that are not the other's: exchanged, unless each stands in the other without its marks.
    2. Pieces on one side only: their words have to be in the other, in whatever form and order, since `git push` is
       also "a push with git". An operator has no words, so it is always missing.
    """
    if asked == stored:
        return False
    one, other = read_code(asked), read_code(stored)
    extra, missing = one.pieces - other.pieces, other.pieces - one.pieces
    if extra and missing:
        return not (all(map(other.has, extra)) and all(map(one.has, missing)))
    if all(map(other.has_words_of, extra)) and all(map(one.has_words_of, missing)):
        return False
    return not is_context(asked, stored, sum(len(piece.words.split()) for piece in extra | missing), 1)


class _Piece(NamedTuple):
    text: str  # in lower case and without white space
    words: str  # its words, a space around each; empty for an operator

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Piece) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)


class _Reading(NamedTuple):
    pieces: frozenset[_Piece]
    text: str  # in lower case and without white space
    words: str  # all of them in order, a space around each

    def has(self, piece: _Piece) -> bool:
        """The piece stands here unmarked, as it is or in its words."""
        return piece.words in self.words if piece.words.strip() else piece.text in self.text

    def has_words_of(self, piece: _Piece) -> bool:
        if not piece.words.strip():
            return self.has(piece)
        own = {stem(word) for word in self.words.split()}
        return all(stem(word) in own for word in piece.words.split())


_READ = 20_000  # characters: longer texts never get so far, as no embedder reads them; it bounds what a caller can cost


@remember
def read_code(text: str) -> _Reading:
    text = unicodedata.normalize("NFKC", text[:_READ]).translate(_QUOTES)
    pieces: set[_Piece] = set()

    def take(found: re.Match[str]) -> str:
        inner = found[found.lastindex or 0]
        # Quotation marks around nearly everything quote nothing: a title that was copied with them.
        if 2 * len(inner) > len(text):
            return inner
        pieces.add(_Piece(_plain(inner), _words(inner)))
        return " "

    rest = _QUOTED.sub(take, text)
    letters = set(rest)
    for kind in _UNQUOTED:
        if kind.needs and letters.isdisjoint(kind.needs):
            continue
        for found in kind.pattern.finditer(rest):
            piece = found[0].rstrip(".,;:!?")
            words = "" if kind.is_symbolic else _words(found[1] if kind.pattern.groups else piece)
            pieces.add(_Piece(_plain(piece), words))
    return _Reading(frozenset(piece for piece in pieces if piece.text), _plain(text), _words(text))


def _plain(text: str) -> str:
    return "".join(text.casefold().split())


def _words(text: str) -> str:
    return f" {' '.join(_WORD.findall(text.casefold()))} "


_WORD = re.compile(r"[^\W_]+")
_QUOTES = {ord(mark): '"' for mark in "“”„«»‟＂"} | {ord(mark): "'" for mark in "‘’‚‛"}

_LIBRARIES = r"(?:node|vue|react|next|nuxt|express|three|d3|asp)\."  # names that look like files
_CAPITALS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_SQL = (
    r"insert\s+into|delete\s+from|(?:alter|create|drop|truncate)\s+table|(?:group|order)\s+by|union\s+all|"
    r"(?:left|right|inner|outer|full|cross)\s+join|select\s+\*\s+from\s+\S+"
)

# An opening mark follows no letter or digit, so the inches of 15" and the apostrophe of "users'" open nothing.
_QUOTED = re.compile(
    r"```(?:\w*\n)?(.+?)```"
    r"|(?<!`)`([^`\n]{1,500})`"
    r'|(?<!\w)"([^"]{1,2000})"'
    r"|(?<!\w)'([^'\n]{1,200}(?:'\w[^'\n]{0,200}){0,3})'(?!\w)",
    re.DOTALL,
)

_FILES = (
    "py|js|ts|tsx|jsx|java|c|cc|cpp|h|hpp|cs|go|rs|rb|php|html|htm|css|scss|json|yaml|yml|xml|csv|tsv|txt|md|pdf|doc|docx|"
    "xls|xlsx|ppt|pptx|png|jpg|jpeg|gif|svg|mp3|mp4|wav|zip|tar|gz|exe|dll|so|jar|apk|iso|sh|bat|ps1|sql|ipynb|toml|ini|"
    "log|conf|cfg|env|lock|parquet|db|bak|vue|swift|kt|lua|pl"
)
_SITES = "com|org|net|io|edu|gov|info|biz|dev|app|co\\.uk|de|fr|es|it|nl|eu|ru|cn|jp|ca|au|br"
_TOOLS = (
    "git|docker|kubectl|npm|npx|pnpm|yarn|pip|pip3|apt|apt-get|brew|cargo|conda|systemctl|helm|terraform|poetry|uv|adb"
)
_ACTIONS = (
    "add|apply|blame|branch|build|checkout|cherry-pick|clean|clone|commit|compose|config|create|delete|describe|destroy|"
    "diff|disable|enable|exec|fetch|freeze|get|images|init|inspect|install|list|log|logs|merge|plan|prune|ps|publish|pull|"
    "push|rebase|remove|reset|restart|restore|revert|rm|run|scale|search|show|start|stash|status|stop|switch|tag|test|"
    "uninstall|update|upgrade"
)


class _Kind(NamedTuple):
    needs: str  # at least one of these characters is in any text that holds such a piece: most texts are not searched
    pattern: re.Pattern[str]  # with a group: its words alone must be found in a text that does not write the piece so
    is_symbolic: bool = False  # its words say nothing without what stands between them


_UNQUOTED: tuple[_Kind, ...] = (
    _Kind(":.", re.compile(r"\b(?:https?|ftp|s3|ssh|file)://\S+|\bwww\.\S+", re.IGNORECASE)),
    _Kind("@", re.compile(r"[\w.+-]{1,64}@[\w-]{1,64}\.[\w.-]{1,64}")),
    _Kind(
        ".", re.compile(rf"(?<![\w./@-])([\w-]{{1,63}})\.(?:{_SITES})\b(?![\w/@-])", re.IGNORECASE)
    ),  # amazon.com: amazon
    _Kind("/\\", re.compile(r"(?<!\S)(?:~|\.{1,2})?/[\w.@-]+(?:/[\w.@-]*)*|\b[A-Za-z]:\\\S+")),  # paths
    _Kind(".", re.compile(rf"(?<![\w.@/-])(?!{_LIBRARIES})[\w/-]{{1,100}}\.(?:{_FILES})\b(?![\w/-])", re.IGNORECASE)),
    _Kind("0", re.compile(r"\b0x[0-9a-f]+\b", re.IGNORECASE)),
    _Kind("-", re.compile(r"\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b", re.IGNORECASE)),
    _Kind("0123456789", re.compile(r"\b(?=[0-9a-f]*[a-f])(?=[a-f]*[0-9])[0-9a-f]{7,64}\b", re.IGNORECASE)),  # digests
    _Kind("-", re.compile(r"(?<![\w-])(?:--[A-Za-z][\w-]+(?:=\S+)?|-[A-Za-z]{1,4}(?=\s|$))")),  # flags
    _Kind(_CAPITALS, re.compile(r"\b[a-z]{2,}(?:[A-Z][a-z0-9]+)+\b|\b(?:[A-Z][a-z0-9]+)+(?:Error|Exception)\b")),
    _Kind(_CAPITALS, re.compile(r"\b(?:[A-Z][a-z0-9]+){3,}\b")),
    _Kind("_", re.compile(r"\b\w*[A-Za-z0-9]_\w+|\b__\w+")),  # snake_case, __dunder__
    _Kind("(", re.compile(r"(?<![\w.])[A-Za-z_][\w.]*\((?:[^()\s]{0,100}[,'\"=.][^()\s]{0,100})?\)")),  # calls
    _Kind("", re.compile(rf"\b(?:{_TOOLS})\s+(?:{_ACTIONS})\b", re.IGNORECASE)),
    _Kind("", re.compile(rf"\b(?:{_SQL})\b", re.IGNORECASE)),
    _Kind("S", re.compile(r"\bSELECT\s.{1,300}?\sFROM\s[^?!\n]{1,300}")),
    _Kind(
        "\\[(", re.compile(r"(?<!\S)\S{0,100}?(?:\\[dwsbDWSB]|\[\^?\w-\w[^\]\s]{0,100}\]|\(\?)\S*"), is_symbolic=True
    ),
    _Kind("<", re.compile(r"</?[A-Za-z][^<>\n]{0,80}>")),
    _Kind("=&|<>:*", re.compile(r"(?<![=!<>])(?:[=!]==?|&&|\|\||=>|<=|>=|:=|\*\*|<<|>>)(?![=<>])"), is_symbolic=True),
    # Sums and equations: the numbers alone do not tell 2+3 from 2*3.
    _Kind("+*^×÷", re.compile(r"\b\d[\d.]{0,30}(?:\s?[+*^×÷]\s?\d[\d.]{0,30})+"), is_symbolic=True),
    _Kind("=^", re.compile(r"(?<!\S)\w[\w()]*[=^][^\s=]\S*"), is_symbolic=True),
)
