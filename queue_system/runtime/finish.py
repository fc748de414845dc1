"""Turns outcomes into calls, in batches, and tells what Redis made of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import msgspec

from queue_system.broker.commands import Commands
from queue_system.broker.messages import MAX_COMPLETE, Call, Callback, Completion
from queue_system.errors import BrokerUnavailableError, QueueError
from queue_system.events import (
    OperationInfo,
    OutcomeApplied,
)
from queue_system.hooks import Hooks
from queue_system.operation import KIND_CALLBACK
from queue_system.outcome import (
    CANCELLED,
    POOL_EXHAUSTED,
    TIMEOUT,
    TOTAL_TIMEOUT,
    ErrorInfo,
    Failure,
    Outcome,
    Reject,
    Requeue,
    Retry,
    Success,
)

_ATTEMPT_OUTCOMES: Final = {TIMEOUT: "timeout", CANCELLED: "cancelled", POOL_EXHAUSTED: "exhausted"}
_RESULTS: Final[dict[type, str]] = {Retry: "retried", Failure: "failed", Reject: "rejected", Requeue: "requeued"}

MAX_TURN: Final = 1000  # outcomes in one round trip


class Settlement(msgspec.Struct, gc=False):
    """An outcome on its way to Redis.

    `key` is the operation's id and the fencing token of its claim; `record` the attempt's entry in the operation's
    history, JSON; `trace` its traceparent; `age` the seconds since the operation was accepted; `first_called` when its
    processor was first called, on the clock of Redis, 0 when it never was.
    """

    key: tuple[str, int]
    outcome: Outcome
    info: OperationInfo
    record: bytes = b""
    trace: str = ""
    callback: Callback | None = None
    age: float = 0.0
    again: bool = False
    first_called: float = 0.0

    @property
    def operation_id(self) -> str:
        """The operation's id."""
        return self.key[0]

    @property
    def is_delayed(self) -> bool:
        """Whether the operation comes back after a time."""
        return isinstance(self.outcome, Retry | Requeue) and self.outcome.delay > 0

    @property
    def token(self) -> int:
        """The fencing token of its claim."""
        return self.key[1]


class Outbox:
    """Collects settlements until the next round trip.

    Args:
        commands: builds the calls.
        hooks: told what was applied.
        done_ttl: seconds for which a finished operation's id stays taken.
        retention: seconds for which what was given up is kept.
        on_settled: given id and token of each for which Redis has answered: the lease need not be kept any more.
        on_refused: told what Redis refuses for good; the lease then expires and the operation runs again.
    """

    def __init__(
        self,
        commands: Commands,
        hooks: Hooks,
        *,
        done_ttl: float,
        retention: float,
        on_settled: Callable[[Iterable[tuple[str, int]]], None],
        on_refused: Callable[[QueueError], None],
    ) -> None:
        self._commands = commands
        self._hooks = hooks
        self._done_ttl = done_ttl
        self._retention = retention
        self._on_settled = on_settled
        self._on_refused = on_refused
        self._waiting: deque[Settlement] = deque()
        self._unanswered: set[tuple[str, int]] = set()

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, settlement: Settlement) -> None:
        """Add one."""
        self._waiting.append(settlement)
        self._unanswered.add(settlement.key)

    def has(self, operation_id: str, token: int) -> bool:
        """Whether this claim's outcome was decided, and Redis has not answered yet."""
        return (operation_id, token) in self._unanswered

    def take(self) -> list[Settlement]:
        """Take out what goes into the next round trip."""
        return [self._waiting.popleft() for _ in range(min(len(self._waiting), MAX_TURN))]

    def put_back(self, batch: Sequence[Settlement], *, ambiguous: bool) -> None:
        """The round trip failed: they go again, before all others."""
        for settlement in batch:
            settlement.again |= ambiguous
        self._waiting.extendleft(reversed(batch))

    def calls(self, batch: Sequence[Settlement]) -> list[tuple[Call[Any], list[Settlement]]]:
        """The calls for a batch, each with the settlements that it applies."""
        done: tuple[list[Settlement], list[Settlement]] = ([], [])  # for the first time, and again
        others: list[Settlement] = []
        for one in batch:
            (done[one.again] if isinstance(one.outcome, Success) else others).append(one)
        calls: list[tuple[Call[Any], list[Settlement]]] = []
        for again, same in enumerate(done):
            for start in range(0, len(same), MAX_COMPLETE):
                part = same[start : start + MAX_COMPLETE]
                completions = [_completion(one) for one in part]
                calls.append((self._commands.complete(completions, done_ttl=self._done_ttl, again=bool(again)), part))
        calls.extend((self._single(one), [one]) for one in others)
        return calls

    def settle_all(self, parts: Sequence[tuple[Call[Any], Sequence[Settlement]]], replies: Sequence[Any]) -> None:
        """As `settle`, for the parts that `calls` gave. What fails for one of them is raised after all others."""
        failed: BaseException | None = None
        for (_, part), reply in zip(parts, replies, strict=False):
            try:
                self.settle(part, reply)
            except BaseException as error:  # noqa: BLE001  raised below
                failed = failed or error
        if failed is not None:
            raise failed

    def settle(self, part: Sequence[Settlement], reply: Any) -> None:
        """Redis has answered the call for `part`, or refused it."""
        if isinstance(reply, BrokerUnavailableError):
            self.put_back(part, ambiguous=reply.ambiguous)
            return
        keys = [settlement.key for settlement in part]
        self._unanswered.difference_update(keys)
        self._on_settled(keys)
        if isinstance(reply, QueueError):
            self._on_refused(reply)
            return
        replies = reply if isinstance(reply, list) else [reply] * len(part)
        for settlement, applied in zip(part, replies, strict=True):
            self._hooks.on_event(_applied(settlement, applied=bool(applied)))

    def _single(self, one: Settlement) -> Call[Any]:
        outcome = one.outcome
        if isinstance(outcome, Retry):
            return self._commands.retry(
                one.operation_id,
                one.token,
                delay=outcome.delay,
                exhausted=outcome.reason == POOL_EXHAUSTED,
                counters=_counters(one),
                record=one.record,
                trace=one.trace,
                again=one.again,
                first_called=one.first_called,
            )
        if isinstance(outcome, Failure | Reject):
            rejected = isinstance(outcome, Reject)
            return self._commands.fail(
                one.operation_id,
                one.token,
                system_error=rejected,
                attempted=not rejected and outcome.attempted,  # type: ignore[union-attr]  # a Failure then
                counters=_counters(one),
                error=encode_error(outcome.reason, outcome.error),
                record=one.record,
                retention=self._retention,
                callback=one.callback,
                again=one.again,
            )
        requeue = outcome if isinstance(outcome, Requeue) else Requeue()
        return self._commands.release(
            one.operation_id,
            one.token,
            delay=requeue.delay,
            reason=requeue.reason,
            first_called=one.first_called,
        )


def encode_error(reason: str, error: ErrorInfo) -> bytes:
    """How an error is kept: JSON with reason, type, message and traceback."""
    return msgspec.json.encode(
        {"reason": reason, "type": error.type, "message": error.message, "traceback": error.traceback}
    )


def _counters(one: Settlement) -> list[str]:
    """The fields of the metrics hash that this outcome increases. Callbacks are counted apart from operations."""
    outcome = one.outcome
    if isinstance(outcome, Reject):
        return ["system_errors", "rejected"]
    prefix = "callbacks_" if one.info.kind == KIND_CALLBACK else ""
    counters = [f"{prefix}{'retried' if isinstance(outcome, Retry) else 'failed'}"]
    cause = outcome.reason if isinstance(outcome, Retry) else outcome.cause if isinstance(outcome, Failure) else ""
    reason = outcome.reason if isinstance(outcome, Retry | Failure) else ""
    if not prefix and (cause == TIMEOUT or reason == TOTAL_TIMEOUT):
        counters.append("timeouts")
    if cause == POOL_EXHAUSTED:
        counters.append("thread_pool_exhaustion")
    return counters


def _completion(one: Settlement) -> Completion:
    return Completion(*one.key, "c" if one.info.kind == KIND_CALLBACK else "o", one.callback)


def attempt_outcome(outcome: Outcome) -> str:
    """How the attempt itself ended: success, error, timeout, cancelled or exhausted. Empty when there was none."""
    if isinstance(outcome, Success):
        return "success"
    if isinstance(outcome, Retry):
        return _ATTEMPT_OUTCOMES.get(outcome.reason, "error")
    if isinstance(outcome, Failure) and outcome.attempted:
        return _ATTEMPT_OUTCOMES.get(outcome.cause, "error")
    return ""


def _applied(one: Settlement, *, applied: bool) -> OutcomeApplied:
    outcome = one.outcome
    if not applied:
        reason = "sent_again" if one.again else "released" if isinstance(outcome, Requeue) else "lease_lost"
        return OutcomeApplied(one.info, "stale", attempt_outcome(outcome), reason, age=one.age)
    if isinstance(outcome, Success):
        return OutcomeApplied(one.info, "processed", "success", "", "", one.age)
    error_type = "" if isinstance(outcome, Requeue) else outcome.error.type
    result = _RESULTS[type(outcome)]
    return OutcomeApplied(one.info, result, attempt_outcome(outcome), outcome.reason, error_type, one.age)
