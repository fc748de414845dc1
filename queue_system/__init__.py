"""Queue System: a Redis-based queue whose worker is observable by design."""

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
from queue_system.version import __version__
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
