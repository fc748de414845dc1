"""Reads the queue's depth for the metrics, on a connection of its own, in bounded time, from any thread."""

from __future__ import annotations

import threading
from typing import Final

from queue_system.broker.sync import SyncBroker
from queue_system.config import QueueConfig
from queue_system.events import (
    Depth,
    QueueDepth,
)
from queue_system.summary import unaccounted_from

READ_TIMEOUT: Final = 2.0
"""Seconds that a scrape waits for Redis at most."""


class QueueReader:
    """The `events.QueueView` of a configuration.

    Args:
        config: whose queue.
        timeout: seconds for the answer, 2 by default.
    """

    def __init__(self, config: QueueConfig, timeout: float = READ_TIMEOUT) -> None:
        self.name = f"{config.clients.address} {config.queue_prefix}"
        self._config = config
        self._timeout = timeout
        self._broker: SyncBroker | None = None
        self._lock = threading.Lock()

    def depth(self) -> Depth:
        """See `events.QueueView`."""
        with self._lock:
            if self._broker is None:
                self._broker = self._config.new_sync_broker(timeout=self._timeout)
            reply = self._broker.run(self._config.commands.depth())
        return Depth(
            queues=tuple(
                QueueDepth(row.queue, row.priority, row.ready, row.delayed, row.leased, row.failed, row.oldest_age)
                for row in reply.queues
            ),
            failures=reply.failures,
            system_errors=reply.system_errors,
            unaccounted=unaccounted_from(
                reply.metrics, sum(row.ready for row in reply.queues) + reply.delayed + reply.leased
            ),
        )

    def close(self) -> None:
        """Close its connection."""
        with self._lock:
            if self._broker is not None:
                self._broker.close()
            self._broker = None
