"""Durations that become milliseconds: never 0 where that means something else, never more than Redis can count."""

from __future__ import annotations

import pytest

from queue_system import QueueManager
from queue_system.checks import MAX_SECONDS, check_seconds
from queue_system.errors import ConfigurationError, InvalidOperationError
from queue_system.testing import memory_config


@pytest.mark.parametrize("seconds", [0.001, 1, MAX_SECONDS])
def test_what_is_a_duration(seconds):
    assert check_seconds("lease", seconds) == seconds


@pytest.mark.parametrize(
    ("seconds", "says"),
    [(0.0004, "at least a millisecond"), (0.00099, "at least a millisecond"), (0, "more than 0"), (-1, "more than 0"),
     (MAX_SECONDS + 1, "at most a hundred years"), (float("nan"), "finite"), (float("inf"), "finite"), ("5", "finite")],
)  # fmt: skip
def test_what_is_none(seconds, says):
    with pytest.raises(ConfigurationError, match=f"lease must be .*{says}"):
        check_seconds("lease", seconds)


def test_where_none_is_allowed_less_than_a_millisecond_is_none():
    assert check_seconds("delay", 0.0004, zero=True) == 0.0004
    assert check_seconds("delay", 0, zero=True) == 0.0


@pytest.mark.parametrize("name", ["backup_ttl", "connection_timeout", "deduplication_window"])
def test_a_setting_below_a_millisecond_is_refused(name):
    with pytest.raises(ConfigurationError, match=f"{name} must be at least a millisecond"):
        memory_config(**{name: 0.0004})


def test_an_enqueue_with_such_a_window_is_refused_and_accepts_nothing():
    config = memory_config(telemetry=None)
    manager = QueueManager(config)
    with pytest.raises(InvalidOperationError, match=r"deduplication_window must be at least a millisecond"):
        manager.enqueue({}, "shop.mail:send", deduplication_key="k", deduplication_window=0.0004)
    assert manager.get_queue_status()["total_items"] == 0
