"""What happens, as data: frozen events, and what may be asked of a worker and its queue. Times are in seconds."""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from typing import Final, Protocol

import msgspec

TOLD_TO_STOP: Final = "stop"
THREADS_ABANDONED: Final = "threads_abandoned"
TASKS_ABANDONED: Final = "tasks_abandoned"
MAX_OPERATIONS: Final = "max_operations"
MAX_MEMORY: Final = "max_memory"
STOP_REASONS: Final = (TOLD_TO_STOP, THREADS_ABANDONED, TASKS_ABANDONED, MAX_OPERATIONS, MAX_MEMORY)
"""Why a worker drains: it was told to, too many of its threads or tasks never return, or it has reached a limit."""


class Event(msgspec.Struct, frozen=True, gc=False):
    """Something that happened. Times are in seconds."""

    # Neither these nor what else an operation is made of can be part of a cycle. Left out (`gc=False`), they are not
    # counted either: with each batch of sync operations the garbage collector would start, and find nothing.


class OperationInfo(msgspec.Struct, frozen=True, gc=False):
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
    """An enqueue call raised; nothing is known to be enqueued but what `Enqueued` has told just before."""

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


class ThreadAbandoned(Event, frozen=True):
    """A thread of a pool is still busy, `seconds` after it began, with an operation beyond its limit; told once.

    `stack` is where it stands, as text of several lines: files, lines and functions, no values.
    """

    operation: OperationInfo | None  # None for a job that is no operation
    thread: str
    seconds: float
    stack: str


class TaskAbandoned(Event, frozen=True):
    """An async processor has not heeded its cancellation, and is still busy `seconds` after it was called; told once.

    `reason` is why it was cancelled: timed_out or lease_lost. `stack` as in `ThreadAbandoned`.
    """

    operation: OperationInfo
    task: str
    seconds: float
    reason: str
    stack: str


class LeaseLost(Event, frozen=True):
    """Another worker may run this operation now: its result here will not count."""

    operation_id: str


class Reclaimed(Event, frozen=True):
    """Expired leases were taken back from workers that are gone."""

    returned: int
    quarantined: int


class ClockCorrected(Event, frozen=True):
    """So many times that were kept (leases, due times and others) were later than can be true, and were put right.

    The clock of Redis was ahead when they were written, and has been set right since.
    """

    times: int


class WorkerTaskFailed(Event, frozen=True):
    """A loop of the worker raised and was started again; or a step of it ended an attempt; or an import hangs."""

    task: str
    reason: str


class BrokerError(Event, frozen=True):
    """A call to Redis failed. `reason` is what Redis said, where it refused a call (kind ``refused``)."""

    operation: str
    kind: str
    reason: str = ""


class BrokerBack(Event, frozen=True):
    """Redis answers a worker again, after `seconds` in which it did not; told once for each outage."""

    seconds: float


class BrokerCall(Event, frozen=True):
    """A round trip to Redis was answered."""

    operation: str
    duration: float


class BreakerChanged(Event, frozen=True):
    """A circuit breaker went to another state: closed, open or half_open."""

    breaker: str
    state: str


class WorkerChanged(Event, frozen=True):
    """A worker is starting, running, draining or stopped.

    `reason` says why it drains or has stopped: one of `STOP_REASONS`.
    """

    worker_id: str
    state: str
    reason: str = ""


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
    tasks_abandoned: int = 0  # those whose processor has not heeded its cancellation; busy as well


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
