"""What is quoted or written for machines decides an answer. Each pair with its reason."""

from time import perf_counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semcache.cache.guard_code import code_differ

DIFFERENT = [
    ('What does "LOL" mean?', 'What does "OMG" mean?', "quotations"),
    ("What does 'raining cats' mean?", "What does 'spilling beans' mean?", "quotations in single marks"),
    ("explain `list.sort`", "explain `list.reverse`", "code in a sentence"),
    ("what is “deep work”", "what is “flow”", "typographic marks"),
    ('Say "hello" to her', "Say something to her", "a quotation on one side only"),
    ("Fix ```x = [1, 2]```", "Fix ```x = [2, 1]```", "blocks of code"),
    ("summarise https://a.example/one", "summarise https://a.example/two", "URLs"),
    ("is www.a-shop.com safe", "is www.b-shop.com safe", "sites"),
    ("is foo-shop.com safe", "is bar-shop.com safe", "sites without www"),
    ("mail bob@example.com", "mail eve@example.com", "mail addresses"),
    ("open /etc/hosts", "open /etc/passwd", "paths"),
    ("clean C:\\Temp\\a", "clean C:\\Temp\\b", "paths of Windows"),
    ("run main.py", "run test.py", "files"),
    ("convert a.docx to PDF", "convert a.xlsx to PDF", "kinds of file"),
    ("error 0x80070005", "error 0x80070057", "error codes"),
    ("what is commit 9a4dd60c", "what is commit 9a4dd61c", "digests"),
    (
        "find 123e4567-e89b-12d3-a456-426614174000",
        "find 123e4567-e89b-12d3-a456-426614174001",
        "identifiers of 128 bits",
    ),
    ("what does --force do", "what does --dry-run do", "flags"),
    ("what does ls -a do", "what does ls -l do", "short flags"),
    ("how does parseInt work", "how does parseFloat work", "camelCase"),
    ("how does parseInt work", "how does parsefloat work", "camelCase on one side"),
    ("why a TypeError", "why a ValueError", "exceptions"),
    ("raise NullPointerException", "raise ArrayIndexOutOfBoundsException", "longer exceptions"),
    ("use max_length", "use min_length", "snake_case"),
    ("set OPENAI_API_KEY", "set OPENAI_BASE_URL", "environment variables"),
    ("what is __init__", "what is __new__", "names between underscores"),
    ("what does map() do", "what does filter() do", "calls"),
    ("what does int('7') do", "what does int('8') do", "calls with arguments"),
    ("run git push", "run git pull", "commands"),
    ("pip install numpy fails", "pip uninstall numpy fails", "commands with the same object"),
    ("SELECT a FROM users WHERE b", "SELECT a FROM orders WHERE b", "queries"),
    ("select * from users", "select * from orders", "queries in lower case"),
    ("what is a left join", "what is an inner join", "parts of queries"),
    ("drop table or keep", "truncate table or keep", "statements"),
    (r"what does \d+ match", r"what does \w+ match", "regular expressions"),
    ("what does [a-z] match", "what does [A-Z0-9] match", "classes of letters"),
    ("what is <div>", "what is <span>", "tags"),
    ("is == fine", "is === fine", "operators"),
    ("what does && mean", "what does || mean", "operators that are no words"),
    ("what is 2+3", "what is 2*3", "sums of the same numbers"),
    ("solve x^2=4", "solve x^3=4", "equations"),
    ("what does a!=b mean", "what does a==b mean", "operators without spaces"),
]

EQUAL = [
    ('What does "LOL" mean?', "what does lol mean", "marks left out"),
    ("What does 'LOL' mean?", 'what does "lol" mean', "other marks"),
    ("what is “deep work”", 'what is "deep work"', "typographic marks"),
    ("explain `list.sort` to me", "explain list.sort to me", "code without its marks"),
    ('"Red shoes, size nine, by a maker"', "Red shoes, size nine, by a maker", "marks around all of it"),
    ("run git push", "how do i push with git", "a command in words"),
    ("is amazon.com down", "is amazon down", "a site by its name"),
    ("node.js tutorial", "nodejs tutorial", "a name that looks like a file"),
    ("what does parseInt do", "what does parseint do", "case"),
    ("use max_length", "use max length", "underscores left out"),
    ("what is a LEFT JOIN", "what's a left join", "capitals of SQL"),
    ("the users' orders and the shops' orders", "the users orders and the shops orders", "apostrophes"),
    ("rock 'n' roll", "rock n roll", "apostrophes around a letter"),
    ('a 15" screen and a 17" screen', "a 15 and a 17 inch screen", "inches"),
    ("don't and can't", "dont and cant", "contractions"),
    ("open 24/7?", "are you open 24/7", "a slash between numbers"),
    ("and/or", "and or", "a slash between words"),
    ("Is YouTube down?", "is youtube down", "a name with a capital inside"),
    ("JavaScript or TypeScript", "javascript or typescript", "names with capitals inside"),
    ("is my iPhone ok", "is my iphone okay", "a small first letter"),
    ("my item(s) are late", "my items are late", "a plural in brackets"),
    ("I need help.Where is my order", "I need help. Where is my order", "a space forgotten"),
    ("self-service - how", "self-service, how", "dashes"),
    ("a non-refundable ticket", "a nonrefundable ticket", "hyphens in words"),
    ("how to log in", "how do I log in", "no code at all"),
    ("why? because!", "why because", "marks of a sentence"),
    ("10-15 days", "10 - 15 days", "a range"),
    ("I feel <3 today", "I feel love today", "a heart is no tag"),
    ("make an order by mail", "order by mail", "SQL's words in a sentence"),
    ("what is C++", "what is c++", "a plus that belongs to a name"),
    ("AT&T phone", "at&t phone", "an ampersand in a name"),
    ("what is 2 + 3", "what is 2+3", "spaces in a sum"),
    ("mail  bob@example.com", "Mail Bob@Example.com", "case of an address"),
    ("the file main.py fails", "main.py fails", "fewer words"),
    ("error 0x80070005?", "what is error 0x80070005", "fewer words"),
    ("He said 'go'.", "he said go", "single marks"),
    ("What's the point of `x`", "whats the point of x", "one letter"),
    ("what does --force do", "what is --force for", "the same flag"),
    ("Where is ORDER 66", "where is order 66", "capitals"),
    ("the 'best' phone", "the best phone", "marks for a wink"),
    ("select a laptop from the shop", "choose a laptop from the shop", "SQL's words in a sentence"),
    ("see https://a.example/x.", "see https://a.example/x", "a full stop after a URL"),
]


@pytest.mark.parametrize(("asked", "stored", "why"), DIFFERENT)
def test_another_piece_is_vetoed(asked: str, stored: str, why: str) -> None:
    assert code_differ(asked, stored), why
    assert code_differ(stored, asked), f"{why}, the other way round"


@pytest.mark.parametrize(("asked", "stored", "why"), EQUAL)
def test_the_same_piece_without_its_marks_is_no_difference(asked: str, stored: str, why: str) -> None:
    assert not code_differ(asked, stored), why
    assert not code_differ(stored, asked), f"{why}, the other way round"


PIECES = (
    "\" ' ` ``` a b x_y parseInt --f -a a.py == != a() /a/b <b> 2+3 [a-z] \\d git push a@b.co http://a join".split()
)
TEXTS = st.one_of(st.text(max_size=80), st.lists(st.sampled_from(PIECES), max_size=10).map(" ".join))


@given(TEXTS, TEXTS)
def test_the_order_of_the_two_texts_never_matters(asked: str, stored: str) -> None:
    assert code_differ(asked, stored) == code_differ(stored, asked)


@given(TEXTS)
def test_a_text_never_differs_from_itself_whatever_its_white_space(text: str) -> None:
    assert not code_differ(text, text)
    assert not code_differ(text, "  ".join(text.split(" ")) + " ")


@given(st.text("abcXYZ_.,'\"`()=+-<>/\\ 012", max_size=60))
def test_case_never_matters(text: str) -> None:
    assert not code_differ(text, text.upper())
    assert not code_differ(text.lower(), text)


HOSTILE = [
    "a",
    "<",
    "'a ",
    "_",
    "A1",
    "1+",
    "/a",
    "(a.",
    "[a-b",
    "=a",
    "SELECT a ",
    "`a",
    '"a ',
    "a-",
    "a.",
    "\\d",
    "a(,",
    "(?",
]


@pytest.mark.parametrize("unit", [*HOSTILE, "f1", "@a", "a@", "```a", "-a", "Aa", "aA", "A", " ", "x ^", "0x"])
def test_no_text_takes_long_to_read(unit: str) -> None:
    started = perf_counter()
    code_differ(unit * (20_000 // len(unit)), unit)
    assert perf_counter() - started < 1.0  # the worst was 0.1 s; a quadratic pattern takes seconds
