"""A worker process: ``python -m chaos.worker JSON``. Says ``ready``, works, and ends in good order at SIGTERM.

It ends at once when its standard input does: whoever has started it is gone then.

The JSON has ``redis_url``, ``ledger`` (a path), and the options of `QueueConfig` (``config``), and of `QueueWorker`
(``worker``), and in ``register`` what this version of the application has besides: names (``module:name``) with their
functions (``module:name``).
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from chaos import processors
from chaos.liveness import say
from queue_system import QueueConfig, QueueWorker
from queue_system.events import AttemptFinished, Event, LeaseLost, OutcomeApplied, Reclaimed, WorkerTaskFailed
from queue_system.hooks import Hooks
from queue_system.registry import default_registry


class Listener(Hooks):
    """Notes in the ledger what Redis has applied, which leases were lost, and how long retries are to wait."""

    def on_event(self, event: Event) -> None:
        """See `Hooks`."""
        if isinstance(event, OutcomeApplied):
            words = event.result, event.outcome or "-", event.reason or "-"
            processors.ledger().write("applied", event.operation.operation_id, *words)
        elif isinstance(event, AttemptFinished) and event.next == "retry":
            words = str(event.operation.attempt), f"{event.delay:.3f}"
            processors.ledger().write("retry", event.operation.operation_id, *words)
        elif isinstance(event, LeaseLost):
            processors.ledger().write("lease_lost", event.operation_id)
        elif isinstance(event, Reclaimed):
            processors.ledger().write("reclaimed", "-", str(event.returned), str(event.quarantined))
        elif isinstance(event, WorkerTaskFailed):
            processors.ledger().write("task_failed", event.task)
            print(f"task {event.task} failed: {event.reason}", flush=True)


def register(functions: dict[str, str]) -> None:
    """Register functions under the given names."""
    for known_as, function in functions.items():
        (module, name), (home, own) = known_as.split(":"), function.split(":")
        default_registry.register(getattr(importlib.import_module(home), own), name=name, module=module)


async def main(settings: dict[str, Any]) -> None:
    """Work until SIGTERM."""
    os.environ[processors.LEDGER_VARIABLE] = settings["ledger"]
    register(settings.get("register", {}))
    options = {"telemetry": None, "importable_modules": ["chaos.processors"], **settings["config"]}
    config = QueueConfig(redis_url=settings["redis_url"], listeners=[Listener()], **options)
    worker = QueueWorker(config, **settings["worker"])
    if "health" in settings:
        says = threading.Thread(target=say, args=(worker, Path(settings["health"])), name="chaos-health", daemon=True)
        says.start()
    await work_until_terminated(worker)
    print("stopped", flush=True)


async def work_until_terminated(worker: QueueWorker) -> None:
    """Say ``ready`` once it works, and drain it at SIGTERM."""
    terminated = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, terminated.set)
    await worker.start()
    print("ready", flush=True)
    await terminated.wait()
    await worker.stop()


def end_with_input() -> None:
    """Wait for the end of the standard input, and end this process."""
    while os.read(0, 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=end_with_input, name="chaos-lifeline", daemon=True).start()
    asyncio.run(main(json.loads(sys.argv[1])))
