"""The one seam on which telemetry hangs: the core says what happened and does not know who listens.

A listener derives from `Hooks` and overrides what it needs. `HookChain` calls several and isolates them: what a
listener raises is logged and counted, and never reaches the work.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Final, Protocol

import msgspec

logger = logging.getLogger("queue_system.hooks")


class Event(msgspec.Struct, frozen=True):
    """Something that happened. Times are in seconds."""


class OperationInfo(msgspec.Struct, frozen=True):
    """What every event about one operation carries. `kind` is ``operation`` or ``callback``."""

    operation_id: str
    queue: str
    priority: str
    processor: str
    kind: str
    is_async: bool
    attempt: int
    headers: dict[str, str]
    previous_trace: str = ""  # traceparent of the attempt before this one


current_operation: ContextVar[OperationInfo | None] = ContextVar("queue_system_operation", default=None)
"""The operation that is being processed in this task or thread: set around every call of a processor."""


class EnqueueStarted(Event, frozen=True):
    """A call to enqueue `count` operations is about to be made (no id yet when it is a batch)."""

    queue: str
    priority: str
    processor: str
    count: int
    operation_id: str | None
    delay: float


class Enqueued(Event, frozen=True):
    """An enqueue call was answered: how many were accepted (ready or scheduled) and how many are duplicates."""

    queue: str
    priority: str
    processor: str
    accepted: int
    duplicates: int
    operation_ids: tuple[str, ...]


class EnqueueFailed(Event, frozen=True):
    """An enqueue call raised; nothing is known to be enqueued."""

    queue: str
    error_type: str


class AttemptStarted(Event, frozen=True):
    """A processor is about to be called. `wait` is since the operation was due."""

    operation: OperationInfo
    wait: float


class AttemptFinished(Event, frozen=True):
    """An attempt ended; emitted inside its context, before the outcome is written to Redis.

    `outcome` is success, error, timeout, cancelled, exhausted or abandoned (the processor was called, but its end does
    not count: given back by a stop, or the lease was lost), and empty when no attempt was made; `next` is done, retry,
    failed, rejected, requeue or dropped; `delay` is that of the retry.
    """

    operation: OperationInfo
    outcome: str
    duration: float
    next: str
    delay: float = 0.0
    error_type: str = ""
    error_message: str = ""
    reason: str = ""


class OutcomeApplied(Event, frozen=True):
    """Redis has moved the operation: counts made here equal those of the metrics hash.

    `result` is processed, retried, failed, rejected, requeued or stale. `outcome` is how the attempt ended (as in
    `AttemptFinished`; empty when none was made or when that was said to be abandoned), `reason` why the operation did
    not end well, `age` its time since it was accepted. The `reason` of what is stale is lease_lost, released (it was
    to be given back only) or sent_again (the reply to the first sending was lost: it may well have been applied).
    """

    operation: OperationInfo
    result: str
    outcome: str = ""
    reason: str = ""
    error_type: str = ""
    age: float = 0.0


class PoolExhausted(Event, frozen=True):
    """A sync operation found no free thread within the limit."""

    operation: OperationInfo
    waited: float


class PoolStarted(Event, frozen=True):
    """A sync operation got its thread, `waited` after it was handed over."""

    waited: float


class PoolUsed(Event, frozen=True):
    """A sync operation left the pool. `seconds` is since it was submitted; `active` of `size` threads are busy."""

    seconds: float
    active: int
    size: int


class LeaseLost(Event, frozen=True):
    """Another worker may run this operation now: its result here will not count."""

    operation_id: str


class Reclaimed(Event, frozen=True):
    """Expired leases were taken back from workers that are gone."""

    returned: int
    quarantined: int


class WorkerTaskFailed(Event, frozen=True):
    """A loop of the worker raised and was started again."""

    task: str
    reason: str


class BrokerError(Event, frozen=True):
    """A call to Redis failed."""

    operation: str
    kind: str


class BrokerCall(Event, frozen=True):
    """A round trip to Redis was answered."""

    operation: str
    duration: float


class BreakerChanged(Event, frozen=True):
    """A circuit breaker went to another state: closed, open or half_open."""

    breaker: str
    state: str


class WorkerChanged(Event, frozen=True):
    """A worker is starting, running, draining or stopped."""

    worker_id: str
    state: str


class PoolStats(msgspec.Struct, frozen=True):
    """One look at a thread pool. Seconds only grow; they are integrated on every change, not sampled."""

    size: int
    active: int
    waiting: int
    abandoned: int  # threads whose job has run beyond its limit; active as well
    submissions: int
    exhaustions: int
    busy_seconds: float
    capacity_seconds: float
    saturated_seconds: float
    longest_running: float


class WorkerStats(msgspec.Struct, frozen=True):
    """One look at a worker."""

    state: str
    pool: PoolStats
    utilization: float  # share of the threads that was busy since the last heartbeat
    tasks: int
    tasks_alive: int
    tasks_busy: int
    task_busy_seconds: float
    tasks_saturated_seconds: float
    loop_lag: float
    last_contact: float  # Unix time of Redis's last answer


class Health(msgspec.Struct, frozen=True):
    """Whether a worker is alive and ready, and each check's finding: ``ok`` or what is wrong."""

    alive: bool
    ready: bool
    alive_checks: dict[str, str]
    ready_checks: dict[str, str]


class QueueDepth(msgspec.Struct, frozen=True):
    """How many operations of a queue are in each state, and for how long (seconds) the oldest ready one is due."""

    queue: str
    priority: str
    ready: int
    delayed: int
    in_flight: int
    failed: int
    oldest_age: float


class Depth(msgspec.Struct, frozen=True):
    """The state of a whole queue system in one instant."""

    queues: tuple[QueueDepth, ...]
    failures: int
    system_errors: int
    unaccounted: int


class WorkerView(Protocol):
    """What a listener may ask of a worker, from any thread."""

    worker_id: str

    def stats(self) -> WorkerStats:
        """Its figures now."""
        ...

    def health(self) -> Health:
        """Whether it is alive and ready."""
        ...

    def served(self) -> Sequence[tuple[str, str]]:
        """Queue and name of each processor that is registered here."""
        ...


class QueueView(Protocol):
    """What a listener may ask of the queue in Redis, from any thread; `name` tells one queue from another."""

    name: str

    def depth(self) -> Depth:
        """Counts and ages, in bounded time.

        Raises:
            QueueError: Redis did not answer.
        """
        ...


class Hooks:
    """The base of all listeners: does nothing."""

    def on_event(self, event: Event) -> None:
        """Take notice of an event. Must be quick and must not block: it runs where the work runs."""

    def handler_for(self, event_type: type[Event]) -> Callable[[Any], None] | None:
        """What to call with events of this type, or None when they are of no interest: asked once for each type.

        By default `on_event`, where it is overridden.
        """
        return None if type(self).on_event is Hooks.on_event else self.on_event

    def attach(self, worker: WorkerView, queue: QueueView) -> None:
        """A worker runs from now on, and may be asked."""

    def detach(self, worker: WorkerView, queue: QueueView) -> None:
        """It has stopped."""

    def enqueue_context(self, event: EnqueueStarted) -> AbstractContextManager[None]:
        """Surrounds an enqueue call, `inject` included. `NO_CONTEXT` costs nothing."""
        return NO_CONTEXT

    def attempt_context(self, event: AttemptStarted) -> AbstractContextManager[None]:
        """Surrounds one call of a processor, in the task or thread that runs it, and the decision that follows."""
        return NO_CONTEXT

    def inject(self, headers: dict[str, str]) -> None:
        """Add the current context (such as ``traceparent``) to an operation's headers."""

    def listener_failed(self, listener: str) -> None:
        """A listener of this class, perhaps this one, raised: that was logged, and the work goes on."""


class _NoContext(AbstractContextManager[None]):
    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        return None


NO_CONTEXT: Final = _NoContext()
"""Surrounds nothing; recognised by its identity, so that it costs nothing either."""


class _Isolated(AbstractContextManager[None]):
    """Several contexts as one; what a listener raises on entering or leaving does not get out."""

    __slots__ = ("_contexts", "_entered", "_failed")

    def __init__(
        self, contexts: list[tuple[Hooks, AbstractContextManager[None]]], failed: Callable[[Hooks], None]
    ) -> None:
        self._contexts = contexts
        self._failed = failed
        self._entered: list[tuple[Hooks, AbstractContextManager[None]]] = []

    def __enter__(self) -> None:
        for listener, context in self._contexts:
            try:
                context.__enter__()
            except Exception:  # noqa: BLE001  isolation is the point: it is logged and counted
                self._failed(listener)
            else:
                self._entered.append((listener, context))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for listener, context in reversed(self._entered):
            try:
                # What it returns is not heeded: a listener cannot swallow the work's exception either.
                context.__exit__(kind, error, trace)
            except Exception as raised:  # noqa: BLE001  isolation is the point: it is logged and counted
                if raised is not error:  # a generator context raises again what it was given
                    self._failed(listener)


class HookChain(Hooks):
    """Calls several listeners in turn, each isolated from the others and from the work.

    Args:
        listeners: in the order in which they are called; contexts are left in reverse order.
        on_failure: told the listener's class name each time one raises.
    """

    def __init__(self, listeners: Sequence[Hooks] = (), on_failure: Callable[[str], None] | None = None) -> None:
        self._listeners = tuple(listeners)
        self._on_failure = on_failure
        self._handlers: dict[type[Event], list[tuple[Hooks, Callable[[Any], None]]]] = {}
        self.failures = 0
        self._failed_times: dict[str, int] = {}

    def on_event(self, event: Event) -> None:
        """See `Hooks`."""
        handlers = self._handlers.get(type(event))
        if handlers is None:
            handlers = self._find_handlers(type(event))
        for listener, handle in handlers:
            try:
                handle(event)
            except Exception:  # noqa: BLE001  isolation is the point: it is logged and counted
                self._failed(listener)

    def _find_handlers(self, event_type: type[Event]) -> list[tuple[Hooks, Callable[[Any], None]]]:
        asked = [(listener, listener.handler_for(event_type)) for listener in self._listeners]
        found = [(listener, handle) for listener, handle in asked if handle is not None]
        self._handlers[event_type] = found
        return found

    def attach(self, worker: WorkerView, queue: QueueView) -> None:
        """See `Hooks`."""
        self._each(lambda listener: listener.attach(worker, queue))

    def detach(self, worker: WorkerView, queue: QueueView) -> None:
        """See `Hooks`."""
        self._each(lambda listener: listener.detach(worker, queue))

    def enqueue_context(self, event: EnqueueStarted) -> AbstractContextManager[None]:
        """See `Hooks`."""
        return self._all([(listener, listener.enqueue_context) for listener in self._listeners], event)

    def attempt_context(self, event: AttemptStarted) -> AbstractContextManager[None]:
        """See `Hooks`."""
        return self._all([(listener, listener.attempt_context) for listener in self._listeners], event)

    def inject(self, headers: dict[str, str]) -> None:
        """See `Hooks`."""
        self._each(lambda listener: listener.inject(headers))

    def _each(self, call: Callable[[Hooks], None]) -> None:
        for listener in self._listeners:
            try:
                call(listener)
            except Exception:  # noqa: BLE001  isolation is the point: it is logged and counted
                self._failed(listener)

    def _all(
        self, makers: Sequence[tuple[Hooks, Callable[[Any], AbstractContextManager[None]]]], event: Event
    ) -> AbstractContextManager[None]:
        contexts = []
        for listener, make in makers:
            try:
                context = make(event)
            except Exception:  # noqa: BLE001  isolation is the point: it is logged and counted
                self._failed(listener)
            else:
                if context is not NO_CONTEXT:
                    contexts.append((listener, context))
        return _Isolated(contexts, self._failed) if contexts else NO_CONTEXT

    def _failed(self, listener: Hooks) -> None:
        name = type(listener).__name__
        self.failures += 1
        self._failed_times[name] = times = self._failed_times.get(name, 0) + 1
        if str(times).rstrip("0") == "1":  # the first, tenth, hundredth... time: a broken listener fails at every event
            logger.exception("telemetry_listener_failed: %s (%d times)", name, times)  # noqa: LOG004  in a handler
        told = [one.listener_failed for one in self._listeners]
        for tell in told if self._on_failure is None else (*told, self._on_failure):
            with contextlib.suppress(Exception):  # the last resort must not raise, and there is nobody left to tell
                tell(name)


NO_HOOKS = HookChain()
"""What is used where telemetry is off."""
