"""Metrics, spans and logs of Queue System: listeners on its hooks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from queue_system.hooks import Hooks
from telemetry.logging import LogListener


def default_listeners(logger: Any) -> Sequence[Hooks]:
    """The listeners of a plain `QueueConfig(...)`."""
    return (LogListener(logger),)
