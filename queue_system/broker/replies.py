"""Reads the scripts' replies. Without I/O; redis-py gives them as bytes, numbers and nested lists."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from queue_system.broker.messages import (
    Accepted,
    Claimed,
    Delivery,
    DepthReply,
    DepthRow,
    FailureRow,
    ReadyQueue,
    Status,
    Whereabouts,
    WorkerRow,
)
from queue_system.errors import BrokerReplyError

_OPERATION_VALUES = 12
_FAILURE_VALUES = 8
_DEPTH_VALUES = 6
_WORKER_VALUES = 7


def claimed(reply: Any, ready: tuple[str, ...], ready_key: Callable[[str, str], str]) -> Claimed:
    """The reply of claim; `ready` are the lists it was asked for, `ready_key` names the list of a queue."""
    now_ms, due, more_async, more_sync, version, registry, operations = reply
    now = int(now_ms) / 1000
    return Claimed(
        now=now,
        deliveries=deliveries(operations, ready, now),
        next_due=None if int(due) < 0 else int(due) / 1000,
        more_async=bool(more_async),
        more_sync=bool(more_sync),
        registry_version=text(version),
        registry=_registry(registry, ready_key) if registry else None,
    )


def _registry(flat: Any, ready_key: Callable[[str, str], str]) -> list[ReadyQueue]:
    queues = []
    for name, kind in _texts(flat).items():
        priority, _, queue = name.partition(":")
        queues.append(ReadyQueue(queue, priority, kind, ready_key(queue, priority)))
    return queues


def deliveries(flat: Any, ready: tuple[str, ...], now: float) -> list[Delivery]:
    """Claimed operations; `now` is the time of the claim in seconds."""
    return [
        _delivery(flat[start : start + _OPERATION_VALUES], ready, now)
        for start in range(0, len(flat), _OPERATION_VALUES)
    ]


def _delivery(values: Sequence[Any], ready: tuple[str, ...], now: float) -> Delivery:
    raw_id, index, token, count, attempts, crashes, exhaustions, first, due, accepted_at, trace, body = values
    return Delivery(
        from_id(raw_id),
        ready[index - 1] if index else "",
        int(token),
        int(count),
        int(attempts),
        int(crashes),
        int(exhaustions),
        int(first) / 1000,
        int(due) / 1000,
        int(accepted_at) / 1000,
        now,
        text(trace),
        as_bytes(body),
    )


def accepted(code: bytes | str, own_id: str) -> tuple[Accepted, str]:
    """What became of one new operation, and the holder of a duplicate."""
    answer = text(code)
    if answer == "q":
        return Accepted.QUEUED, own_id
    if answer == "s":
        return Accepted.SCHEDULED, own_id
    if answer == "i":
        return Accepted.DUPLICATE_ID, own_id
    if answer.startswith("d"):
        return Accepted.DUPLICATE_KEY, answer[1:]
    raise BrokerReplyError(f"the enqueue script answered {answer!r}, which this version does not know")


def failure_rows(flat: Any) -> list[FailureRow]:
    """Entries of the failures or system errors."""
    rows = []
    for i in range(0, len(flat), _FAILURE_VALUES):
        raw_id, queue, state, body, attempts, error, history, failed_at = flat[i : i + _FAILURE_VALUES]
        rows.append(
            FailureRow(
                from_id(raw_id),
                text(queue),
                text(state),
                as_bytes(body),
                int(attempts or 0),
                as_bytes(error),
                as_bytes(history).split(b"\n") if history else [],
                int(failed_at or 0) / 1000,
            )
        )
    return rows


def status(reply: Any) -> Status:
    """The reply of status."""
    now, queues, delayed, leased, failures, system_errors, metrics, workers = reply
    return Status(
        now=int(now) / 1000,
        queues={text(name): int(length) for name, length in zip(queues[::2], queues[1::2], strict=True)},
        delayed=int(delayed),
        leased=int(leased),
        failures=int(failures),
        system_errors=int(system_errors),
        metrics=_texts(metrics),
        workers=[
            (text(worker), int(threads), float(busy))
            for worker, threads, busy in zip(workers[::3], workers[1::3], workers[2::3], strict=True)
        ],
    )


def depth(reply: Any) -> DepthReply:
    """The reply of depth."""
    rows, delayed, leased, failures, system_errors, metrics = reply
    queues = []
    for start in range(0, len(rows), _DEPTH_VALUES):
        name, ready, delayed_there, leased_there, failed, age = rows[start : start + _DEPTH_VALUES]
        priority, _, queue = text(name).partition(":")
        counts = int(ready), int(delayed_there), int(leased_there), int(failed)
        queues.append(DepthRow(queue, priority, *counts, oldest_age=int(age) / 1000))
    return DepthReply(queues, int(delayed), int(leased), int(failures), int(system_errors), _texts(metrics))


def whereabouts(reply: Any) -> Whereabouts:
    """The reply of explain."""
    now, key_type, fields, kind, position, length, due, lease_until, seen, higher, workers = reply
    return Whereabouts(
        now=int(now) / 1000,
        key_type=text(key_type),
        fields={text(name): as_bytes(value) for name, value in zip(fields[::2], fields[1::2], strict=True)},
        kind=text(kind),
        position=None if int(position) < 0 else int(position),
        length=int(length),
        due=_time(due),
        lease_until=_time(lease_until),
        worker_seen=_time(seen),
        higher=[
            (text(queue), text(its_kind), int(waiting))
            for queue, its_kind, waiting in zip(higher[::3], higher[1::3], higher[2::3], strict=True)
        ],
        workers=[
            _worker(list(map(text, workers[start : start + _WORKER_VALUES])))
            for start in range(0, len(workers), _WORKER_VALUES)
        ],
    )


def _time(milliseconds: Any) -> float | None:
    value = float(milliseconds)
    return None if value < 0 else value / 1000


def _worker(values: Sequence[str]) -> WorkerRow:
    worker_id, *counts, queues, claims = values
    threads, active, tasks, busy = (int(count or 0) for count in counts)
    return WorkerRow(
        worker_id, threads, active, tasks, busy, frozenset(queues.split(",")) if queues else None, claims != "0"
    )


def _texts(flat: Any) -> dict[str, str]:
    pairs = flat.items() if isinstance(flat, dict) else zip(flat[::2], flat[1::2], strict=True)
    return {text(name): text(value) for name, value in pairs}


def text(value: bytes | str) -> str:
    """A text; bytes that are none are replaced."""
    return value if isinstance(value, str) else value.decode("utf-8", "replace")


def as_bytes(value: bytes | str) -> bytes:
    """The bytes as they are in Redis."""
    return value if isinstance(value, bytes) else value.encode()


def from_id(raw: bytes | str) -> str:
    """An operation id. `to_id` is the inverse."""
    # Ids written by hand may be any bytes: they must survive the way there and back.
    return raw if isinstance(raw, str) else raw.decode("utf-8", "surrogateescape")


def to_id(operation_id: str) -> bytes:
    """An operation id for Redis."""
    return operation_id.encode("utf-8", "surrogateescape")
