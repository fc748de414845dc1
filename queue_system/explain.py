"""Where an operation is, and why: `explain`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from typing import Any, Final

from queue_system.broker.messages import KIND_ASYNC, KIND_SYNC, SEARCH_LIMIT, Whereabouts, WorkerRow
from queue_system.broker.replies import whole
from queue_system.config import QueueConfig
from queue_system.failures import decode_body, history_of, json_object, processor_of, trace_of
from queue_system.keys import CALLBACK_QUEUE
from queue_system.operation import Operation
from queue_system.outcome import MAX_UNKNOWN_DELIVERIES, UNKNOWN_PROCESSOR
from queue_system.retry import QueueRetryConfig

UNKNOWN: Final = "unknown"
"""The state of an operation of which nothing is kept."""

BROKEN: Final = "broken"
"""The state of what stands at an operation's key, and is none."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """Where an operation is, and why. Times are those of Redis, in UTC; None where there is none.

    Attributes:
        operation_id: its id.
        state: ``ready``, ``delayed``, ``leased``, ``done``, ``failed``, ``system_error``, ``unknown`` (nothing is kept
            of it) or ``broken`` (what stands at its key is no operation).
        summary: the state in one sentence.
        reasons: why it is so, one sentence each, the most important first; may be empty.
        queue: its queue; empty when that is not known.
        priority: ``high``, ``normal`` or ``low``; empty when that is not known.
        processor: ``module:name``, or the bare name of a registered function; empty when that is not known.
        attempts: how many have ended.
        max_attempts: how many it has; None when its body cannot be decoded.
        deliveries: how often it was given to a worker.
        crashes: how often its worker was lost.
        exhaustions: how often it found no free thread in time.
        ahead: how many are before it in its queue, when it is ready. None when it was not found among the first 50,000.
        ahead_of_higher_priority: how many ready operations of higher priority its workers take first.
        accepted_at: when it was enqueued.
        due_at: when it is, or was, to be processed.
        given_up_at: when it went to the failures or system errors.
        worker: the worker of its last claim.
        claimed_at: when that was.
        lease_expires_in: seconds until others may take it over, negative when they may already; while it is leased.
        reason: why it was given up, or delayed.
        error_type: class of the last error.
        error_message: its text.
        history: its attempts, as in `FailureEntry`.
        trace_id: as in `FailureEntry`.
    """

    operation_id: str
    state: str
    summary: str = ""
    reasons: tuple[str, ...] = ()
    queue: str = ""
    priority: str = ""
    processor: str = ""
    attempts: int = 0
    max_attempts: int | None = None
    deliveries: int = 0
    crashes: int = 0
    exhaustions: int = 0
    ahead: int | None = None
    ahead_of_higher_priority: int = 0
    accepted_at: datetime | None = None
    due_at: datetime | None = None
    given_up_at: datetime | None = None
    worker: str = ""
    claimed_at: datetime | None = None
    lease_expires_in: float | None = None
    reason: str = ""
    error_type: str = ""
    error_message: str = ""
    history: list[dict[str, Any]] = field(default_factory=list)
    trace_id: str = ""

    def to_dict(self) -> dict[str, Any]:
        """A form that `json.dumps` takes: times in ISO 8601."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: value.isoformat() if isinstance(value, datetime) else value for name, value in values.items()} | {
            "reasons": list(self.reasons)
        }


def explain(config: QueueConfig, operation_id: str) -> Explanation:
    """Say where an operation is, and why; at a cost that does not depend on how many there are.

    Args:
        config: the queue.
        operation_id: what `enqueue` returned.

    Raises:
        BrokerUnavailableError: Redis cannot serve now.
    """
    found = config.broker.run(config.commands.explain(operation_id))
    state = _state(found)
    if state in {UNKNOWN, BROKEN}:
        return Explanation(operation_id, state, *_STORIES[state](_Seen(found, None, [], operation_id)))
    queue = found.fields.get("q", b"").decode("utf-8", "replace")
    operation = decode_body(operation_id, queue, found.fields.get("b", b""), config)
    history = history_of([record for record in found.fields.get("hist", b"").split(b"\n") if record])
    seen = _Seen(found, operation, history, operation_id)
    error, last = json_object(found.fields.get("err", b"")), history[-1] if history else {}
    return Explanation(
        operation_id,
        state,
        *_STORIES[state](seen),
        queue=seen.queue,
        priority=seen.priority,
        processor="" if operation is None else processor_of(operation),
        attempts=seen.number("at"),
        max_attempts=seen.max_attempts,
        deliveries=seen.number("dc"),
        crashes=seen.number("cr"),
        exhaustions=seen.number("ex"),
        ahead=found.position if state == "ready" else None,
        ahead_of_higher_priority=seen.higher if state == "ready" else 0,
        accepted_at=seen.time("ts"),
        due_at=_utc(found.due) if found.due is not None else seen.time("rd"),
        given_up_at=seen.time("fl"),
        worker=seen.worker,
        claimed_at=seen.claimed_at,
        lease_expires_in=None if found.lease_until is None else round(found.lease_until - found.now, 3),
        reason=str(error.get("reason") or (seen.delay_reason if state == "delayed" else "")),
        error_type=str(error.get("type") or last.get("error_type") or ""),
        error_message=str(error.get("message") or last.get("error") or ""),
        history=history,
        trace_id=trace_of(history, operation),
    )


class _Seen:
    """What was read, in the terms of the sentences below."""

    def __init__(
        self, found: Whereabouts, operation: Operation | None, history: list[dict[str, Any]], operation_id: str
    ) -> None:
        self.found = found
        self.operation_id = operation_id
        self.operation = operation
        self.history = history
        self.priority, _, self.queue = self.text("q").partition(":")
        claimed, _, self.worker = self.text("w").partition(" ")
        self.claimed_at = _utc(whole(claimed) / 1000) if claimed.isdigit() else None

    def text(self, name: str) -> str:
        return self.found.fields.get(name, b"").decode("utf-8", "replace")

    def number(self, name: str) -> int:
        return whole(self.text(name))

    def time(self, name: str) -> datetime | None:
        return _utc(self.number(name) / 1000) if name in self.found.fields else None

    @property
    def place(self) -> str:
        return "the callbacks" if self.queue == CALLBACK_QUEUE else f"{self.priority}:{self.queue}"

    @property
    def max_attempts(self) -> int | None:
        if self.operation is None:
            return None
        stored = self.operation.get("retry_config") or {}
        attempts = stored.get("max_attempts", QueueRetryConfig().max_attempts)
        return attempts if isinstance(attempts, int) else None

    @property
    def delay_reason(self) -> str:
        """Why it was put back with a delay by its last worker, or why its last attempt ended."""
        deliveries, _, reason = self.text("pb").partition(" ")
        if reason and deliveries == self.text("dc"):
            return reason
        return str(self.history[-1].get("reason", "")) if self.history else ""

    @property
    def higher(self) -> int:
        """Those of higher priority that take the same kind of slot. A mixed queue takes either."""
        other = {KIND_ASYNC: KIND_SYNC, KIND_SYNC: KIND_ASYNC}.get(self.found.kind)
        return sum(length for _, kind, length in self.found.higher if kind != other)


def _state(found: Whereabouts) -> str:
    if found.key_type == "none":
        return UNKNOWN
    state = found.fields.get("st", b"").decode("utf-8", "replace")
    return state if state in _STORIES else BROKEN


def _ready(seen: _Seen) -> tuple[str, tuple[str, ...]]:
    found = seen.found
    if found.position is None and found.length <= SEARCH_LIMIT:
        return (
            f"It is ready, but not in the list of {seen.place}.",
            ("Nothing will claim it: the list was changed by hand, or Redis has evicted it.",),
        )
    ahead = f"more than {SEARCH_LIMIT:,}" if found.position is None else f"{found.position:,}"
    place = "first" if found.position == 0 else f"behind {ahead}"
    higher = f", and {seen.higher:,} of higher priority go before" if seen.higher else ""
    before = (_why_delayed(seen),) if seen.delay_reason else ()
    return f"It is {place} in {seen.place}{higher}.", (*_takers(seen), *before, *_past(seen))


def _delayed(seen: _Seen) -> tuple[str, tuple[str, ...]]:
    due = seen.found.due
    if due is None:
        return "It is delayed, but not among the delayed ones.", ("Nothing will ever claim it.",)
    wait = due - seen.found.now
    when = f"{_utc(due):%H:%M:%S} UTC"
    if wait >= 0:
        return f"It is delayed until {when}, in {_seconds(wait)}.", (_why_delayed(seen), *_past(seen))
    late = f"It is due since {when}, {_seconds(-wait)} ago, and no worker has looked since."
    return late, (*_takers(seen), _why_delayed(seen), *_past(seen))


def _why_delayed(seen: _Seen) -> str:
    reason = seen.delay_reason
    if reason == UNKNOWN_PROCESSOR:
        name = "its processor" if seen.operation is None else processor_of(seen.operation)
        tries = f"delivery {seen.number('dc')} of {MAX_UNKNOWN_DELIVERIES}"
        return f"The worker that took it last does not know {name}: it waits for one that does ({tries})."
    if reason == "newer_schema":
        return "A newer version of this package wrote it: it waits for a worker of that version."
    if not seen.history:
        return "It was enqueued with a delay." if seen.number("dc") == 0 else "It was put back by its worker."
    last = seen.history[-1]
    error = f"{last.get('error_type', '')}: {last.get('error', last.get('raw', ''))}".strip(": ")
    of = "" if seen.max_attempts is None else f" of {seen.max_attempts}"
    return f"Attempt {seen.number('at')}{of} ended with {error or reason}."


def _leased(seen: _Seen) -> tuple[str, tuple[str, ...]]:
    found = seen.found
    since = "" if seen.claimed_at is None else f" since {_seconds(found.now - seen.claimed_at.timestamp())}"
    of = "" if seen.max_attempts is None else f" of {seen.max_attempts}"
    summary = f"It is in flight{since}: attempt {seen.number('at') + 1}{of}, by {seen.worker or 'a worker'}."
    if found.lease_until is None:
        return summary, ("It has no lease: nothing will ever take it over.", *_past(seen))
    left = found.lease_until - found.now
    lease = f"its lease ends in {_seconds(left)}" if left >= 0 else f"its lease is over since {_seconds(-left)}"
    if not seen.worker:
        return summary, (f"{lease.capitalize()}.", *_past(seen))
    if found.worker_seen is None:
        gone = f"That worker is gone: others take it over when its lease is over; {lease}."
        return summary, (gone, *_past(seen))
    beat = f"That worker has sent its last heartbeat {_seconds(found.now - found.worker_seen)} ago; {lease}."
    return summary, (beat, *_past(seen))


def _given_up(seen: _Seen) -> tuple[str, tuple[str, ...]]:
    error = json_object(seen.found.fields.get("err", b""))
    told = f"{error.get('type') or ''}: {error.get('message') or ''}".strip(": ")
    ago = seen.found.now - seen.number("fl") / 1000
    attempts = seen.number("at")
    if seen.text("st") == "failed":
        tries = f"after {attempts} attempt{'' if attempts == 1 else 's'}"
        summary, option = f"It was given up {_seconds(ago)} ago, {tries}: {error.get('reason')}.", ""
    else:
        summary = f"It was rejected {_seconds(ago)} ago, without calling a processor: {error.get('reason')}."
        option = " --system-errors"
    again = f"To run it again: queue-system failures retry {seen.operation_id}{option}"
    return summary, (*((told,) if told else ()), again)


def _done(seen: _Seen) -> tuple[str, tuple[str, ...]]:
    worker = f", by {seen.worker}" if seen.worker else ""
    return f"It ended well{worker}. Its id stays taken for a while.", ()


def _unknown(_: _Seen) -> tuple[str, tuple[str, ...]]:
    return (
        "Nothing is known of it.",
        (
            "It ended well, or was purged, or its time among the failures is over, or it was never enqueued here.",
            "Is this the right server and prefix?",
        ),
    )


def _broken(seen: _Seen) -> tuple[str, tuple[str, ...]]:
    return f"What stands at its key is no operation: a {seen.found.key_type} that was written by hand.", ()


_STORIES: Final = {
    "ready": _ready,
    "delayed": _delayed,
    "leased": _leased,
    "done": _done,
    "failed": _given_up,
    "system_error": _given_up,
    UNKNOWN: _unknown,
    BROKEN: _broken,
}


def _takers(seen: _Seen) -> tuple[str, ...]:
    """Who could take a ready operation, and why nobody does."""
    alive = seen.found.workers
    if not alive:
        return ("No worker is alive: none has sent a heartbeat in the last 30 s.",)
    serving = [worker for worker in alive if worker.queues is None or seen.queue in worker.queues]
    if not serving:
        return (f"No live worker serves the queue {seen.queue}: {_count(alive)} {_serve(alive)} other queues only.",)
    claiming = [worker for worker in serving if worker.claims]
    if not claiming:
        return (f"{_count(serving).capitalize()} that {_serve(serving)} it will take no more: stopping.",)
    return _busy(seen.found.kind, claiming)


def _busy(kind: str, workers: Sequence[WorkerRow]) -> tuple[str, ...]:
    threads, active = sum(one.threads for one in workers), sum(one.threads_active for one in workers)
    tasks, busy = sum(one.tasks for one in workers), sum(one.tasks_busy for one in workers)
    whose = f"of {_count(workers)} that {_serve(workers)} it"
    told = []
    if kind != KIND_ASYNC and active >= threads > 0:
        told.append(f"The thread pool is full: the {threads} threads {whose} are all busy.")
    if kind != KIND_SYNC and busy >= tasks > 0:
        told.append(f"The {tasks} worker tasks {whose} are all busy.")
    if told:
        return tuple(told)
    return (f"{_count(workers).capitalize()} {_serve(workers)} it, with room for more.",)


def _past(seen: _Seen) -> tuple[str, ...]:
    """What has happened to it that is no attempt."""
    told = []
    if crashes := seen.number("cr"):
        is_suspect = seen.text("st") == "ready" and seen.text("al")
        alone = " It runs next when a worker holds nothing else." if is_suspect else ""
        told.append(f"Its worker was lost {_times(crashes)}.{alone}")
    if exhaustions := seen.number("ex"):
        told.append(f"It found no free thread in time {_times(exhaustions)}.")
    return tuple(told)


def _count(workers: Sequence[WorkerRow]) -> str:
    return "the 1 worker" if len(workers) == 1 else f"the {len(workers)} workers"


def _serve(workers: Sequence[WorkerRow]) -> str:
    return "serves" if len(workers) == 1 else "serve"


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _seconds(seconds: float) -> str:
    """``4.2 s``, ``7 min``, ``3 h`` or ``5 days``: as exact as one wants to know it."""
    seconds = max(0.0, seconds)
    for size, unit in ((2 * 86400, "days"), (2 * 3600, "h"), (120, "min")):
        if seconds >= size:
            return f"{int(2 * seconds // size)} {unit}"
    return f"{seconds:.1f} s"


def _utc(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
