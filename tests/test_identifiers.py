"""Random parts of ids: none twice, whoever asks."""

from __future__ import annotations

import os
import re

from semcache.wire.identifiers import random_hex


def test_none_comes_twice() -> None:
    made = [random_hex() for _ in range(2000)]
    assert len(set(made)) == len(made)
    assert all(re.fullmatch("[0-9a-f]{24}", text) for text in made)


def test_a_forked_process_hands_out_others() -> None:
    random_hex()  # so that there are some left over
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.write(writing, " ".join(random_hex() for _ in range(20)).encode())
        os._exit(0)
    os.waitpid(child, 0)
    told = os.read(reading, 4096).decode().split()
    os.close(reading)
    os.close(writing)
    assert len(told) == 20
    assert not set(told) & {random_hex() for _ in range(300)}
