"""What all guards have in common; each has its own file of pairs, test_guard_NAME.py."""

from semcache.cache.guards import find_veto
from semcache.types import Reason


def test_a_guard_that_is_switched_off_has_no_say() -> None:
    assert find_veto("5 mg", "50 mg", ["numbers"]) is Reason.GUARD_NUMBER
    assert find_veto("5 mg", "50 mg", []) is None
