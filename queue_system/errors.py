"""Every error that this package raises on purpose. All of them are `QueueError`s."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class QueueError(Exception):
    """Root of the hierarchy: `except QueueError` catches all that the package raises on purpose."""


class EnqueueOutcome:
    """What an error that ended an enqueue half-way knows of its operations; all empty when it was no enqueue.

    A batch is sent in parts of at most 1,000, one after the other, and ends with the first part that fails.

    Attributes:
        results: what would have been returned for the first entities: those that Redis has answered for.
        accepted: ids of the operations that were accepted: they will be processed.
        unknown: ids of those that may have been accepted: their part was sent, and the answer did not come.
        refused: ids of those that were not accepted.
        operation_ids: those to enqueue again: `unknown` and `refused`, in the order of their entities.
        ambiguous: whether the part that failed may have been carried out.
    """

    results: Sequence[dict[str, Any]] = ()
    accepted: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    operation_ids: tuple[str, ...] = ()
    ambiguous: bool = False


class ConfigurationError(QueueError, ValueError):
    """A setting, name or argument is out of its range. Nothing was sent to Redis."""


class InvalidOperationError(QueueError, ValueError):
    """An operation cannot be enqueued as it is. Nothing was enqueued.

    `index` says which entity of a batch it is about, from 0; None when it is about the whole call.
    """

    index: int | None = None


class SerializationError(InvalidOperationError):
    """A part of the entity has no JSON form; `path` says where it is, e.g. ``entity['items'][3]``."""

    def __init__(self, message: str, path: str = "entity") -> None:
        super().__init__(message)
        self.path = path


class EntityTooLargeError(InvalidOperationError):
    """The encoded operation is larger, or nested deeper, than the configured limit."""


class UnresolvableFunctionError(InvalidOperationError):
    """No worker could find this function by name: a lambda, a local function, or not a function."""


class ImportRefusedError(QueueError):
    """The import policy does not allow this name. Nothing was imported."""


class DecodeError(QueueError):
    """The bytes in Redis are not an operation; `raw` keeps them."""

    def __init__(self, message: str, raw: bytes) -> None:
        super().__init__(message)
        self.raw = raw


class BadSignatureError(DecodeError):
    """A body was not signed, or not by one of our keys, or for another id or queue. It was not decoded."""


class BrokerUnavailableError(EnqueueOutcome, QueueError, ConnectionError):
    """Redis cannot serve now: unreachable, loading, read-only or out of memory. Worth trying again.

    `kind` is one word for metrics and logs: ``connection``, ``timeout``, ``loading``, ``readonly``, ``masterdown``,
    ``unblocked``, ``moved``, ``ask``, ``tryagain``, ``clusterdown``, ``oom``, ``misconf``, ``noreplicas``, ``busy``,
    ``auth``, ``protocol`` (what answers is not Redis) or ``circuit_open``. `ambiguous` is true when the command may
    have been carried out. When it was an enqueue, `operation_ids` are those to enqueue again, which under the same id
    accepts no second operation while the first is live, failed, or within `done_ttl` of its end. See `EnqueueOutcome`
    for what is known of each.
    """

    def __init__(self, message: str, *, kind: str = "connection", ambiguous: bool = False) -> None:
        super().__init__(message)
        self.kind = kind
        self.ambiguous = ambiguous


class CircuitOpenError(BrokerUnavailableError):
    """The circuit breaker is open: the call was not tried. `retry_after` is in seconds."""

    def __init__(self, message: str, *, retry_after: float = 0.0) -> None:
        super().__init__(message, kind="circuit_open")
        self.retry_after = retry_after


class ClosedError(EnqueueOutcome, QueueError):
    """The manager was closed, or its event loop ended, before this call was answered.

    `ambiguous` is true when the command may have been carried out. See `EnqueueOutcome` for what is known of each.
    """

    def __init__(self, message: str, *, ambiguous: bool = False) -> None:
        super().__init__(message)
        self.ambiguous = ambiguous


class NotDurableError(QueueError):
    """``durability="wait"``: accepted by the primary, but too few replicas have said in time that they have it.

    The operations will be processed, unless the primary is lost before a replica has them. Enqueuing again under the
    same `operation_id` asks again: it accepts no second operation while the first is live, failed, or within `done_ttl`
    of its end.

    Attributes:
        operation_ids: of all operations of the call.
        results: what the call would have returned, in their order.
        confirmed: how many replicas have all of them.
        replicas: how many were asked for.
    """

    def __init__(self, message: str, *, results: Sequence[dict[str, Any]], confirmed: int, replicas: int) -> None:
        super().__init__(message)
        self.results = list(results)
        self.operation_ids = tuple(str(result["operation_id"]) for result in results)
        self.confirmed = confirmed
        self.replicas = replicas


class UnsupportedServerError(QueueError):
    """The server is too old or lacks a command that the queue needs."""


class BrokerReplyError(EnqueueOutcome, QueueError):
    """A script was refused by the server, or answered in a way that this version does not know."""


class ThreadPoolExhaustedError(QueueError):
    """No thread of the pool became free within the limit (100 ms by default)."""


class UnrunResultError(QueueError, TypeError):
    """A processor returned what has not run, such as a generator: its attempt failed, for nothing was done."""


class WorkerStateError(QueueError, RuntimeError):
    """A worker was started twice, or used after it had stopped."""
