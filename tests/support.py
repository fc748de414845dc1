"""What tests call: workers that are stopped whatever happens, waiting for conditions, missing components."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from queue_system import QueueConfig, QueueWorker

IN_CI = os.environ.get("CI", "").lower() == "true"


def missing(what: str) -> None:
    """Skip with a reason on a user's machine; fail where everything must be there."""
    if IN_CI:
        pytest.fail(f"{what} is missing, and CI must have it")
    pytest.skip(f"{what} is not on this machine")


@contextlib.asynccontextmanager
async def running(config: QueueConfig, **options: Any) -> AsyncIterator[QueueWorker]:
    """A worker that is stopped at the end, whatever happens."""
    worker = QueueWorker(config, **options)
    await worker.start()
    try:
        yield worker
    finally:
        await worker.stop(grace=5.0)


async def until(condition: Callable[[], Any], timeout: float = 20.0, what: str = "") -> Any:
    """Wait until `condition()` is true, and return what it returned. Bounded; never a fixed duration."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout} s: {what or condition}")
        await asyncio.sleep(0.01)
    return value


async def until_metrics(config: QueueConfig, timeout: float = 20.0, **expected: int) -> dict[str, Any]:
    """Wait until the metrics hash has the expected numbers."""

    def reached() -> dict[str, Any] | None:
        metrics = config.get_metrics()
        return metrics if all(metrics.get(name, 0) == value for name, value in expected.items()) else None

    try:
        metrics: dict[str, Any] = await until(reached, timeout, f"metrics {expected}")
    except AssertionError as error:
        raise AssertionError(f"{error}; they are {config.get_metrics()}") from None
    return metrics
