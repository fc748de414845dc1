"""The import path ``from utils import with_timeout``: the same functions as in `queue_system.utils`."""

from queue_system.utils import circuit_breaker, retry_with_backoff, try_catch, with_timeout

__all__ = ["circuit_breaker", "retry_with_backoff", "try_catch", "with_timeout"]
