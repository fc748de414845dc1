"""Every Redis key, built in one place.

With a hash tag in the prefix (``{queue}:``) all keys fall into one slot of a Redis Cluster.
"""

from __future__ import annotations

import hashlib
import re
from typing import Final

from queue_system.errors import ConfigurationError

PRIORITIES: Final = ("high", "normal", "low")
"""In the order of dispatch: strict, an operation of a lower priority waits while a higher one is ready."""

CALLBACK_QUEUE: Final = "__callbacks__"
"""The queue of callbacks, which are operations of their own so that a crash cannot lose them."""

_QUEUE_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_PREFIX = re.compile(r"[\x21-\x7e]{1,64}")


def check_queue_name(name: object) -> str:
    """Return `name`, or raise `ConfigurationError` unless it matches ``[A-Za-z0-9_.-]{1,64}``."""
    if not isinstance(name, str) or not _QUEUE_NAME.fullmatch(name):
        raise ConfigurationError(f"bad queue name {name!r}: use 1 to 64 characters of A-Z, a-z, 0-9, '_', '.' and '-'")
    return name


def is_queue(name: str) -> bool:
    """Whether it is ``{priority}:{queue}``; what is not, nobody has enqueued to."""
    priority, _, queue = name.partition(":")
    return priority in PRIORITIES and _QUEUE_NAME.fullmatch(queue) is not None


def check_priority(priority: object) -> str:
    """Return `priority`, or raise `ConfigurationError` unless it is ``high``, ``normal`` or ``low``."""
    if priority not in PRIORITIES:
        raise ConfigurationError(f"unknown priority {priority!r}: use one of {', '.join(PRIORITIES)}")
    return str(priority)


class Keys:
    """The names of all keys below one prefix.

    Args:
        prefix: 1 to 64 printable ASCII characters without spaces, ``queue:`` by default.

    Raises:
        ConfigurationError: the prefix is empty, too long or has a space or control character.
    """

    __slots__ = (
        "dedup_prefix",
        "delayed",
        "depths",
        "failures",
        "guard",
        "heartbeat_prefix",
        "leases",
        "metrics",
        "operation_prefix",
        "prefix",
        "ready_index",
        "ready_index_sync",
        "reaper",
        "registry",
        "registry_version",
        "ring_prefix",
        "sent_prefix",
        "sizes",
        "system_errors",
        "wake",
        "wake_sync",
        "workers",
    )

    def __init__(self, prefix: str = "queue:") -> None:
        if not _is_prefix(prefix):
            raise ConfigurationError(
                f"bad queue_prefix {prefix!r}: use 1 to 64 printable ASCII characters without spaces"
            )
        self.prefix = prefix
        self.operation_prefix = f"{prefix}op:"
        self.dedup_prefix = f"{prefix}dedup:"
        self.heartbeat_prefix = f"{prefix}worker:"
        self.sent_prefix = f"{prefix}sent:"
        self.ring_prefix = f"{prefix}ring:"
        self.leases = f"{prefix}leases"
        self.delayed = f"{prefix}delayed"
        self.failures = f"{prefix}failures"
        self.system_errors = f"{prefix}system_errors"
        self.registry = f"{prefix}registry"
        self.registry_version = f"{prefix}registry:version"
        self.metrics = f"{prefix}metrics"
        self.depths = f"{prefix}depths"
        self.sizes = f"{prefix}sizes"
        self.workers = f"{prefix}workers"
        self.wake = f"{prefix}wake"
        self.wake_sync = f"{prefix}wake:sync"
        self.ready_index = f"{prefix}ready"
        self.ready_index_sync = f"{prefix}ready:sync"
        self.reaper = f"{prefix}reaper"
        self.guard = f"{prefix}none"  # never exists: see common.lua

    def ready(self, queue_name: str, priority: str) -> str:
        """The list of ready ids: ``queue:{priority}:{queue_name}``."""
        return f"{self.prefix}{priority}:{queue_name}"

    def operation(self, operation_id: str) -> str:
        """The hash of one operation."""
        return f"{self.operation_prefix}{operation_id}"

    def dedup(self, deduplication_key: str) -> str:
        """The string that names the holder of a deduplication key."""
        return f"{self.dedup_prefix}{dedup_digest(deduplication_key)}"

    def ring(self, worker_id: str) -> str:
        """The marker that ends one worker's blocking read."""
        return f"{self.ring_prefix}{worker_id}"

    def split_ready(self, key: str) -> tuple[str, str]:
        """``queue:high:mail`` -> ``("mail", "high")``."""
        priority, _, queue_name = key.removeprefix(self.prefix).partition(":")
        return queue_name, priority


def dedup_digest(deduplication_key: str) -> str:
    """SHA-256 of a deduplication key, so that a key of any length and content is a safe name."""
    return hashlib.sha256(deduplication_key.encode("utf-8", "surrogatepass")).hexdigest()


def _is_prefix(prefix: object) -> bool:
    return isinstance(prefix, str) and _PREFIX.fullmatch(prefix) is not None
