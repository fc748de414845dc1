"""The attempts that are going on in a worker: what is known of each, and how one is brought to its end."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections.abc import Callable
from contextvars import Context, Token
from types import TracebackType
from typing import Any, Final

import msgspec

from queue_system.broker.messages import Callback
from queue_system.errors import ConfigurationError, DecodeError
from queue_system.events import (
    AttemptFinished,
    AttemptStarted,
    OperationInfo,
    current_operation,
)
from queue_system.hooks import NO_CONTEXT, Hooks
from queue_system.operation import KIND_OPERATION, Operation
from queue_system.outcome import (
    ErrorInfo,
    Failure,
    Outcome,
    Reject,
    Requeue,
    Retry,
    Success,
)
from queue_system.retry import QueueRetryConfig
from queue_system.runtime.callbacks import callback_for
from queue_system.runtime.finish import Outbox, Settlement, attempt_outcome
from queue_system.runtime.incident import attempt_record
from queue_system.runtime.intake import Claim
from queue_system.signing import UNSIGNED, Signer

DEFAULT_RETRY: Final = QueueRetryConfig()
NO_ERROR: Final = ErrorInfo("", "")

_NEXT: Final = {Success: "done", Retry: "retry", Failure: "failed", Requeue: "requeue", Reject: "rejected"}


class Attempt:
    """One attempt. `key` is that of its claim; `task` sees it through, and awaits an async processor; `cancelled_for`
    says why that was cancelled by the worker, `cancels` how often; `called` is true once the processor was called;
    `awaited` is what its task awaits, in `context`; `abandoned` is true once it was decided without its processor;
    `on_loop` while it runs on the event loop, if it does; `thread` is the ident of the thread in which a sync one was.
    """  # noqa: D205

    __slots__ = (
        "abandoned", "awaited", "called", "cancelled_for", "cancels", "cause", "claim", "context", "error", "info",
        "item", "key", "on_loop", "retry", "started", "started_at", "started_event", "submitted", "task", "thread",
        "wait",
    )  # fmt: skip

    def __init__(self, item: Operation, claim: Claim | None, info: OperationInfo, now: float) -> None:
        self.item = item
        self.claim = claim
        self.info = info
        self.key = claim.key if claim is not None else (item["operation_id"], item.get("token", 0))
        self.retry = _retry_of(item)
        self.error = NO_ERROR
        self.cause = ""
        self.task: asyncio.Task[Any] | None = None
        self.cancelled_for = ""
        self.cancels = 0
        self.thread = 0
        self.abandoned = False
        self.awaited: Any = None
        self.context: Context | None = None
        self.on_loop = info.is_async
        self.called = False
        self.begin(now)
        self.submitted = self.started

    def begin(self, now: float) -> None:
        """The attempt begins now; `now` is on the clock of Redis."""
        self.started = time.monotonic()
        self.started_at = now
        self.wait = max(0.0, now - self.item.get("ready_at", now))
        self.started_event = AttemptStarted(self.info, self.wait)

    def call(self) -> None:
        """The processor is called now. The total time runs from the first time that it is."""
        self.item.setdefault("first_attempt_time", self.started_at)
        self.called = True  # last: the event loop asks for how long it has been, from another thread

    def cancel(self, reason: str) -> None:
        """Let `CancelledError` be raised where its task waits: for an async attempt in its processor."""
        self.cancelled_for = reason
        if self.task is not None:
            self.cancels += 1
            self.task.cancel()

    def let_go(self) -> None:
        """Close its coroutine, which has not heeded its cancellation, so that its task can end."""
        if asyncio.iscoroutine(self.awaited) and self.context is not None:
            with contextlib.suppress(BaseException):  # it may heed nothing at all
                self.context.run(self.awaited.close)
            self.cancel(self.cancelled_for)

    def take_back_cancels(self) -> None:
        """The processor has ended: its task goes on, to what is next."""
        while self.cancels and self.task is not None:
            self.cancels -= 1
            self.task.uncancel()

    def cancelled_from_outside(self) -> bool:
        """Whether anybody but the worker has cancelled its task, and not taken that back."""
        return self.task is not None and self.task.cancelling() > self.cancels

    def within(self, hooks: Hooks) -> Within:
        """Surrounds the attempt and the decision about it: what happens inside is known to belong to it."""
        return Within(self, hooks)

    @property
    def number(self) -> int:
        """1 for the first attempt."""
        return self.item.get("attempts", 0) + 1


class Within:
    """See `Attempt.within`. A class, because a generator would cost three times as much."""

    __slots__ = ("_context", "_info", "_token")

    def __init__(self, attempt: Attempt, hooks: Hooks) -> None:
        self._info = attempt.info
        self._context = hooks.attempt_context(attempt.started_event)
        self._token: Token[OperationInfo | None] | None = None

    def __enter__(self) -> None:
        self._token = current_operation.set(self._info)
        if self._context is not NO_CONTEXT:
            self._context.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._context is not NO_CONTEXT:
            self._context.__exit__(kind, error, trace)
        if self._token is not None:
            current_operation.reset(self._token)


class Attempts:
    """All attempts of a worker.

    Args:
        worker_id: for the history of operations.
        hooks: told how attempts end.
        outbox: takes the outcomes.
        clock: the clock of Redis, in seconds.
        max_bytes: limit of a callback's size.
        max_depth: limit of a callback's nesting.
        on_outcome: called when an outcome waits in the outbox.
        signer: signs callbacks.
    """

    def __init__(
        self,
        worker_id: str,
        hooks: Hooks,
        outbox: Outbox,
        *,
        clock: Callable[[], float],
        max_bytes: int,
        max_depth: int,
        on_outcome: Callable[[], None],
        signer: Signer = UNSIGNED,
    ) -> None:
        self._worker_id = worker_id
        self._hooks = hooks
        self._outbox = outbox
        self._clock = clock
        self._max_bytes = max_bytes
        self._max_depth = max_depth
        self._on_outcome = on_outcome
        self._signer = signer
        self._running: dict[tuple[str, int], Attempt] = {}
        self.made = 0
        """How many have ended of those that called a processor."""

    def __len__(self) -> int:
        return len(self._running)

    def all(self) -> list[Attempt]:
        """Those that are going on."""
        return list(self._running.values())

    def open(self, item: Operation, claim: Claim, *, is_async: bool) -> Attempt:
        """Start the account of an attempt.

        Raises:
            DecodeError: its retry configuration is none.
        """
        attempt = self._new(item, claim, is_async=is_async)
        self._running[attempt.key] = attempt
        return attempt

    def close(self, attempt: Attempt) -> None:
        """End the account of an attempt."""
        if self._running.pop(attempt.key, None) is not None and attempt.called:
            self.made += 1

    def of(self, item: Operation) -> Attempt:
        """The attempt of an operation as claimed; a new account for one that is not known."""
        key = item["operation_id"], item.get("token", 0)
        return self._running.get(key) or self._new(item, None, is_async=bool(item.get("is_async", True)))

    def find(self, operation_id: str, token: int) -> Attempt | None:
        """The attempt of that id and token, if it is going on."""
        return self._running.get((operation_id, token))

    def finish(self, attempt: Attempt, outcome: Outcome) -> bool:
        """Send the outcome on its way; true when the operation ended well."""
        if attempt.claim is not None and attempt.claim.settled:  # given back by a stop that would not wait any longer
            self.drop(attempt)
            return False
        ended = self._clock()
        age = max(0.0, ended - attempt.item.get("accepted_at", ended))
        succeeded = type(outcome) is Success
        if succeeded and "on_success" not in attempt.item:  # nobody would read what else there is to say
            took = time.monotonic() - attempt.started
            self._hooks.on_event(AttemptFinished(attempt.info, "success", took, "done"))
            settlement = Settlement(attempt.key, outcome, attempt.info, age=age)
        else:
            settlement = self._settlement(attempt, outcome, ended, age)
        if attempt.claim is not None:
            attempt.claim.settled = True
        self._outbox.put(settlement)
        self._on_outcome()
        return succeeded

    def drop(self, attempt: Attempt) -> None:
        """The attempt is over, and its end is nobody's concern any more: the operation has another owner."""
        self._hooks.on_event(
            AttemptFinished(attempt.info, _abandoned(attempt), time.monotonic() - attempt.started, "dropped")
        )

    def release(self, claim: Claim, reason: str, *, delay: float = 0.0) -> None:
        """Give back a claim of which there is no account, without burning an attempt."""
        if not claim.settled:
            self._settle_raw(claim, Requeue(delay, reason))

    def reject(self, claim: Claim, error: ErrorInfo, reason: str = "", *, item: Operation | None = None) -> None:
        """Send a claim that could not even be understood to the system errors; Redis still has its raw bytes.

        The reason is the error's class, unless one is given. With its `item`, if it could be read after all, its
        `on_failure` is called.
        """
        if not claim.settled:
            outcome = Reject(reason or error.type, error)
            self._settle_raw(claim, outcome, None if item is None else self._callback(item, outcome, {}))

    def _callback(self, item: Operation, outcome: Outcome, headers: dict[str, str]) -> Callback | None:
        return callback_for(
            item,
            outcome,
            headers or item.get("headers", {}),  # without an attempt's span it belongs to the producer's
            max_bytes=self._max_bytes,
            max_depth=self._max_depth,
            signer=self._signer,
        )

    def _settle_raw(self, claim: Claim, outcome: Requeue | Reject, callback: Callback | None = None) -> None:
        delivery = claim.delivery
        priority, _, queue = delivery.ready_key.rpartition(":")
        info = OperationInfo(
            delivery.operation_id, queue, priority.rpartition(":")[2], "unknown", KIND_OPERATION,
            is_async=not claim.sync, attempt=delivery.attempts + 1, headers={},
        )  # fmt: skip
        self._outbox.put(Settlement(claim.key, outcome, info, callback=callback))
        claim.settled = True
        self._on_outcome()

    def _new(self, item: Operation, claim: Claim | None, *, is_async: bool) -> Attempt:
        info = OperationInfo(
            item["operation_id"],
            item["queue"],
            item["priority"],
            item["processor"],
            item.get("kind", KIND_OPERATION),
            is_async,
            item.get("attempts", 0) + 1,
            item.get("headers", {}),
            item.get("previous_trace", ""),
        )
        return Attempt(item, claim, info, self._clock())

    def _settlement(self, attempt: Attempt, outcome: Outcome, ended: float, age: float) -> Settlement:
        """Tell how the attempt ended, and put together all that is kept of it."""
        self._tell(attempt, outcome)
        headers: dict[str, str] = {}
        self._hooks.inject(headers)
        return Settlement(
            attempt.key,
            outcome,
            attempt.info,
            record=self._record(attempt, outcome, ended, headers),
            trace=headers.get("traceparent", ""),
            callback=self._callback(attempt.item, outcome, headers),
            age=age,
            first_called=attempt.item.get("first_attempt_time", 0.0),
        )

    def _tell(self, attempt: Attempt, outcome: Outcome) -> None:
        error = outcome.error if isinstance(outcome, Retry | Failure | Reject) else NO_ERROR
        self._hooks.on_event(
            AttemptFinished(
                attempt.info,
                _abandoned(attempt) if isinstance(outcome, Requeue) else attempt_outcome(outcome),
                time.monotonic() - attempt.started,
                _NEXT[type(outcome)],
                outcome.delay if isinstance(outcome, Retry | Requeue) else 0.0,
                error.type,
                error.message,
                "" if isinstance(outcome, Success) else outcome.reason,
            )
        )

    def _record(self, attempt: Attempt, outcome: Outcome, ended: float, headers: dict[str, str]) -> bytes:
        attempted = isinstance(outcome, Retry) or (isinstance(outcome, Failure) and outcome.attempted)
        if not attempted:
            return b""
        return attempt_record(
            attempt=attempt.number,
            worker=self._worker_id,
            started=attempt.started_at,
            ended=ended,
            reason=outcome.reason if isinstance(outcome, Retry) else outcome.cause,  # type: ignore[union-attr]  # a Failure
            error=outcome.error,  # type: ignore[union-attr]  # a Retry or a Failure
            headers=headers,
        )


def _abandoned(attempt: Attempt) -> str:
    return "abandoned" if attempt.called else ""


def _retry_of(item: Operation) -> QueueRetryConfig:
    stored = item.get("retry_config")
    if stored is None:
        return DEFAULT_RETRY
    try:
        return _parsed_retry(msgspec.json.encode(stored))
    except ConfigurationError as error:
        raise DecodeError(f"bad retry configuration: {error}", b"") from error


@functools.lru_cache(maxsize=256)
def _parsed_retry(stored: bytes) -> QueueRetryConfig:
    """Of a processor's operations most have the same, and checking one took 15 us, by `benchmarks.features`."""
    return QueueRetryConfig.from_dict(msgspec.json.decode(stored))
