"""`circuit_breaker`, and `CircuitBreaker`, which several functions may share."""

from __future__ import annotations

import contextvars
import itertools
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, overload

from queue_system.errors import CircuitOpenError, ConfigurationError
from queue_system.resilience._common import (
    UNSET,
    AnyFunction,
    Decorator,
    Exceptions,
    P,
    R,
    check_count,
    check_exceptions,
    check_seconds,
    decorate,
    name_of,
    notify,
)

if TYPE_CHECKING:
    from types import TracebackType

CircuitState: TypeAlias = Literal["closed", "open", "half_open"]

_PROBE_PAUSE: Final = 1.0  # seconds; most probes end long before the recovery timeout does
_probe_numbers: Final = itertools.count(1)
_own_probes: Final = contextvars.ContextVar[tuple[int, ...]]("own_probes", default=())


class CircuitBreaker:
    """Refuses calls to something that keeps failing, and finds out when it works again. Thread-safe.

    *closed*: calls pass. After `failure_threshold` failures in a row, *open*: calls are refused. When
    `recovery_timeout` is over, the next call is let through as a probe, *half_open*: its success closes the circuit,
    its failure opens it again; all others are refused meanwhile. A probe that has not ended after `recovery_timeout`
    is given up, and another one let through. Results of calls from before the circuit opened are ignored.

    Args:
        name: for errors and metrics.
        failure_threshold: failures in a row that open the circuit, 1 or more (default 5).
        recovery_timeout: seconds from the opening to the probe, above 0 (default 30.0).
        clock: returns seconds, never going back.
        on_change: called with name, old and new state, in order; it runs under the lock, so it must be short.

    Raises:
        ConfigurationError: an argument is out of its range.

    Example:
        >>> breaker = CircuitBreaker("redis", on_change=lambda name, old, new: print(name, new))
        >>> @circuit_breaker(breaker=breaker, exceptions=(ConnectionError,))
        ... def ping() -> bool: ...
    """

    def __init__(
        self,
        name: str,
        failure_threshold: int = 5,
        recovery_timeout: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
        on_change: Callable[[str, CircuitState, CircuitState], object] | None = None,
    ) -> None:
        check_count("failure_threshold", failure_threshold)
        check_seconds("recovery_timeout", recovery_timeout)
        self.name = name
        self.failure_threshold = failure_threshold
        self.recovery_timeout = recovery_timeout
        self._clock = clock
        self._on_change = on_change
        self._lock = threading.RLock()  # re-entrant, so that on_change may look at the breaker
        self._state: CircuitState = "closed"
        self.failures = 0
        """In a row; never 0 unless closed: as long as it is, a call need not ask, nor say that it succeeded."""
        self._retry_at = 0.0
        self._probe = 0  # 0: no probe is under way

    @property
    def state(self) -> CircuitState:
        """``closed``, ``open`` or ``half_open``. Open turns into half open with the next call, not by itself."""
        return self._state

    def before_call(self) -> int:
        """Ask for leave to call; give what this returns to the method that reports how the call went.

        Returns:
            0 for an ordinary call, the number of the probe for a probe.

        Raises:
            CircuitOpenError: refused; `retry_after` has the seconds to wait.
        """
        if self._state == "closed":
            return 0
        with self._lock:
            return self._admit()

    def record_success(self, probe: int | None = None) -> None:
        """The call succeeded. Without `probe`, it is taken for the probe if the circuit is half open."""
        if not self.failures:
            return
        with self._lock:
            if self._state == "closed" or self._decides(probe):
                self._probe = 0
                self._move("closed")
                self.failures = 0

    def restore(self) -> None:
        """The other side is known to work again, by other means than a probe: close the circuit, whatever its state.

        Calls pass at once. A probe that is on its way does not count any more.
        """
        if not self.failures:
            return
        with self._lock:
            self._probe = 0
            self._move("closed")
            self.failures = 0

    def record_failure(self, probe: int | None = None) -> None:
        """The call failed. Without `probe`, it is taken for the probe if the circuit is half open."""
        with self._lock:
            if self._state != "closed" and not self._decides(probe):
                return
            self.failures += 1
            if self._state == "half_open" or self.failures >= self.failure_threshold:
                self._retry_at = self._clock() + self.recovery_timeout
                self._probe = 0
                self._move("open")

    def release(self, probe: int | None = None) -> None:
        """The call was cancelled: neither success nor failure. The next call may be the probe."""
        with self._lock:
            if self._decides(probe):
                self._retry_at = self._clock()
                self._probe = 0

    def _admit(self) -> int:
        # What a probe calls in turn belongs to the probe. If another thread has closed the circuit, there is none: 0.
        if self._state == "closed" or self._probe in _own_probes.get():
            return self._probe
        now = self._clock()
        wait = self._retry_at - now
        if wait > 0:
            wait = min(wait, _PROBE_PAUSE) if self._state == "half_open" else wait
            what = f"circuit {self.name!r} is {self._state} after {self.failures} failures"
            raise CircuitOpenError(f"{what}: try again in {wait:.1f} s", retry_after=wait)
        self._retry_at = now + self.recovery_timeout
        self._probe = next(_probe_numbers)
        self._move("half_open")
        return self._probe

    def _decides(self, probe: int | None) -> bool:
        return self._state == "half_open" and (probe is None or probe == self._probe != 0)

    def _move(self, new: CircuitState) -> None:
        old, self._state = self._state, new
        if old != new and self._on_change is not None:
            notify(self._on_change, self.name, old, new)


_Breaker: TypeAlias = CircuitBreaker | Callable[[Any], CircuitBreaker] | None


@overload
def circuit_breaker(func: Callable[P, R], /) -> Callable[P, R]: ...
@overload
def circuit_breaker(
    *,
    failure_threshold: int = 5,
    recovery_timeout: float = 30.0,
    exceptions: Exceptions = (Exception,),
    breaker: _Breaker = None,
) -> Decorator: ...
def circuit_breaker(
    func: Any = UNSET,
    /,
    *,
    failure_threshold: int = 5,
    recovery_timeout: float = 30.0,
    exceptions: Exceptions = (Exception,),
    breaker: _Breaker = None,
) -> Any:
    """Refuse calls for a while after too many failures in a row; see `CircuitBreaker`.

    A cancelled call is neither success nor failure. When functions that share a breaker call each other, a failure
    that passes through two of them counts twice; a probe takes the calls that it makes in turn with it.

    Args:
        func: the function, when the decorator is used bare.
        failure_threshold: failures in a row that open the circuit, 1 or more (default 5). Without `breaker` only.
        recovery_timeout: seconds from the opening to the probe, above 0 (default 30.0). Without `breaker` only.
        exceptions: what counts as a failure (default: every `Exception`); any other exception counts as a success.
        breaker: the one to use, or a callable that takes the call's first argument (``self``) and returns it. By
            default, the function gets its own.

    Raises:
        ConfigurationError: at decoration, when an argument is out of its range.
        CircuitOpenError: at the call, when it is refused; `retry_after` has the seconds to wait.

    Example:
        >>> class Store:
        ...     def __init__(self) -> None:
        ...         self.breaker = CircuitBreaker("store", failure_threshold=3)
        ...
        ...     @circuit_breaker(breaker=lambda self: self.breaker, exceptions=(ConnectionError,))
        ...     def load(self, key: str) -> bytes: ...
    """
    return decorate(func, _Breaking(failure_threshold, recovery_timeout, exceptions, breaker))


class _Breaking:
    def __init__(self, threshold: int, recovery: float, exceptions: Exceptions, breaker: _Breaker) -> None:
        check_count("failure_threshold", threshold)
        check_seconds("recovery_timeout", recovery)
        check_exceptions(exceptions)
        if not (breaker is None or callable(breaker) or isinstance(breaker, CircuitBreaker)):
            raise ConfigurationError(f"breaker is a {type(breaker).__name__}: give a CircuitBreaker or a callable")
        self._limits = (threshold, recovery)
        self._exceptions = exceptions
        self._breaker = breaker

    # A closed circuit is the hot path: no context manager, no lock. Sync and async differ by nothing but the await.
    def wrap_sync(self, target: AnyFunction) -> AnyFunction:
        breaker_of, exceptions = self._chooser(target), self._exceptions

        def guarded(*args: Any, **kwargs: Any) -> Any:
            breaker = breaker_of(*args[:1])
            if breaker.failures and (probe := breaker.before_call()):
                with _Probing(breaker, probe, exceptions):
                    return target(*args, **kwargs)
            try:
                result = target(*args, **kwargs)
            except Exception as error:
                _record(breaker, 0, error, exceptions)
                raise
            if breaker.failures:
                breaker.record_success(0)
            return result

        return guarded

    def wrap_async(self, target: AnyFunction) -> AnyFunction:
        breaker_of, exceptions = self._chooser(target), self._exceptions

        async def guarded(*args: Any, **kwargs: Any) -> Any:
            breaker = breaker_of(*args[:1])
            if breaker.failures and (probe := breaker.before_call()):
                with _Probing(breaker, probe, exceptions):
                    return await target(*args, **kwargs)
            try:
                result = await target(*args, **kwargs)
            except Exception as error:
                _record(breaker, 0, error, exceptions)
                raise
            if breaker.failures:
                breaker.record_success(0)
            return result

        return guarded

    def _chooser(self, target: AnyFunction) -> Callable[..., CircuitBreaker]:
        if callable(self._breaker):
            return self._breaker
        breaker = self._breaker or CircuitBreaker(name_of(target), *self._limits)
        return lambda *_: breaker


def _record(breaker: CircuitBreaker, probe: int, error: BaseException | None, exceptions: Exceptions) -> None:
    if isinstance(error, exceptions):
        breaker.record_failure(probe)
    else:
        breaker.record_success(probe)  # another error: the other side is there, it only says no


class _Probing:
    """A probe, or a call within it: which of the two, the context knows."""

    def __init__(self, breaker: CircuitBreaker, probe: int, exceptions: Exceptions) -> None:
        self._breaker = breaker
        self._probe = probe
        self._exceptions = exceptions
        self._outer_probes = _own_probes.get()
        self._is_nested = probe in self._outer_probes

    def __enter__(self) -> None:
        if not self._is_nested:
            _own_probes.set((*self._outer_probes, self._probe))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._is_nested:
            # not reset(token), which refuses when a coroutine is closed from another context
            _own_probes.set(self._outer_probes)
        if error is None or isinstance(error, Exception):
            _record(self._breaker, self._probe, error, self._exceptions)
        elif not self._is_nested:
            self._breaker.release(self._probe)
