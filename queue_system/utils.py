"""Decorators that make a call resilient: time limit, circuit breaker, retries, error handling.

    @try_catch(default=None)
    @circuit_breaker
    @retry_with_backoff(max_attempts=5)
    @with_timeout(seconds=2.0)
    async def fetch(url: str) -> bytes: ...

All four take sync and async functions and methods alike, bare (``@try_catch``) or with arguments by name, and keep the
signature. Generator functions are refused. The order above is the useful one: a breaker *below* a time limit sees a
cancellation instead of a failure, and would never open because of calls that hang.

Callbacks are plain functions, not async ones. Those that only listen (``on_...``) are isolated: if one raises, that is
logged and the call goes on. An error in one that decides (``seconds``, ``breaker``, ``attempts``, ``retry_if``,
``translate``, ``log``) is raised.
"""

from queue_system.resilience.backoff import retry_with_backoff
from queue_system.resilience.breaker import CircuitBreaker, CircuitState, circuit_breaker
from queue_system.resilience.catch import try_catch
from queue_system.resilience.timeout import with_timeout

__all__ = ["CircuitBreaker", "CircuitState", "circuit_breaker", "retry_with_backoff", "try_catch", "with_timeout"]
