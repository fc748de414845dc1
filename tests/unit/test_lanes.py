"""Lanes: the numbers under which a producer's requests are known."""

import os
import threading

import pytest

from queue_system import QueueConfig
from queue_system.broker.lanes import LEAST_MEMORY, LanePool, answer_memory


def test_a_lane_serves_one_request_at_a_time():
    pool = LanePool("q:sent:")
    first, second = pool.take(), pool.take()
    assert first.key != second.key
    pool.give_back(first)
    assert pool.take() is first
    assert pool.take() not in (first, second)


def test_a_lane_never_gives_a_number_twice():
    pool = LanePool("q:sent:")
    numbers = []
    for _ in range(5):
        lane = pool.take()
        numbers.append(lane.number)
        pool.give_back(lane)
    assert numbers == [1, 2, 3, 4, 5]


def test_there_are_as_many_lanes_as_requests_at_once():
    pool, keys, meet = LanePool("q:sent:"), set(), threading.Barrier(4)

    def enqueue_often():
        meet.wait(10)
        for _ in range(500):
            lane = pool.take()
            keys.add(lane.key)
            pool.give_back(lane)

    threads = [threading.Thread(target=enqueue_often) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert 1 <= len(keys) <= 4


def test_two_threads_never_share_a_lane():
    pool, used, meet = LanePool("q:sent:"), [], threading.Barrier(4)

    def enqueue_often():
        meet.wait(10)
        for _ in range(500):
            lane = pool.take()
            used.append((lane.key, lane.number))
            pool.give_back(lane)

    threads = [threading.Thread(target=enqueue_often) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(set(used)) == len(used) == 2000


def test_two_pools_have_no_key_in_common():
    assert LanePool("q:sent:").take().key != LanePool("q:sent:").take().key


def test_a_forked_process_has_lanes_of_its_own(monkeypatch):
    pool = LanePool("q:sent:")
    parents = pool.take()
    pool.give_back(parents)
    monkeypatch.setattr(os, "getpid", lambda: -1)
    assert pool.take().key != parents.key


@pytest.mark.parametrize(("tries", "timeout", "least"), [(1, 0.1, LEAST_MEMORY), (3, 5, 3 * 15 + 2 * 5), (5, 60, 900)])
def test_an_answer_is_kept_for_longer_than_a_request_is_sent(tries, timeout, least):
    assert answer_memory(tries, timeout) >= least
    config = QueueConfig(max_connection_retries=tries, connection_timeout=timeout, telemetry=None)
    assert config.commands.enqueue("q", "low", "u", []).args[4] == answer_memory(tries, timeout) * 1000
