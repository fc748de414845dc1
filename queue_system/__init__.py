"""Queue System: a Redis-based queue for Python whose worker is observable by design.

Each name is imported when it is first asked for, so that the command can handle signals before anything that takes a
while, and a producer pays only for what it uses.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from queue_system.version import __version__

if TYPE_CHECKING:
    from queue_system.config import QueueConfig
    from queue_system.context import OperationContext
    from queue_system.errors import (
        BadSignatureError,
        BrokerReplyError,
        BrokerUnavailableError,
        CircuitOpenError,
        ClosedError,
        ConfigurationError,
        DecodeError,
        EntityTooLargeError,
        ImportRefusedError,
        InvalidOperationError,
        NotDurableError,
        QueueError,
        SerializationError,
        ThreadPoolExhaustedError,
        UnresolvableFunctionError,
        UnrunResultError,
        UnsupportedServerError,
        WorkerStateError,
    )
    from queue_system.manager import AsyncQueueManager, QueueManager
    from queue_system.registry import processor
    from queue_system.retry import QueueRetryConfig
    from queue_system.worker import QueueWorker

__all__ = [
    "AsyncQueueManager",
    "BadSignatureError",
    "BrokerReplyError",
    "BrokerUnavailableError",
    "CircuitOpenError",
    "ClosedError",
    "ConfigurationError",
    "DecodeError",
    "EntityTooLargeError",
    "ImportRefusedError",
    "InvalidOperationError",
    "NotDurableError",
    "OperationContext",
    "QueueConfig",
    "QueueError",
    "QueueManager",
    "QueueRetryConfig",
    "QueueWorker",
    "SerializationError",
    "ThreadPoolExhaustedError",
    "UnresolvableFunctionError",
    "UnrunResultError",
    "UnsupportedServerError",
    "WorkerStateError",
    "__version__",
    "processor",
]

_HOMES: Final = {
    "QueueConfig": "config",
    "OperationContext": "context",
    "BadSignatureError": "errors",
    "BrokerReplyError": "errors",
    "BrokerUnavailableError": "errors",
    "CircuitOpenError": "errors",
    "ClosedError": "errors",
    "ConfigurationError": "errors",
    "DecodeError": "errors",
    "EntityTooLargeError": "errors",
    "ImportRefusedError": "errors",
    "InvalidOperationError": "errors",
    "NotDurableError": "errors",
    "QueueError": "errors",
    "SerializationError": "errors",
    "ThreadPoolExhaustedError": "errors",
    "UnresolvableFunctionError": "errors",
    "UnrunResultError": "errors",
    "UnsupportedServerError": "errors",
    "WorkerStateError": "errors",
    "AsyncQueueManager": "manager",
    "QueueManager": "manager",
    "processor": "registry",
    "QueueRetryConfig": "retry",
    "QueueWorker": "worker",
}
"""Which module each name comes from."""

_MODULES: Final = frozenset(
    {"config", "context", "errors", "events", "hooks", "manager", "outcome", "registry", "retry", "utils", "worker"}
)
"""Those that are attributes without an import of their own, e.g. `queue_system.errors`."""

if not TYPE_CHECKING:  # a type checker would take every name for one of ours

    def __getattr__(name: str) -> Any:
        """Import what is asked for the first time."""
        if name in _HOMES:
            value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
        elif name in _MODULES:
            value = import_module(f"{__name__}.{name}")
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})
