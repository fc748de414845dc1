"""The number of series does not follow the number of operations, ids, entities, errors, queues or processors."""

from __future__ import annotations

import gc
import logging
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

import telemetry
from queue_system import QueueConfig, QueueManager, QueueRetryConfig
from queue_system.events import (
    AttemptFinished,
    AttemptStarted,
    Enqueued,
    OperationInfo,
    OutcomeApplied,
)
from queue_system.log import get_logger
from support import running, until, until_metrics
from telemetry.catalogue import CATALOGUE
from telemetry.metrics import MAX_ERROR_TYPES, MAX_LABEL_VALUES, MAX_PAIRS, MetricsListener

MILLION = 1_000_000


def series(registry: CollectorRegistry) -> int:
    return sum(len(family.samples) for family in registry.collect())


def values(registry: CollectorRegistry, label: str) -> set[str]:
    return {
        sample.labels[label] for family in registry.collect() for sample in family.samples if label in sample.labels
    }


def run_one(listener: MetricsListener, number: int, queue: str, processor: str, error_type: str = "ValueError") -> None:
    """What a worker says of one attempt: every third ends well, the others fail with a text of their own."""
    info = OperationInfo(f"operation-{number}", queue, "normal", processor, "operation", True, 1, {})  # noqa: FBT003
    listener.on_event(AttemptStarted(info, 0.001))
    if number % 3:
        message = f"no order {number}"
        listener.on_event(
            AttemptFinished(info, "error", 0.01, "failed", 0.0, error_type, error_message=message, reason="error")
        )
        listener.on_event(OutcomeApplied(info, "failed", "error", "error", error_type, 1.0))
    else:
        listener.on_event(AttemptFinished(info, "success", 0.01, "done"))
        listener.on_event(OutcomeApplied(info, "processed", "success", age=1.0))


@pytest.mark.timeout(300)
def test_a_million_operations_with_a_million_ids_and_names_leave_the_number_of_series_unchanged() -> None:
    registry = CollectorRegistry()
    listener = MetricsListener(registry)
    reach_every_bound(listener)
    series_before, objects_before = series(registry), objects()
    for number in range(MILLION):
        if number % 4:
            run_one(listener, number, "queue_1", "work_1")
        else:  # somebody makes up names, or takes ids for names
            run_one(listener, number, f"queue_{number}", f"work_{number}", f"Error{number}")
        if number % 10 == 0:
            listener.on_event(Enqueued(f"queue_{number}", "normal", f"work_{number}", 10, 0, (f"operation-{number}",)))
    assert series(registry) == series_before
    assert objects() - objects_before < 1000
    for name in ("attempts_total", "enqueued_total", "attempts_started_total", "queue_wait_seconds_count"):
        assert total(registry, name) == MILLION + 1000
    assert len(values(registry, "processor")) == len(values(registry, "queue")) == MAX_LABEL_VALUES + 1
    assert len(values(registry, "error_type")) == MAX_ERROR_TYPES + 1
    assert MAX_PAIRS <= sum(map(len, listener._pairs.values())) <= MAX_PAIRS + 1
    assert len(listener._enqueued) <= 3 * (MAX_PAIRS + 1)


def reach_every_bound(listener: MetricsListener) -> None:
    """1,000 pairs of 200 queues and 250 processors."""
    for number in range(1000):
        queue, processor = f"queue_{number % 200}", f"work_{number % 250}"
        run_one(listener, number, queue, processor, f"Error{number % 100}")
        listener.on_event(Enqueued(queue, "normal", processor, 1, 0, (f"operation-{number}",)))


def objects() -> int:
    gc.collect()
    return len(gc.get_objects())


async def test_real_operations_with_ever_new_ids_entities_errors_and_queues_stay_within_the_bounds(
    make_config: Callable[..., QueueConfig],
) -> None:
    registry = CollectorRegistry()
    logger = logging.getLogger("queue_system.test.quiet")
    logger.setLevel(logging.CRITICAL)
    config = make_config(telemetry=telemetry.default_listeners(get_logger(logger), registry))
    processors = [register(config, number) for number in range(MAX_LABEL_VALUES + 20)]
    queue = QueueManager(config)

    def enqueue_to(queues: range) -> None:
        for number in queues:
            entities = [{"id": uuid.uuid4().hex, "well": bool(n % 2), "secret": f"entity-{n}"} for n in range(10)]
            processor = processors[number % len(processors)]
            once = QueueRetryConfig(max_attempts=1)
            queue.enqueue_batch(entities, processor, queue_name=f"queue_{number}", retry_config=once)

    async with running(config, max_workers=50):
        enqueue_to(range(MAX_LABEL_VALUES + 50))
        await until_metrics(config, 40, processed=750, failed=750)
        await until(lambda: total(registry, "attempts_total") == 1500)
        before = series(registry)
        assert len(values(registry, "queue")) == MAX_LABEL_VALUES + 1
        assert len(values(registry, "processor")) == MAX_LABEL_VALUES + 1
        assert not {value for label in labels(registry) for value in values(registry, label) if "entity-" in value}
        enqueue_to(range(MAX_LABEL_VALUES + 50, MAX_LABEL_VALUES + 100))
        enqueue_to(range(50))
        await until_metrics(config, 40, processed=1250, failed=1250)
        await until(lambda: total(registry, "attempts_total") == 2500)
        assert total(registry, "processed_total") == total(registry, "failed_total") == 1250
        assert series(registry) == before


def register(config: QueueConfig, number: int) -> Callable[..., Any]:
    async def work(entity: dict[str, Any]) -> None:
        if not entity["well"]:
            raise ValueError(f"no order {entity['id']} of {entity['secret']}")

    config.registry.register(work, name=f"work_{number}", module="tests")
    return work


def labels(registry: CollectorRegistry) -> set[str]:
    return {label for family in registry.collect() for sample in family.samples for label in sample.labels}


def total(registry: CollectorRegistry, name: str) -> float:
    return sum(
        sample.value
        for family in registry.collect()
        for sample in family.samples
        if sample.name == f"queue_system_{name}"
    )


def test_no_label_is_an_id_a_process_or_a_host() -> None:
    allowed = {"queue", "priority", "processor", "reason", "outcome", "error_type", "kind", "state", "op", "breaker"}
    used = {label for metric in CATALOGUE.values() for label in metric.labels}
    assert used == allowed | {"listener", "version", "python"}
