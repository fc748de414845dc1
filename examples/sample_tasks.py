# ruff: noqa: INP001  a program of its own, started in its directory
"""The processors of the sample application: what its side-car runs. ``queue-system worker sample_tasks``."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

from queue_system import OperationContext, QueueRetryConfig, processor

logger = logging.getLogger(__name__)


@processor(queue="mail", retry_config=QueueRetryConfig.fixed(delay=0.5, max_attempts=4), timeout=10)
async def send_mail(entity: dict[str, Any], context: OperationContext) -> dict[str, Any]:
    """On the event loop. ``{"fails": 2}`` lets the first two attempts fail, ``{"seconds": 1}`` takes a second."""
    await asyncio.sleep(float(entity.get("seconds", 0.02)))
    if context.attempt <= int(entity.get("fails", 0)):
        raise ConnectionError("the mail server is away")
    return {"sent": True}


@processor(queue="reports", priority="low", retry_config=QueueRetryConfig.fixed(delay=0.5, max_attempts=3))
def build_report(entity: dict[str, Any]) -> dict[str, Any]:
    """In the thread pool. ``{"seconds": 2}`` takes two seconds, so that the pool can be filled."""
    time.sleep(float(entity.get("seconds", 0.05)))
    return {"pages": 1}


async def note_result(data: dict[str, Any]) -> None:
    """A callback: told how an operation ended."""
    logger.info("operation %s ended well", data["operation_id"])
