"""Reads the scripts' replies. Without I/O; redis-py gives them as bytes, numbers and nested lists."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from queue_system.broker.messages import (
    KIND_ASYNC,
    KIND_MIXED,
    KIND_SYNC,
    KIND_UNKNOWN,
    Accepted,
    AuditCounts,
    Claimed,
    Delivery,
    DepthReply,
    DepthRow,
    FailureRow,
    Holder,
    KeyFacts,
    ListPage,
    MembersStep,
    OperationFacts,
    ReadyQueue,
    Status,
    Whereabouts,
    WorkerRow,
)
from queue_system.errors import BrokerReplyError
from queue_system.keys import is_queue

# Anybody who can write to Redis may have written a hash's numbers. What is beyond this one (in milliseconds the year
# 9892), or no number at all, must not make a whole reply unreadable.
_MOST: Final = 250_000_000_000_000
_KINDS: Final = frozenset({KIND_ASYNC, KIND_SYNC, KIND_MIXED, KIND_UNKNOWN})
_BETWEEN: Final = "\x1f"  # the parts of what a duplicate is told
_OPERATION_VALUES = 12
_FAILURE_VALUES = 8
_DEPTH_VALUES = 6
_WORKER_VALUES = 7
_OPERATION_FACTS = 14
_KEY_FACTS = 5


def claimed(prefix: str, reply: Any) -> Claimed:
    """The reply of claim."""
    now_ms, due, more_async, more_sync, sources, operations, suspect = reply
    now = int(now_ms) / 1000
    ready = [prefix + text(queue) for queue in sources[::2]]
    kinds = (text(kind) for kind in sources[1::2])
    return Claimed(
        now=now,
        deliveries=deliveries(operations, ready, now),
        next_due=None if int(due) < 0 else int(due) / 1000,
        more_async=bool(more_async),
        more_sync=bool(more_sync),
        kinds={key: kind if kind in _KINDS else KIND_UNKNOWN for key, kind in zip(ready, kinds, strict=True)},
        alone_for=max(0, int(suspect)) / 1000,
        suspect_waits=int(suspect) < 0,
    )


def ready_queues(flat: Any, ready_key: Callable[[str, str], str]) -> list[ReadyQueue]:
    """The registry of queues: names and kinds by turns."""
    queues = []
    for name, kind in _texts(flat).items():
        if is_queue(name):
            priority, _, queue = name.partition(":")
            known = kind if kind in _KINDS else KIND_UNKNOWN
            queues.append(ReadyQueue(queue, priority, known, ready_key(queue, priority)))
    return queues


def deliveries(flat: Any, ready: Sequence[str], now: float) -> list[Delivery]:
    """Claimed operations; `ready` are the lists that they number, `now` is the time of the claim in seconds."""
    now_ms = round(now * 1000)
    each = iter(flat)
    return [
        Delivery(
            from_id(raw_id),
            ready[index - 1] if index else "",
            int(token),
            # Most often 1, 0 or empty, or the same as another one: not worth a call.
            1 if count == b"1" else whole(count),
            whole(attempts) if attempts else 0,
            whole(crashes) if crashes else 0,
            whole(exhaustions) if exhaustions else 0,
            whole(first) / 1000 if first else 0.0,
            due_at := whole(due, now_ms) / 1000,
            due_at if accepted_at == due else whole(accepted_at, now_ms) / 1000,
            now,
            text(trace) if trace else "",
            as_bytes(body),
        )
        for raw_id, index, token, count, attempts, crashes, exhaustions, first, due, accepted_at, trace, body in zip(
            *[each] * _OPERATION_VALUES, strict=True
        )
    ]


def accepted(code: bytes | str, own_id: str) -> tuple[Accepted, str]:
    """What became of one new operation, and the `Holder` of a duplicate."""
    answer = text(code)
    if answer == "q":
        return Accepted.QUEUED, own_id
    if answer == "s":
        return Accepted.SCHEDULED, own_id
    if answer.startswith("i"):
        return Accepted.DUPLICATE_ID, _holder(own_id + answer[1:])
    if answer.startswith("d"):
        return Accepted.DUPLICATE_KEY, _holder(answer[1:])
    error = BrokerReplyError(f"the enqueue script answered {answer!r}, which this version does not know")
    error.ambiguous = True
    raise error


def _holder(entry: str) -> Holder:
    operation_id, name, processor = (*entry.split(_BETWEEN), "", "")[:3]
    return Holder(operation_id, name if is_queue(name) else "", processor)


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
                whole(attempts),
                as_bytes(error),
                as_bytes(history).split(b"\n") if history else [],
                whole(failed_at) / 1000,
            )
        )
    return rows


def status(reply: Any) -> Status:
    """The reply of status."""
    now, queues, delayed, leased, failures, system_errors, metrics, workers = reply
    return Status(
        now=int(now) / 1000,
        queues={name: length for name, length in _lengths(queues) if is_queue(name)},
        delayed=int(delayed),
        leased=int(leased),
        failures=int(failures),
        system_errors=int(system_errors),
        metrics=_texts(metrics),
        workers=[
            (text(worker), whole(threads), _share(busy))
            for worker, threads, busy in zip(workers[::3], workers[1::3], workers[2::3], strict=True)
        ],
    )


def _lengths(flat: Any) -> Iterator[tuple[str, int]]:
    return ((text(name), int(length)) for name, length in zip(flat[::2], flat[1::2], strict=True))


def depth(reply: Any) -> DepthReply:
    """The reply of depth."""
    rows, delayed, leased, failures, system_errors, metrics = reply
    queues = []
    for start in range(0, len(rows), _DEPTH_VALUES):
        name, ready, delayed_there, leased_there, failed, age = rows[start : start + _DEPTH_VALUES]
        priority, _, queue = text(name).partition(":")
        counts = int(ready), int(delayed_there), int(leased_there), int(failed)
        if is_queue(text(name)):
            queues.append(DepthRow(queue, priority, *counts, oldest_age=whole(age) / 1000))
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


def audit_counts(reply: Any) -> AuditCounts:
    """The reply of audit_counts."""
    now, queues, delayed, leased, failures, system_errors, metrics, depths, token, left_behind, wrong = reply
    return AuditCounts(
        now=int(now) / 1000,
        queues=dict(_lengths(queues)),
        delayed=int(delayed),
        leased=int(leased),
        failures=int(failures),
        system_errors=int(system_errors),
        metrics=_texts(metrics),
        depths=_texts(depths),
        token=text(token),
        left_behind=int(left_behind),
        index=_texts(wrong),
    )


def list_page(reply: Any) -> ListPage:
    """The reply of audit_list."""
    ids, strays = [from_id(raw) for raw in reply[1]], reply[2]
    return ListPage(
        int(reply[0]),
        ids,
        [
            (ids[int(position) - 1], text(state), text(queue))
            for position, state, queue in zip(strays[::3], strays[1::3], strays[2::3], strict=True)
        ],
    )


def members_step(reply: Any) -> MembersStep:
    """The reply of audit_members."""
    cursor, seen, strays, tally = reply
    by_queue = {text(queue): int(count) for queue, count in zip(tally[::2], tally[1::2], strict=True)}
    return MembersStep(int(cursor), int(seen), [from_id(raw) for raw in strays], by_queue)


def operation_facts(reply: Any, ids: Sequence[str]) -> list[OperationFacts]:
    """The reply of audit_operations for these ids."""
    now, token = int(reply[0]), text(reply[1])
    values: list[Any] = [text(each) if isinstance(each, bytes) else each for each in reply[2]]
    starts = range(0, len(values), _OPERATION_FACTS)
    return [
        OperationFacts(operation_id, now, token, *values[start : start + _OPERATION_FACTS])
        for operation_id, start in zip(ids, starts, strict=True)
    ]


def key_facts(reply: Any, names: Sequence[str]) -> list[KeyFacts]:
    """The reply of audit_keys for these names."""
    facts = []
    for name, start in zip(names, range(0, len(reply), _KEY_FACTS), strict=True):
        key_type, ttl, registered, holder, state = reply[start : start + _KEY_FACTS]
        facts.append(KeyFacts(name, text(key_type), int(ttl), bool(registered), from_id(holder), text(state)))
    return facts


def scanned(reply: Any) -> tuple[int, list[str]]:
    """The reply of SCAN: next cursor, 0 at the end, and keys."""
    return int(reply[0]), [from_id(raw) for raw in reply[1]]


def _time(milliseconds: Any) -> float | None:
    value = float(milliseconds)
    return None if value < 0 else min(value, _MOST) / 1000


def _share(value: Any) -> float:
    try:
        share = float(value)
    except ValueError:
        return 0.0
    return min(max(share, 0.0), 1.0) if math.isfinite(share) else 0.0


def _worker(values: Sequence[str]) -> WorkerRow:
    worker_id, *counts, queues, claims = values
    threads, active, tasks, busy = map(whole, counts)
    return WorkerRow(
        worker_id, threads, active, tasks, busy, frozenset(queues.split(",")) if queues else None, claims != "0"
    )


def _texts(flat: Any) -> dict[str, str]:
    pairs = flat.items() if isinstance(flat, dict) else zip(flat[::2], flat[1::2], strict=True)
    return {text(name): text(value) for name, value in pairs}


def whole(value: Any, otherwise: int = 0) -> int:
    """A count or time that a hash holds, which anybody may have written: `otherwise` for what is none."""
    try:
        number = int(value)
    except ValueError:
        return otherwise
    return number if 0 <= number <= _MOST else otherwise


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
