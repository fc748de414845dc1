"""A suspect is claimed by an empty worker, runs alone, and does not stop the work of others for long."""

from __future__ import annotations

import pytest

from queue_system.runtime.isolation import Isolation


class Clock:
    """Seconds, which pass when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def asked():
    """After how many seconds it wants to be asked again."""
    return []


@pytest.fixture
def isolation(clock, asked):
    return Isolation(asked.append, patience=10.0, clock=clock)


def test_a_worker_is_open_as_long_as_no_suspect_waits(isolation):
    isolation.took_others()
    isolation.met(one_waits=False)
    assert not isolation.closed(held=5)
    assert not isolation.may_take(held=5)
    assert isolation.may_take(held=0)


def test_it_becomes_empty_for_a_suspect(isolation, clock, asked):
    isolation.took_others()
    clock.now += 4
    isolation.met(one_waits=True)
    assert isolation.closed(held=5)
    assert not isolation.closed(held=0)
    assert isolation.may_take(held=0)
    assert asked == [6.0]


def test_a_claim_that_meets_a_suspect_behind_others_is_followed_by_another_in_time(isolation, clock, asked):
    clock.now += 100
    isolation.met(one_waits=True)  # in one reply with
    isolation.took_others()
    assert isolation.closed(held=5)
    assert asked[-1] == 10.0
    clock.now += 10
    assert not isolation.closed(held=5)


def test_it_does_not_wait_for_ever_until_it_is_empty(isolation, clock):
    isolation.took_others()
    isolation.met(one_waits=True)
    clock.now += 10
    assert not isolation.closed(held=5)
    assert isolation.may_take(held=5)


def test_it_opens_when_another_worker_has_taken_the_suspect(isolation):
    isolation.took_others()
    isolation.met(one_waits=True)
    isolation.met(one_waits=False)
    assert not isolation.closed(held=5)


def test_nothing_is_claimed_while_a_suspect_runs_alone(isolation, clock, asked):
    isolation.took(7, alone_for=3.0)
    isolation.met(one_waits=False)
    assert isolation.closed(held=1)
    isolation.ended(6)  # another's token
    assert isolation.closed(held=1)
    isolation.ended(7)
    assert not isolation.closed(held=0)
    assert asked == [3.0]


def test_a_suspect_that_outlives_its_time_alone_is_joined_by_others(isolation, clock):
    isolation.took(7, alone_for=3.0)
    clock.now += 3
    assert not isolation.closed(held=1)


def test_a_second_suspect_need_not_wait_for_what_has_run_long_enough(isolation, clock):
    isolation.took_others()
    clock.now += 10
    isolation.took(7, alone_for=3.0)
    isolation.ended(7)
    isolation.met(one_waits=True)
    assert not isolation.closed(held=5)
    assert isolation.may_take(held=5)
