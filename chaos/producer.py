"""A producer process: ``python -m chaos.producer JSON``. Enqueues at a steady rate.

The JSON has ``redis_url``, ``config`` (options of `QueueConfig`), ``confirmed`` (a path: one id a line, written when
the queue has confirmed it), ``rate`` (a second), ``count``, ``mix`` (processors as ``module:name``, in turn) and
``seconds`` (what operations take, in turn).
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from queue_system import QueueConfig, QueueManager


def main(settings: dict[str, Any]) -> None:
    """Enqueue so many operations."""
    mix, seconds = settings["mix"], settings["seconds"]
    with (
        QueueConfig(redis_url=settings["redis_url"], telemetry=None, **settings["config"]) as config,
        Path(settings["confirmed"]).open("a", buffering=1) as confirmed,
    ):
        queue = QueueManager(config)
        began = time.monotonic()
        for number in range(settings["count"]):
            time.sleep(max(0.0, began + number / settings["rate"] - time.monotonic()))
            entity = {"name": f"n{number}", "seconds": seconds[number % len(seconds)]}
            result = queue.enqueue(entity, mix[number % len(mix)])
            confirmed.write(f"{result['operation_id']}\n")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
