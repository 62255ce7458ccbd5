"""A score is rendered once: replays fill its slots, and pace says when each event is due."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semcache.types import Form
from semcache.wire import RECORDED, Identity, Score
from semcache.wire.score import EVENT_STREAM, JSON, NDJSON, Blank, Slot

ID = Blank(Slot.ID, b'"recorded"')
CREATED = Blank(Slot.CREATED, b"5")
CREATED_TEXT = Blank(Slot.CREATED_TEXT, b'"2023-11-14T22:13:20.123Z"')
EVENTS: list[list[bytes | Blank]] = [
    [b'{"id":', ID, b',"at":', CREATED, b"}\n"],
    [b'{"id":', ID, b',"at":', CREATED_TEXT, b"}\n"],
    [b"end\n"],
]


def test_each_replay_fills_every_slot_with_its_own() -> None:
    score = Score(Form.STREAM, EVENTS)
    assert score.play(Identity('a"b', 1_800_000_000)) == [
        b'{"id":"a\\"b","at":1800000000}\n',
        b'{"id":"a\\"b","at":"2027-01-15T08:00:00Z"}\n',
        b"end\n",
    ]
    assert score.play(Identity("c", None))[1] == b'{"id":"c","at":"2023-11-14T22:13:20.123Z"}\n'
    assert score.play(Identity(None, 6))[:2] == [
        b'{"id":"recorded","at":6}\n',
        b'{"id":"recorded","at":"1970-01-01T00:00:06Z"}\n',
    ]
    assert score.play(RECORDED)[0] == b'{"id":"recorded","at":5}\n'


@pytest.mark.parametrize("identity", [RECORDED, Identity("x", 1), Identity("x", None), Identity(None, 1)])
def test_played_whole_it_is_its_events_joined(identity: Identity) -> None:
    score = Score(Form.STREAM, EVENTS)
    assert score.play_whole(identity) == b"".join(score.play(identity))
    assert score.play_whole(RECORDED) == b"".join(score.play(RECORDED)), "playing changes nothing in it"


def test_it_says_what_it_is() -> None:
    assert Score(Form.JSON, [[b"{}"]]).content_type == JSON
    assert Score(Form.STREAM, EVENTS).content_type == EVENT_STREAM
    assert Score(Form.STREAM, EVENTS, content_type=NDJSON).content_type == NDJSON


def test_equal_pieces_are_held_once() -> None:
    one = Score(Form.STREAM, [[b"x" * 1000]])
    assert Score(Form.STREAM, [[b"x" * 1000]] * 10).size_bytes < 2 * one.size_bytes


def test_offsets_that_are_not_one_for_each_event_are_a_mistake() -> None:
    with pytest.raises(ValueError, match="3 events but 2 offsets"):
        Score(Form.STREAM, EVENTS, (0, 1))


# Pace


def test_at_once_everything_is_due_now() -> None:
    assert list(Score(Form.STREAM, EVENTS, (0, 10, 20)).schedule("instant")) == [0, 0, 0]


def test_as_recorded_each_event_is_due_when_it_came() -> None:
    assert list(Score(Form.STREAM, EVENTS, (0, 1500, 2000)).schedule("recorded")) == [0, 1.5, 2]
    assert list(Score(Form.STREAM, EVENTS).schedule("recorded")) == [0, 0, 0], (
        "a body: nobody knows when its words came"
    )


def test_by_the_second_an_event_is_a_token_unless_they_are_counted() -> None:
    assert list(Score(Form.STREAM, EVENTS).schedule(2.0)) == [0, 0.5, 1]
    assert list(Score(Form.STREAM, EVENTS, tokens=30).schedule(10.0)) == [0, 1.5, 3], "the whole lasts as long"
    assert list(Score(Form.STREAM, EVENTS, tokens=0).schedule(1.0)) == [0, 1, 2], "nobody counted"
    assert list(Score(Form.STREAM, EVENTS[:1], tokens=9).schedule(1.0)) == [0], "there is nothing to wait for"


def test_by_the_second_nothing_lasts_longer_than_anybody_waits() -> None:
    assert list(Score(Form.STREAM, EVENTS, tokens=30).schedule(0.001)) == [0, 300, 600]


@given(
    st.integers(1, 50),
    st.integers(0, 10_000) | st.none(),
    st.floats(0.01, 1e6) | st.sampled_from(["instant", "recorded"]),
)
def test_events_are_due_in_their_order(count: int, tokens: int | None, pace: object) -> None:
    offsets_ms = [7 * number for number in range(count)]
    due = list(Score(Form.STREAM, [[b"x"]] * count, offsets_ms, tokens=tokens).schedule(pace))  # type: ignore[arg-type]
    assert len(due) == count
    assert due[0] == 0
    assert all(earlier <= later for earlier, later in pairwise(due))
