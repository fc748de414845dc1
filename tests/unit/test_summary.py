import pytest

from queue_system.broker.messages import Status
from queue_system.keys import Keys
from queue_system.summary import metrics_summary, status_summary, unaccounted


def status(**fields) -> Status:
    counts = {"now": 0.0, "queues": {}, "delayed": 0, "leased": 0, "failures": 0, "system_errors": 0, "metrics": {}}
    return Status(**counts | fields)


def test_an_idle_queue_shows_its_counters_as_zero():
    assert metrics_summary(status()) == {
        "enqueued": 0,
        "processed": 0,
        "failed": 0,
        "retried": 0,
        "timeouts": 0,
        "thread_pool_exhaustion": 0,
        "deduplicated": 0,
        "system_errors": 0,
        "success_rate": 100.0,
        "thread_pool_utilization": 0.0,
        "thread_pool_size": 0,
        "workers": 0,
    }


def test_numbers_are_numbers_and_texts_stay():
    metrics = metrics_summary(status(metrics={"enqueued": "115", "load": "2.5", "mode": "drain"}))
    assert (metrics["enqueued"], metrics["load"], metrics["mode"]) == (115, 2.5, "drain")
    assert type(metrics["enqueued"]) is int


@pytest.mark.parametrize(
    ("processed", "failed", "rate"), [(0, 0, 100.0), (98, 2, 98.0), (1, 2, 33.33), (0, 5, 0.0), (7, 0, 100.0)]
)
def test_success_rate_is_of_what_has_ended(processed, failed, rate):
    metrics = {"enqueued": "1000", "processed": str(processed), "failed": str(failed), "retried": "50"}
    assert metrics_summary(status(metrics=metrics))["success_rate"] == rate


def test_utilization_is_of_all_threads_of_all_workers():
    metrics = metrics_summary(status(workers=[("a", 20, 0.5), ("b", 5, 1.0), ("c", 0, 0.0)]))
    assert (metrics["thread_pool_utilization"], metrics["thread_pool_size"], metrics["workers"]) == (60.0, 25, 3)


def test_status_has_the_documented_shape():
    counts = status(
        now=1621345678.123,
        queues={"low:b": 1, "normal:sync_processor": 10, "high:async_processor": 5, "normal:a": 0},
        delayed=3,
        leased=4,
        failures=2,
        system_errors=1,
    )
    summary = status_summary(counts, Keys())
    assert list(summary) == [
        "queue:high:async_processor",
        "queue:normal:a",
        "queue:normal:sync_processor",
        "queue:low:b",
        "queue:failures",
        "queue:system_errors",
        "total_items",
        "delayed",
        "in_flight",
        "metrics",
        "status_time",
    ]
    assert list(summary.values())[:9] == [5, 0, 10, 1, 2, 1, 19, 3, 4]
    assert summary["status_time"] == 1621345678.123
    assert summary["metrics"] == metrics_summary(counts)


def test_all_that_was_accepted_is_somewhere():
    counts = status(
        queues={"high:a": 5, "normal:b": 2},
        delayed=3,
        leased=4,
        failures=99,  # counted by `failed`, not by what is still kept
        system_errors=99,
        metrics={
            "enqueued": "30",
            "requeued": "1",
            "processed": "6",
            "failed": "2",
            "discarded": "1",
            "rejected": "3",
            "callbacks_enqueued": "9",
            "callbacks_requeued": "1",
            "callbacks_processed": "4",
            "callbacks_failed": "5",
            "callbacks_discarded": "6",
            "retried": "77",
            "deduplicated": "77",
            "system_errors": "77",
        },
    )
    assert unaccounted(counts) == 0


@pytest.mark.parametrize(("change", "left"), [({"enqueued": "1"}, 1), ({"processed": "2"}, -2), ({"failed": "1"}, -1)])
def test_a_lost_or_doubled_operation_shows(change, left):
    assert unaccounted(status(metrics=change)) == left
