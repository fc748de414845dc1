"""When abandoned threads are too many."""

from __future__ import annotations

import pytest

from queue_system.runtime.health import Signs, judge


def signs(**changed):
    calm = {
        "state": "running",
        "loop_blocked_for": 0.0,
        "loops_down": (),
        "turning_for": None,
        "without_contact_for": 0.0,
        "breaker": "closed",
        "threads": 4,
        "threads_abandoned": 0,
    }
    return Signs(**calm | changed)


@pytest.mark.parametrize(
    ("changed", "finding"),
    [
        ({}, "ok"),
        ({"threads_abandoned": 3}, "ok"),
        ({"threads_abandoned": 4}, "all 4 threads are held by operations beyond their limit"),
        ({"threads_abandoned": 1, "abandoned_limit": 2}, "ok"),
        ({"threads_abandoned": 2, "abandoned_limit": 2}, "2 of 4 threads are held by operations beyond their limit"),
        ({"callback_threads_abandoned": True}, "all threads for callbacks are held by callbacks beyond their limit"),
    ],
)
def test_a_worker_is_not_ready_when_too_many_threads_are_abandoned(changed, finding):
    found = signs(**changed)
    health = judge(found)
    assert health.ready_checks["thread_pool"] == finding
    assert health.ready is (finding == "ok")
    assert health.alive  # a restart by the liveness probe would not drain
    assert found.too_many_abandoned is (finding != "ok")
