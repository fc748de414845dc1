"""Anybody who can write to Redis may have written what a reply is made of: it is read all the same."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from queue_system.broker import replies
from queue_system.broker.messages import Whereabouts
from queue_system.explain import _Seen
from queue_system.keys import is_queue
from queue_system.summary import metrics_summary, unaccounted

NO_NUMBERS = [
    b"nan",
    b"-nan",
    b"inf",
    b"text",
    b"",
    b"1.5",
    b"1e308",
    b"-5",
    b"9" * 40,
    b"9" * 5000,
    b"\xff",
    b"\xc2\xb2",
]
VERY_LATE = 250_000_000_000.0
anything = st.binary(max_size=30) | st.integers().map(lambda number: str(number).encode())


@pytest.mark.parametrize("value", NO_NUMBERS)
def test_a_claim_is_read_whatever_its_numbers_are(value):
    hostile = [b"evil", 1, 7, value, value, value, value, value, value, value, value, b"body"]
    good = [b"good", 1, 7, 1, b"2", b"0", b"0", b"1500", b"1500", b"1500", b"", b"body"]
    evil, innocent = replies.deliveries(hostile + good, ("q:normal:a",), 2.0)
    assert (evil.deliveries, evil.attempts, evil.crashes, evil.exhaustions) == (0, 0, 0, 0)
    assert (evil.first_attempt_time, evil.ready_at, evil.accepted_at) == (0.0, 2.0, 2.0)
    assert (innocent.attempts, innocent.ready_at) == (2, 1.5)


@given(st.lists(anything, min_size=8, max_size=8))
def test_so_is_any(values):
    (delivery,) = replies.deliveries([b"id", 0, 1, *values, b"body"], (), 1.0)
    datetime.fromtimestamp(delivery.accepted_at, UTC)


@pytest.mark.parametrize("value", NO_NUMBERS)
def test_an_entry_of_the_failures_is_read(value):
    (row,) = replies.failure_rows([b"evil", b"low:a", b"failed", b"body", value, b"", b"", value])
    assert (row.attempts, row.failed_at) == (0, 0.0)


def test_numbers_are_read_as_they_are():
    assert [replies.whole(value) for value in (7, b"7", "7", 0, b"250000000000000")] == [
        7,
        7,
        7,
        0,
        250_000_000_000_000,
    ]
    assert replies.whole(b"250000000000001", 3) == 3


@pytest.mark.parametrize(
    ("name", "known"),
    [("normal:mail", True), ("high:__callbacks__", True), ("low:" + "q" * 64, True), ("low:" + "q" * 65, False),
     ("urgent:mail", False), ("mail", False), ("normal:", False), ("normal:a\nb", False), ("normal:\x1b[2J", False),
     ("normal:a:b", False), ("op:x", False), ("", False), ("normal:\N{CYRILLIC SMALL LETTER A}", False)],
)  # fmt: skip
def test_a_registered_name_that_is_no_queue_is_passed_over(name, known):
    assert is_queue(name) is known
    assert len(replies.status([2000, [name.encode(), 3], 0, 0, 0, 0, [], []]).queues) == known
    assert len(replies.depth([[name.encode(), 3, 0, 0, 0, 0], 0, 0, 0, 0, []]).queues) == known


@pytest.mark.parametrize("kind", [b"", b"xyz", b"\n", b"ma", b"\xff"])
def test_a_kind_that_is_none_is_not_known_yet(kind):
    reply = [2000, -1, 0, 0, [b"normal:a", kind, b"normal:b", b"s"], [], 0]
    assert replies.claimed("q:", reply).kinds == {"q:normal:a": "u", "q:normal:b": "s"}


@pytest.mark.parametrize(
    ("score", "seconds"), [(b"inf", VERY_LATE), (b"1e300", VERY_LATE), (b"-inf", None), (b"5", 0.005)]
)
def test_a_time_that_no_calendar_has_is_the_last_one_that_it_has(score, seconds):
    found = replies.whereabouts([2000, b"hash", [], b"", -1, 0, score, -1, -1, [], []])
    assert found.due == seconds


@pytest.mark.parametrize("value", [*NO_NUMBERS, "²".encode()])
def test_an_explanation_is_made_of_any_fields(value):
    fields = dict.fromkeys(("st", "q", "ts", "rd", "fl", "dc", "at", "cr", "ex", "w", "pb"), value)
    found = Whereabouts(2.0, "hash", fields, "", None, 0, None, None, None, [], [])
    seen = _Seen(found, None, [], "evil")
    assert (seen.number("at"), seen.number("cr")) == (0, 0)
    assert seen.time("ts") == datetime.fromtimestamp(0, UTC)


@pytest.mark.parametrize("value", NO_NUMBERS)
def test_status_and_metrics_are_made_of_any_fields(value):
    workers = [b"w", value, value, b"v", b"4", b"0.5"]
    status = replies.status([2000, [b"normal:a", 2], 1, 0, 0, 0, [b"processed", value, b"enqueued", b"3"], workers])
    metrics = metrics_summary(status)
    assert (metrics["enqueued"], metrics["thread_pool_size"], metrics["workers"]) == (3, 4, 2)
    assert 0 <= metrics["success_rate"] <= 100 or value == b"-5"
    assert isinstance(unaccounted(status), int)
