"""What to ask of Redis and how to read its answer, without any I/O.

Each method builds a `Call`; `sync.SyncBroker` and `aio.AsyncBroker` carry it out. The scripts' headers (in ``lua/``)
list their keys, arguments and replies; this module is the only one that knows them.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeVar

from queue_system.errors import BrokerReplyError
from queue_system.keys import Keys, dedup_digest

T = TypeVar("T")

MAX_ENQUEUE: Final = 1000  # operations a call: Lua's unpack is safe up to there, and 1,000 take about 15 ms of Redis
MAX_CLAIM: Final = 400
MAX_COMPLETE: Final = 300
MAX_RENEW: Final = 500
REAP_LIMIT: Final = 100

_OPERATION_VALUES = 9
_FAILURE_VALUES = 8


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One request: a script's name with keys and arguments, or (no keys) a plain command.

    `idempotent`: may be sent again when its reply was lost. A claim must not: its lease expires instead.
    `parse_again`: reads the reply of a call that was sent again, where that means something else.
    """

    name: str
    keys: tuple[str, ...]
    args: Sequence[Any]
    parse: Callable[[Any], T]
    idempotent: bool = True
    plain: bool = False
    parse_again: Callable[[Any], T] | None = None


class Accepted(enum.Enum):
    """What the enqueue script said of one operation."""

    QUEUED = "queued"
    SCHEDULED = "scheduled"
    DUPLICATE_ID = "duplicate_id"
    DUPLICATE_KEY = "duplicate_key"


@dataclass(frozen=True, slots=True)
class NewOperation:
    """An encoded operation on its way in. `delay` and `dedup_window` are in seconds."""

    operation_id: str
    body: bytes
    delay: float = 0.0
    deduplication_key: str | None = None
    dedup_window: float = 0.0


@dataclass(slots=True)
class Delivery:
    """One claim of one operation: what the worker holds while its lease lasts. Times in seconds, clock of Redis."""

    operation_id: str
    ready_key: str
    token: int
    attempts: int
    crashes: int
    exhaustions: int
    first_attempt_time: float
    ready_at: float
    claimed_at: float
    body: bytes


@dataclass(frozen=True, slots=True)
class ReadyQueue:
    """One list of ready operations and the kind of its processors: ``a`` async, ``s`` sync, ``m`` mixed."""

    queue: str
    priority: str
    kind: str
    key: str


@dataclass(frozen=True, slots=True)
class Claimed:
    """A claim's reply. `next_due` is in seconds from now, None when nothing is delayed."""

    now: float
    deliveries: list[Delivery]
    next_due: float | None
    more_async: bool
    more_sync: bool
    registry_version: str
    registry: list[ReadyQueue] | None


@dataclass(frozen=True, slots=True)
class Reaped:
    """A reaping's reply: how many went back, whether an outage's grace runs, and whom to quarantine."""

    returned: int
    in_grace: bool
    quarantined: list[Delivery]


@dataclass(frozen=True, slots=True)
class FailureRow:
    """One entry of the failures or system errors as Redis keeps it."""

    operation_id: str
    queue: str
    state: str
    body: bytes
    attempts: int
    error: bytes
    history: list[bytes]
    failed_at: float


@dataclass(frozen=True, slots=True)
class Status:
    """All counts in one instant. `workers` are (id, threads, share of them busy)."""

    now: float
    queues: dict[str, int]
    delayed: int
    leased: int
    failures: int
    system_errors: int
    metrics: dict[str, str]
    workers: list[tuple[str, int, float]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Callback:
    """A callback to enqueue with its parent's outcome."""

    operation_id: str
    queue: str
    priority: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Completion:
    """One operation that ended well."""

    operation_id: str
    token: int
    kind: str  # "o" or "c"
    callback: Callback | None = None


class Commands:
    """Builds the calls for one prefix. All times in seconds."""

    def __init__(self, keys: Keys) -> None:
        self.keys = keys

    def enqueue(
        self, queue: str, priority: str, kind: str, operations: Iterable[NewOperation]
    ) -> Call[list[tuple[Accepted, str]]]:
        """Accept at most `MAX_ENQUEUE` operations; for each what became of it, and the holder of a duplicate."""
        keys = self.keys
        args: list[Any] = [keys.prefix, f"{priority}:{queue}", kind]
        ids: list[str] = []
        for new in operations:
            ids.append(new.operation_id)
            digest = "" if new.deduplication_key is None else dedup_digest(new.deduplication_key)
            args += (_to_id(new.operation_id), _ms(new.delay), digest, _ms(new.dedup_window), new.body)
        return Call(
            "enqueue",
            (keys.registry, keys.registry_version, keys.delayed, keys.metrics, keys.wake, keys.wake_sync),
            args,
            lambda reply: [_accepted(code, own) for code, own in zip(reply, ids, strict=True)],
            # The first sending may have been carried out: an id that exists then is our own.
            parse_again=lambda reply: [
                (Accepted.QUEUED, own) if code in {b"i", "i"} else _accepted(code, own)
                for code, own in zip(reply, ids, strict=True)
            ],
        )

    def claim(
        self,
        queues: Sequence[ReadyQueue],
        *,
        async_slots: int,
        sync_slots: int,
        lease: float,
        registry_version: str,
        retention: float,
    ) -> Call[Claimed]:
        """Lease at most so many operations of the given queues, which are in the order of dispatch."""
        keys = self.keys
        ready = tuple(queue.key for queue in queues)
        return Call(
            "claim",
            (
                keys.leases,
                keys.delayed,
                keys.metrics,
                keys.wake,
                keys.wake_sync,
                keys.system_errors,
                keys.registry,
                keys.registry_version,
                *ready,
            ),
            [
                keys.prefix,
                min(async_slots, MAX_CLAIM),
                min(sync_slots, MAX_CLAIM),
                _ms(lease),
                registry_version,
                "".join(queue.kind for queue in queues),
                _ms(retention),
            ],
            lambda reply: self._claimed(reply, ready),
            idempotent=False,
        )

    def renew(self, held: Sequence[tuple[str, int]], lease: float) -> Call[list[str]]:
        """Prolong leases, at most `MAX_RENEW`; the reply names those that are lost."""
        args: list[Any] = [self.keys.prefix, _ms(lease)]
        for operation_id, token in held:
            args += (_to_id(operation_id), token)
        return Call("renew", (self.keys.leases,), args, lambda reply: [_from_id(raw) for raw in reply])

    def complete(self, completions: Sequence[Completion], *, done_ttl: float, again: bool) -> Call[list[bool]]:
        """End at most `MAX_COMPLETE` operations well; false for each whose token is stale."""
        keys = self.keys
        args: list[Any] = [keys.prefix, _ms(done_ttl), int(again)]
        for done in completions:
            args += (_to_id(done.operation_id), done.token, done.kind, *_callback_args(done.callback))
        return Call(
            "complete",
            (keys.leases, keys.metrics, keys.registry, keys.registry_version, keys.wake),
            args,
            lambda reply: [bool(code) for code in reply],
        )

    def retry(
        self,
        operation_id: str,
        token: int,
        *,
        delay: float,
        exhausted: bool,
        counters: Sequence[str],
        record: bytes,
        again: bool,
    ) -> Call[bool]:
        """End an attempt and schedule the next; false when the token is stale."""
        keys = self.keys
        return Call(
            "retry",
            (keys.leases, keys.delayed, keys.metrics),
            [
                keys.prefix,
                _to_id(operation_id),
                token,
                _ms(delay),
                int(exhausted),
                ",".join(counters),
                record,
                int(again),
            ],
            bool,
        )

    def fail(
        self,
        operation_id: str,
        token: int,
        *,
        system_error: bool,
        attempted: bool,
        counters: Sequence[str],
        error: bytes,
        record: bytes,
        retention: float,
        callback: Callback | None,
        again: bool,
    ) -> Call[bool]:
        """Give an operation up; false when the token is stale."""
        keys = self.keys
        return Call(
            "fail",
            (
                keys.leases,
                keys.system_errors if system_error else keys.failures,
                keys.metrics,
                keys.registry,
                keys.registry_version,
                keys.wake,
            ),
            [
                keys.prefix,
                _to_id(operation_id),
                token,
                "system_error" if system_error else "failed",
                int(attempted),
                ",".join(counters),
                error,
                record,
                _ms(retention),
                *_callback_args(callback),
                int(again),
            ],
            bool,
        )

    def release(self, operation_id: str, token: int, *, delay: float = 0.0) -> Call[bool]:
        """Give an operation back without burning an attempt; false when the token is stale."""
        keys = self.keys
        return Call(
            "release",
            (keys.leases, keys.delayed, keys.registry),
            [keys.prefix, _to_id(operation_id), token, _ms(delay)],
            bool,
        )

    def reap(self, *, max_crashes: int, interval: float, lease: float, retention: float) -> Call[Reaped]:
        """Take back at most `REAP_LIMIT` expired leases."""
        keys = self.keys
        return Call(
            "reap",
            (
                keys.leases,
                keys.metrics,
                keys.reaper,
                keys.registry,
                keys.failures,
                keys.system_errors,
                keys.workers,
            ),
            [keys.prefix, max_crashes, _ms(interval), _ms(lease), _ms(retention), REAP_LIMIT],
            lambda reply: Reaped(int(reply[0]), bool(reply[1]), _deliveries(reply[2], (), 0.0)),
            idempotent=False,
        )

    def requeue_failure(self, operation_id: str) -> Call[bool]:
        """Put a failure back into its queue; false when there is none of that id."""
        keys = self.keys
        return Call(
            "requeue_failure",
            (keys.failures, keys.metrics, keys.registry),
            [keys.prefix, _to_id(operation_id)],
            bool,
        )

    def purge_ready(self, queue: str, priority: str) -> Call[int]:
        """Discard up to 500 ready operations; the reply says how many ids were taken out."""
        keys = self.keys
        return Call("purge", (keys.ready(queue, priority), keys.metrics), [keys.prefix], int)

    def purge_delayed(self, queue: str, priority: str, cursor: int) -> Call[tuple[int, int]]:
        """One step over the delayed operations: (next cursor, 0 at the end; how many were discarded)."""
        keys = self.keys
        return Call(
            "purge_delayed",
            (keys.delayed, keys.metrics),
            [keys.prefix, f"{priority}:{queue}", cursor],
            lambda reply: (int(reply[0]), int(reply[1])),
        )

    def purge_failures(self, ids: Sequence[str] = (), *, system_errors: bool = False) -> Call[int]:
        """Delete the given entries, or the oldest 500; the reply says how many were deleted."""
        key = self.keys.system_errors if system_errors else self.keys.failures
        return Call("purge_failures", (key,), [self.keys.prefix, *map(_to_id, ids)], int)

    def failures(
        self, *, offset: int = 0, limit: int = 50, operation_id: str | None = None, system_errors: bool = False
    ) -> Call[list[FailureRow]]:
        """A page of entries, newest first, or the one of an operation."""
        key = self.keys.system_errors if system_errors else self.keys.failures
        args: list[Any] = [self.keys.prefix, offset, limit]
        if operation_id is not None:
            args.append(_to_id(operation_id))
        return Call("failures", (key,), args, _failure_rows)

    def status(self, *, alive_within: float = 30.0) -> Call[Status]:
        """All counts in one instant."""
        keys = self.keys
        return Call(
            "status",
            (
                keys.registry,
                keys.delayed,
                keys.leases,
                keys.failures,
                keys.system_errors,
                keys.metrics,
                keys.workers,
            ),
            [keys.prefix, _ms(alive_within)],
            _status,
        )

    def heartbeat(self, worker: str, *, expiry: float, fields: dict[str, str]) -> Call[float]:
        """A worker says that it lives for `expiry` seconds more (0: it leaves); the reply is Redis's clock."""
        args: list[Any] = [self.keys.prefix, worker, _ms(expiry)]
        for name, value in fields.items():
            args += (name, value)
        return Call("heartbeat", (self.keys.workers,), args, lambda reply: int(reply) / 1000)

    def add_to_metric(self, name: str, value: float) -> Call[float]:
        """Increase a field of the metrics hash."""
        command = "HINCRBY" if isinstance(value, int) else "HINCRBYFLOAT"
        return Call(command, (), [self.keys.metrics, name, value], float, idempotent=False, plain=True)

    def set_metric(self, name: str, value: str) -> Call[None]:
        """Set a field of the metrics hash."""
        return Call("HSET", (), [self.keys.metrics, name, value], lambda _: None, plain=True)

    def wait(self, *, for_sync: bool, for_async: bool, timeout: float) -> Call[str | None]:
        """Block until there may be work for a free slot, at most `timeout` seconds; needs a connection of its own.

        The reply is the side that the marker was for, ``async`` or ``sync``, or None when the time was over.
        """
        sides = ((self.keys.wake, for_async), (self.keys.wake_sync, for_sync))
        markers = [key for key, wanted in sides if wanted]
        sync_key = self.keys.wake_sync

        def side(reply: Any) -> str | None:
            if reply is None:
                return None
            return "sync" if _text(reply[0]) == sync_key else "async"

        args = [*markers, f"{max(timeout, 0.001):.3f}"]
        return Call("BZPOPMIN", (), args, side, idempotent=False, plain=True)

    def wake(self, *, sync: bool) -> Call[None]:
        """Put a marker back that this worker took but cannot use."""
        return Call("ZADD", (), [self.keys.wake_sync if sync else self.keys.wake, 0, "0"], lambda _: None, plain=True)

    def _claimed(self, reply: Any, ready: tuple[str, ...]) -> Claimed:
        now_ms, due, more_async, more_sync, version, registry, operations = reply
        now = int(now_ms) / 1000
        return Claimed(
            now=now,
            deliveries=_deliveries(operations, ready, now),
            next_due=None if int(due) < 0 else int(due) / 1000,
            more_async=bool(more_async),
            more_sync=bool(more_sync),
            registry_version=_text(version),
            registry=self._registry(registry) if registry else None,
        )

    def _registry(self, flat: Any) -> list[ReadyQueue]:
        pairs = flat.items() if isinstance(flat, dict) else zip(flat[::2], flat[1::2], strict=True)
        queues = []
        for raw_name, kind in pairs:
            priority, _, queue = _text(raw_name).partition(":")
            queues.append(ReadyQueue(queue, priority, _text(kind), self.keys.ready(queue, priority)))
        return queues


def _deliveries(flat: Any, ready: tuple[str, ...], now: float) -> list[Delivery]:
    deliveries = []
    for i in range(0, len(flat), _OPERATION_VALUES):
        raw_id, index, token, attempts, crashes, exhaustions, first, due, body = flat[i : i + _OPERATION_VALUES]
        deliveries.append(
            Delivery(
                _from_id(raw_id),
                ready[index - 1] if index else "",
                int(token),
                int(attempts),
                int(crashes),
                int(exhaustions),
                int(first) / 1000,
                int(due) / 1000,
                now,
                body if isinstance(body, bytes) else body.encode(),
            )
        )
    return deliveries


def _accepted(code: bytes | str, own_id: str) -> tuple[Accepted, str]:
    text = _text(code)
    if text == "q":
        return Accepted.QUEUED, own_id
    if text == "s":
        return Accepted.SCHEDULED, own_id
    if text == "i":
        return Accepted.DUPLICATE_ID, own_id
    if text.startswith("d"):
        return Accepted.DUPLICATE_KEY, text[1:]
    raise BrokerReplyError(f"the enqueue script answered {text!r}, which this version does not know")


def _failure_rows(flat: Any) -> list[FailureRow]:
    rows = []
    for i in range(0, len(flat), _FAILURE_VALUES):
        raw_id, queue, state, body, attempts, error, history, failed_at = flat[i : i + _FAILURE_VALUES]
        rows.append(
            FailureRow(
                _from_id(raw_id),
                _text(queue),
                _text(state),
                _bytes(body),
                int(attempts or 0),
                _bytes(error),
                _bytes(history).split(b"\n") if history else [],
                int(failed_at or 0) / 1000,
            )
        )
    return rows


def _status(reply: Any) -> Status:
    now, queues, delayed, leased, failures, system_errors, metrics, workers = reply
    metric_pairs = metrics.items() if isinstance(metrics, dict) else zip(metrics[::2], metrics[1::2], strict=True)
    return Status(
        now=int(now) / 1000,
        queues={_text(name): int(length) for name, length in zip(queues[::2], queues[1::2], strict=True)},
        delayed=int(delayed),
        leased=int(leased),
        failures=int(failures),
        system_errors=int(system_errors),
        metrics={_text(name): _text(value) for name, value in metric_pairs},
        workers=[
            (_text(worker), int(threads), float(busy))
            for worker, threads, busy in zip(workers[::3], workers[1::3], workers[2::3], strict=True)
        ],
    )


def _callback_args(callback: Callback | None) -> tuple[Any, ...]:
    if callback is None:
        return ("", "", "")
    return (callback.operation_id, f"{callback.priority}:{callback.queue}", callback.body)


def _ms(seconds: float) -> int:
    return max(0, round(seconds * 1000))


def _text(value: bytes | str) -> str:
    return value if isinstance(value, str) else value.decode("utf-8", "replace")


def _bytes(value: bytes | str) -> bytes:
    return value if isinstance(value, bytes) else value.encode()


def _from_id(raw: bytes | str) -> str:
    # Ids written by hand may be any bytes: they must survive the way there and back.
    return raw if isinstance(raw, str) else raw.decode("utf-8", "surrogateescape")


def _to_id(operation_id: str) -> bytes:
    return operation_id.encode("utf-8", "surrogateescape")
