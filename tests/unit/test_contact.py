"""Whatever Redis answers closes the breaker, and the end of an outage is told once."""

from __future__ import annotations

import pytest

from queue_system.runtime.contact import Contact
from queue_system.utils import CircuitBreaker


class Rig:
    def __init__(self) -> None:
        self.now = 10.0
        self.back: list[float] = []
        self.breaker = CircuitBreaker("redis", failure_threshold=2, clock=lambda: self.now)
        self.contact = Contact(self.breaker, self.back.append, clock=lambda: self.now)


@pytest.fixture
def rig():
    return Rig()


def test_an_outage_opens_the_breaker_and_any_answer_closes_it(rig):
    rig.contact.failed()
    rig.now += 4.0
    rig.contact.failed()
    assert rig.breaker.state == "open"
    rig.now += 2.5
    rig.contact.made()
    assert (rig.breaker.state, rig.breaker.failures) == ("closed", 0)
    assert rig.back == [6.5]  # since the first failure
    assert rig.breaker.before_call() == 0


def test_its_end_is_told_once_for_each_outage(rig):
    rig.contact.made()
    for expected in ([1.0], [1.0, 1.0]):
        rig.contact.failed()
        rig.now += 1.0
        rig.contact.made()
        rig.contact.made()
        assert rig.back == expected


def test_a_breaker_that_others_have_opened_is_closed_without_a_word(rig):
    for _ in range(2):
        rig.breaker.record_failure()
    rig.contact.made()
    assert (rig.breaker.state, rig.back) == ("closed", [])


def test_a_probe_that_is_on_its_way_does_not_count_any_more(rig):
    rig.contact.failed()
    rig.contact.failed()
    rig.now += rig.breaker.recovery_timeout
    probe = rig.breaker.before_call()
    assert rig.breaker.state == "half_open"
    rig.contact.made()
    rig.breaker.record_failure(probe)
    assert (rig.breaker.state, rig.breaker.failures) == ("closed", 1)


def test_restoring_a_breaker_that_never_failed_changes_nothing():
    changes = []
    breaker = CircuitBreaker("redis", on_change=lambda *change: changes.append(change))
    breaker.restore()
    assert (breaker.state, changes) == ("closed", [])
