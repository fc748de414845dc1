"""What the workers of the suite run. Each notes its start and its end in the ledger.

The ledger is opened by `open_ledger`, or at first use from ``CHAOS_LEDGER``.
"""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any, Final

from chaos.ledger import Writer
from queue_system.context import OperationContext

LEDGER_VARIABLE: Final = "CHAOS_LEDGER"

_ledgers: dict[str, Writer] = {}


def ledger() -> Writer:
    """The ledger of this process, ``$CHAOS_LEDGER``."""
    path = os.environ[LEDGER_VARIABLE]
    if path not in _ledgers:
        _ledgers[path] = Writer(path)
    return _ledgers[path]


async def work(entity: dict[str, Any], context: OperationContext) -> int:
    """Take ``entity["seconds"]`` (0 by default) without blocking; ``entity["name"]`` is noted."""
    run = ledger().start(context.operation_id, str(entity.get("name", "")))
    await asyncio.sleep(entity.get("seconds", 0))
    ledger().end(context.operation_id, run, str(entity.get("name", "")))
    return run


def work_sync(entity: dict[str, Any], context: OperationContext) -> int:
    """The same, blocking a thread."""
    run = ledger().start(context.operation_id, str(entity.get("name", "")))
    time.sleep(entity.get("seconds", 0))
    ledger().end(context.operation_id, run, str(entity.get("name", "")))
    return run
