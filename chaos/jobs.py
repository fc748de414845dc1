"""What the workers run in the scenarios of the worker's faults, besides `chaos.processors`. Each notes what it does."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from typing import Any, Final

from chaos.processors import ledger, work
from queue_system.context import OperationContext

MODULES: Final = ["chaos.jobs", "chaos.processors"]
"""What a worker of these scenarios may import."""


async def kill_worker(entity: dict[str, Any], context: OperationContext) -> None:
    """A poison: whoever runs it dies of it."""
    ledger().start(context.operation_id, "poison")
    await asyncio.sleep(entity.get("seconds", 0))
    os.kill(os.getpid(), signal.SIGKILL)


def kill_worker_sync(entity: dict[str, Any], context: OperationContext) -> None:
    """The same in a thread."""
    ledger().start(context.operation_id, "poison")
    time.sleep(entity.get("seconds", 0))
    os.kill(os.getpid(), signal.SIGKILL)


async def block_loop(entity: dict[str, Any], context: OperationContext) -> None:
    """A bad async processor: it blocks the event loop."""
    run = ledger().start(context.operation_id)
    time.sleep(entity["seconds"])  # noqa: ASYNC251  that is the fault
    ledger().end(context.operation_id, run)


async def fail_once(entity: dict[str, Any], context: OperationContext) -> None:
    """Fail at the first attempt."""
    run = ledger().start(context.operation_id, str(context.attempt))
    await asyncio.sleep(entity.get("seconds", 0))
    if context.attempt == 1:
        raise ValueError("the first attempt fails")
    ledger().end(context.operation_id, run)


async def fail_first(entity: dict[str, Any], context: OperationContext) -> None:
    """Fail at the first ``entity["fails"]`` attempts."""
    run = ledger().start(context.operation_id, str(context.attempt))
    await asyncio.sleep(0)
    if context.attempt <= entity["fails"]:
        raise ValueError("the first attempts fail")
    ledger().end(context.operation_id, run)


async def fail(_: dict[str, Any], context: OperationContext) -> None:
    """Fail at every attempt."""
    ledger().start(context.operation_id, str(context.attempt))
    await asyncio.sleep(0)
    raise ValueError("every attempt fails")


async def newest(entity: dict[str, Any], context: OperationContext) -> None:
    """What only the newest version of an application has."""
    await work(entity, context)


async def called_back(data: dict[str, Any]) -> None:
    """A callback."""
    ledger().write("callback", data["operation_id"])
    await asyncio.sleep(0)


def called_back_sync(data: dict[str, Any]) -> None:
    """A callback in a thread."""
    ledger().write("callback", data["operation_id"])
