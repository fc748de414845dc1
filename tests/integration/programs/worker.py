"""A worker process: says `ready`, works, and ends in good order at SIGTERM. Its settings come as JSON, in argv[1]."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys

from queue_system import QueueConfig, QueueWorker
from queue_system.events import (
    OutcomeApplied,
)
from queue_system.hooks import Hooks


class DiesOfAnOutcome(Hooks):
    """Ends the process when Redis has applied an operation's outcome, before anything else can happen."""

    def on_event(self, event):
        if isinstance(event, OutcomeApplied):
            os._exit(9)


async def main(settings):
    config = QueueConfig(redis_url=settings["redis_url"], queue_prefix=settings["prefix"])
    if settings["dies_of_an_outcome"]:
        config = QueueConfig(
            redis_url=settings["redis_url"], queue_prefix=settings["prefix"], telemetry=[DiesOfAnOutcome()]
        )
    worker = QueueWorker(config, **settings["options"])
    terminated = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, terminated.set)
    await worker.start()
    print("ready", flush=True)  # noqa: T201  what the test waits for
    await terminated.wait()
    await worker.stop()
    print("stopped", flush=True)  # noqa: T201  as above


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
