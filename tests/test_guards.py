"""What all guards have in common; each has its own file of pairs, test_guard_NAME.py."""

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

from semcache.cache.guards import GUARDS, READERS, find_veto, prepare
from semcache.types import Reason

GUARD_PAIRS = [
    ("take 5 mg", "take 50 mg"),
    ("How do I enable 2FA?", "How do I disable 2FA?"),
    ("weather in oslo", "weather in lima"),
    ("Who sued whom?", "Why was anybody sued?"),
]


def test_a_guard_that_is_switched_off_has_no_say() -> None:
    assert find_veto("5 mg", "50 mg", ["numbers"]) is Reason.GUARD_NUMBER
    assert find_veto("5 mg", "50 mg", []) is None


def test_preparing_reads_for_every_guard_and_minds_no_name_that_is_none() -> None:
    assert READERS.keys() == GUARDS.keys()
    prepare("How many rooms are there?", [*GUARDS, "reranker"])


def test_many_threads_read_what_one_reads() -> None:
    texts = [f"{text} ({number})" for number in range(50) for pair in GUARD_PAIRS for text in pair]
    pairs = list(pairwise(texts))
    with ThreadPoolExecutor(4) as threads:
        for text in texts:
            threads.submit(prepare, text, GUARDS)
        found = list(threads.map(lambda pair: find_veto(*pair, GUARDS), pairs))
    assert found == [find_veto(*pair, GUARDS) for pair in pairs]
