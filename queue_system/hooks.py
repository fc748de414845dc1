"""The one seam on which telemetry hangs: the core says what happened and does not know who listens.

A listener derives from `Hooks` and overrides what it needs. `HookChain` calls several and isolates them: what a
listener raises is logged and counted, and never reaches the work.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Final

from queue_system.events import (
    AttemptStarted,
    EnqueueStarted,
    Event,
    QueueView,
    WorkerView,
)

logger = logging.getLogger("queue_system.hooks")


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
    """A context within another one; what its listener raises on entering or leaving does not get out."""

    __slots__ = ("_context", "_entered", "_failed", "_listener", "_outer")

    def __init__(
        self,
        listener: Hooks,
        context: AbstractContextManager[None],
        outer: AbstractContextManager[None],
        failed: Callable[[Hooks], None],
    ) -> None:
        self._listener = listener
        self._context = context
        self._outer = outer
        self._failed = failed
        self._entered = False

    def __enter__(self) -> None:
        if self._outer is not NO_CONTEXT:
            self._outer.__enter__()
        try:
            self._context.__enter__()
        except BaseException:  # noqa: BLE001  isolation is the point: it is logged and counted
            self._failed(self._listener)
        else:
            self._entered = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._entered:
            try:
                # What it returns is not heeded: a listener cannot swallow the work's exception either.
                self._context.__exit__(kind, error, trace)
            except BaseException as raised:  # noqa: BLE001  isolation is the point: it is logged and counted
                if raised is not error:  # a generator context raises again what it was given
                    self._failed(self._listener)
        if self._outer is not NO_CONTEXT:
            self._outer.__exit__(kind, error, trace)


class HookChain(Hooks):
    """Calls several listeners in turn, each isolated from the others and from the work.

    Args:
        listeners: in the order in which they are called; contexts are left in reverse order.
        on_failure: told the listener's class name each time one raises.
    """

    def __init__(self, listeners: Sequence[Hooks] = (), on_failure: Callable[[str], None] | None = None) -> None:
        self._listeners = tuple(listeners)
        self._enqueue_contexts = [(one, one.enqueue_context) for one in listeners if _has_own(one, "enqueue_context")]
        self._attempt_contexts = [(one, one.attempt_context) for one in listeners if _has_own(one, "attempt_context")]
        self._injectors = [one for one in listeners if _has_own(one, "inject")]
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
            except BaseException:  # noqa: BLE001  isolation is the point: it is logged and counted
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
        return self._all(self._enqueue_contexts, event)

    def attempt_context(self, event: AttemptStarted) -> AbstractContextManager[None]:
        """See `Hooks`."""
        return self._all(self._attempt_contexts, event)

    def inject(self, headers: dict[str, str]) -> None:
        """See `Hooks`."""
        for listener in self._injectors:
            try:
                listener.inject(headers)
            except BaseException:  # noqa: BLE001  isolation is the point: it is logged and counted
                self._failed(listener)

    def _each(self, call: Callable[[Hooks], None]) -> None:
        for listener in self._listeners:
            try:
                call(listener)
            except BaseException:  # noqa: BLE001  isolation is the point: it is logged and counted
                self._failed(listener)

    def _all(
        self, makers: Sequence[tuple[Hooks, Callable[[Any], AbstractContextManager[None]]]], event: Event
    ) -> AbstractContextManager[None]:
        contexts: AbstractContextManager[None] = NO_CONTEXT
        for listener, make in makers:
            try:
                context = make(event)
            except BaseException:  # noqa: BLE001  isolation is the point: it is logged and counted
                self._failed(listener)
            else:
                if context is not NO_CONTEXT:
                    contexts = _Isolated(listener, context, contexts, self._failed)
        return contexts

    def _failed(self, listener: Hooks) -> None:
        name = type(listener).__name__
        self.failures += 1
        self._failed_times[name] = times = self._failed_times.get(name, 0) + 1
        if str(times).rstrip("0") == "1":  # the first, tenth, hundredth... time: a broken listener fails at every event
            logger.exception("telemetry_listener_failed: %s (%d times)", name, times)  # noqa: LOG004  in a handler
        told = [one.listener_failed for one in self._listeners]
        for tell in told if self._on_failure is None else (*told, self._on_failure):
            with contextlib.suppress(BaseException):  # the last resort must not raise, and there is nobody left to tell
                tell(name)


def _has_own(listener: Hooks, method: str) -> bool:
    return getattr(type(listener), method) is not getattr(Hooks, method)


NO_HOOKS = HookChain()
"""What is used where telemetry is off."""
