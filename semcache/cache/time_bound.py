"""RULE: whether a question's answer is of its moment: "what is the weather today", "current price of gold".

Such an answer is wrong an hour later, however equal the question. No list of words can tell all of them; this one reads
what people say when they mean now, and leaves out where they do not: "what do I do now", "how to go live", "today" in a
quotation or in a document that is only to be worked on.
"""

from __future__ import annotations

import re

# Of a longer text the beginning and the end are read, where people put what they ask; between lies a document.
_ENDS = 300


def is_time_bound(question: str) -> bool:
    """Whether the answer depends on when the question is asked. Costs microseconds, whatever the length."""
    text = question if len(question) <= 2 * _ENDS else f"{question[:_ENDS]} \n {question[-_ENDS:]}"
    text = text.lower()
    if not _HINT.search(text):
        return False
    text = _FILLER.sub(" ", _QUOTED.sub(" ", text))
    if _COMING.search(text):
        return True
    # "My payment of yesterday is pending", "delete my account right now": a story or a wish, no question about when.
    if _OWN.search(text) and not _WEATHER.search(text):
        return False
    if _DATED.search(text):
        return True
    # "How do I find the current directory", "how can I check the weather": the way there stays the same.
    return _MOVING.search(text) is not None and not _HOW_TO.search(text)


_QUOTED = re.compile(r"```.*?```|`[^`]*`|\"[^\"]*\"|[“„«][^”“»]*[”“»]|(?<!\w)'[^'\n]*'(?!\w)|https?://\S+", re.DOTALL)

# What every pattern below has some of, to let most questions pass after one look.
_HINT = re.compile(
    r"day|night|tomorrow|now|current|latest|newest|(?:this|next|last|past) |recent|moment|weather|forecast|live\b|"
    r"news|time is it|price|rate|score|open|down|playing|winning|leading|at present|date|day|month|year"
    r"|traffic|up to date|so far|breaking|trending"
)

# Words of time that say nothing about when.
_FILLER = re.compile(
    r"\b(?:(?:current|live|latest|recent)[- ](?:account|accounts|affairs exam|state of mind|chat|agent|person|"
    r"representative|support|transcript|version control|password|passwords|address|balance sheet"
    r"|liabilit\w+|assets?|ratio))\b"
    r"|\b(?:what|where|how)\b[^.?!]{0,40}\b(?:do|should|can|shall|to)\b[^.?!]{0,20}\b(?:do|go|start"
    r"|proceed|say)\b[^.?!]{0,12}"
    r"\b(?:right )?now\b"
    r"|\b(?:until|till|up to|by|for|from|even|just|only) now\b|\bnow (?:that|then|what|and then|i)\b"
    r"|\b(?:and|so|but|ok|okay) now\b"
    r"|\bnow\b(?=[,:])|\bknown?\b"
    r"|\b(?:today|tonight)'s (?:society|world|youth|age|generation)\b|\bin today's\b|\b(?:of"
    r"|in) (?:the )?(?:past|last)\b"
    r"|\bdifference between\b[^.?!]{0,60}|\bcurrent(?:ly)? (?:director\w+|working director\w+|user|branch"
    r"|line|page|thread|class|object|element)\b"
    r"|\bnews ?(?:feed|letter|paper)s?\b|\busa today\b|\bapocalypse now\b|\bservicenow\b"
    r"|\b(?:electric|alternating|direct|ocean|electrical|ac|dc|eddy|leakage) currents?\b"
    r"|\bcurrent (?:flow\w*|through|in a|density)\b"
    r"|\bthis (?:year|month|week|time) (?:old|tables?)\b"
)

_DAY = (
    r"(?:monday|tuesday|wednesday|thursday|friday|saturday|sunday|week(?:end)?|month|year|season|quarter"
    r"|morning|afternoon|"
    r"evening)"
)
_COMING = re.compile(rf"\b(?:today|todays|tonight|tomorrow|tomorrows)\b|\b(?:next|coming|upcoming) {_DAY}\b")
_WEATHER = re.compile(r"\bweather\b|\bforecast\b")
_OWN = re.compile(r"\b(?:i|my|me|i've|i'm|i'd|we|our)\b")
_DATED = re.compile(
    rf"\b(?:yesterday|yesterdays)\b|\b(?:this|last|past) {_DAY}\b|\blast night\b"
    r"|\b(?:right|just|as of|even as of) now\b|\bat (?:the|this) (?:very )?moment\b|\bat present\b"
    r"|\bwhat(?:'?s| is)? (?:the )?time is it\b|\b(?:what|which) (?:day|date|month|year) is (?:it|this)\b"
)
_MOVING = re.compile(
    r"\b(?:now|nowadays|currently|current|so far|latest|newest|most recent|recent|recently"
    r"|up[- ]to[- ]date|trending|news)\b"
    r"|\bweather\b|\bforecast\b|\btraffic (?:like|on|in|report|jam)\b|\bbreaking news\b"
    r"|\blive (?:score|scores|stream|match|result|results|price|prices|update|updates|rate|rates)\b"
    r"|\bwhat(?:'?s| is) the time\b(?! (?:zone|complexity|signature|limit|frame|value|series|difference"
    r"|period|to|for|of))"
    r"|\bwhat(?:'?s| is) the (?:day|date)\b(?! (?:of|when|for|that|on|format))"
    r"|\b(?:stock|share|gold|silver|bitcoin|btc|ethereum|eth|crypto|oil|gas|petrol|fuel|diesel) prices?\b"
    r"|\bprice of (?:gold(?! standard)|silver|bitcoin|btc|ethereum|eth|oil|gas|petrol|crude)\b"
    r"|\bwhat(?:'?s| is| are) (?:the |your )?(?:\w+ ){0,2}exchange rates?\b(?! (?:when|if|used|applied"
    r"|do))|\b(?:who is|who's|whos) (?:winning|leading|playing)\b|\b(?:is"
    r"|are) [\w' ]{2,40} (?:open|down)\?"
)
_HOW_TO = re.compile(
    r"\bhow (?:to|(?:do|can|could|should|would|did) (?:i|you|we|one|they)|does one)\b|\b(?:steps|way|ways) to\b"
)
