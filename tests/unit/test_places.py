"""Places for a bounded number of threads: who waits gets one in its turn, and nobody waits for ever."""

import threading
import time

import pytest
import redis.exceptions as rex

from queue_system.broker.places import CrowdedError, Places
from queue_system.broker.translate import translate

SOON = 10.0


def blocked(places, count):
    """Whether so many are waiting, before long."""
    until = time.monotonic() + SOON
    while len(places._waiting) != count and time.monotonic() < until:
        time.sleep(0.001)
    return len(places._waiting) == count


def test_what_was_used_last_is_used_again_and_empty_places_come_last():
    places = Places(3, 1.0)
    assert [places.take(), places.take(), places.take()] == [None] * 3
    for thing in ("a", None, "b"):
        places.put(thing)
    assert [places.take(), places.take(), places.take()] == ["b", "a", None]


def test_without_a_free_place_it_is_told_in_time_that_nothing_was_sent():
    places = Places(1, 0.01)
    places.take()
    with pytest.raises(CrowdedError, match=r"none of 1 connections became free within 0\.01 s: nothing was sent"):
        places.take()
    assert not places._waiting
    places.put("a")
    assert places.take() == "a"


def test_to_be_crowded_is_a_timeout_that_was_never_sent():
    error = translate(CrowdedError(32, 5.0), "here")
    assert (error.kind, error.ambiguous) == ("timeout", False)
    assert "let fewer threads or tasks enqueue at once" in str(error)
    assert isinstance(CrowdedError(32, None), rex.TimeoutError)


def test_those_who_wait_have_their_turn_in_order_and_nobody_overtakes_them():
    places, order = Places(1, SOON), []

    def use(name):
        thing = places.take()
        order.append((name, thing))
        places.put(thing)

    places.take()
    threads = []
    for name in range(4):
        threads.append(threading.Thread(target=use, args=(name,)))
        threads[-1].start()
        assert blocked(places, name + 1)
    places._free.append("overtaken?")  # as if it were free: whoever comes now is behind them
    late = threading.Thread(target=use, args=("late",))
    with places._lock:  # nobody is served while it joins
        late.start()
        time.sleep(0)
    for thread in [*threads, late]:
        thread.join(SOON)
    assert [name for name, _ in order] == [0, 1, 2, 3, "late"]
    assert {thing for _, thing in order} == {"overtaken?"}


def test_one_that_was_put_back_before_anybody_knew_of_the_wait_is_found():
    places = Places(1, SOON)
    places.take()
    places._free.append("a")  # between the look and the wait
    assert places._wait() == "a"


def test_whoever_is_interrupted_while_waiting_leaves_no_trace(monkeypatch):
    places = Places(1, SOON)
    places.take()

    class Interrupted(BaseException):
        pass

    class Lock:
        def acquire(self, timeout=None):
            if timeout is not None:
                raise Interrupted

        def release(self):
            pass

    real = threading.Lock
    monkeypatch.setattr("queue_system.broker.places.threading.Lock", Lock)
    with pytest.raises(Interrupted):
        places.take()
    assert not places._waiting
    monkeypatch.setattr("queue_system.broker.places.threading.Lock", real)
    places.put("a")
    assert places.take() == "a"


def test_one_that_is_given_at_the_last_moment_is_not_lost(monkeypatch):
    places = Places(1, SOON)
    places.take()

    class Lock:
        def acquire(self, timeout=None):
            if timeout is None:
                return True
            places.put("a")  # handed over, just when its time is over
            return False

        def release(self):
            pass

    monkeypatch.setattr("queue_system.broker.places.threading.Lock", Lock)
    with pytest.raises(CrowdedError):
        places.take()
    assert (places.take(), list(places._waiting)) == ("a", [])


def test_all_that_are_free_can_be_taken():
    places = Places(2, 1.0)
    places.put("a")
    assert places.take_all() == ["a", None, None]
    assert places.take_all() == []


def test_many_threads_never_share_one():
    places, inside, most, errors = Places(3, SOON), set(), [], []

    def use():
        for _ in range(50):
            mine = places.take() or object()
            if mine in inside:
                errors.append(mine)
            inside.add(mine)
            most.append(len(inside))
            inside.discard(mine)
            places.put(mine)

    threads = [threading.Thread(target=use) for _ in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SOON)
    assert errors == []
    assert max(most) <= 3
    assert len(places.take_all()) == 3
