"""What a worker that is not alive, or not ready, says of itself."""

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


@pytest.mark.parametrize(
    ("changed", "check", "finding"),
    [
        ({"stuck_for": 8.0, "claim_overdue_for": 10.0}, "progress", "ok"),
        (
            {"stuck_for": 8.1, "claim_overdue_for": 11.04},
            "progress",
            "work is ready and slots are free, but nothing was claimed for 11.0 s",
        ),
        ({"loops_down": ("wait", "leases")}, "loops", "down: wait, leases"),
        ({"tasks_down": ("worker-1", "worker-3")}, "tasks", "down: worker-1, worker-3"),
        ({"turning_for": 30.0}, "claim_loop", "ok"),
        ({"turning_for": 30.1}, "claim_loop", "in one round trip for 30.1 s"),
        ({"loop_blocked_for": 10.1}, "event_loop", "blocked for 10.1 s"),
    ],
)
def test_a_worker_that_makes_no_progress_is_not_alive(changed, check, finding):
    health = judge(signs(**changed))
    assert health.alive_checks[check] == health.ready_checks[check] == finding
    assert health.alive is health.ready is (finding == "ok")


def test_a_standstill_is_told_with_what_redis_refuses():
    health = judge(signs(stuck_for=9.0, claim_overdue_for=12.0, claim_refusal="NOPERM zrange"))
    assert health.alive_checks["progress"].endswith("but nothing was claimed for 12.0 s (NOPERM zrange)")


@pytest.mark.parametrize(
    ("changed", "finding"),
    [
        ({"claim_overdue_for": 10.0}, "ok"),
        ({"claim_overdue_for": 10.1}, "no claim was accepted for 10.1 s"),
        ({"claim_accepted": False}, "no claim was accepted yet"),
        ({"claim_refusal": "CROSSSLOT"}, "claims are refused: CROSSSLOT"),
        ({"claim_refusal": "MOVED", "claim_accepted": False}, "claims are refused: MOVED"),
    ],
)
def test_a_worker_is_ready_as_long_as_its_claims_are_accepted(changed, finding):
    health = judge(signs(**changed))
    assert health.alive
    assert health.ready_checks["claims"] == finding
    assert health.ready is (finding == "ok")
