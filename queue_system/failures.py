"""`FailureStore`: what was given up, to look at, to run again, or to forget."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from queue_system.broker.messages import PURGE_STEP, Call, FailureRow
from queue_system.config import QueueConfig
from queue_system.errors import ConfigurationError, DecodeError
from queue_system.operation import KIND_OPERATION, Operation, decode_operation
from queue_system.runtime.incident import MAX_MESSAGE

PAGE: Final = 100
"""Entries in one round trip: with bodies of the largest size that is some 25 MB."""

GROUPED: Final = 10_000
"""Entries that `FailureStore.groups` looks at by default: the newest."""

UNKNOWN: Final = "unknown"
"""The kind of an entry whose body cannot be decoded."""

# What differs between two occurrences of one error: values in quotes, ids in hexadecimal, numbers.
_VARIABLE: Final = (
    (re.compile(r"""(?<!\w)(["'`]).*?\1(?!\w)""", re.DOTALL), "<text>"),
    (re.compile(r"\b0x[0-9a-fA-F]+\b|\b(?=[a-fA-F-]*\d)[0-9a-fA-F]{8,}(?:-[0-9a-fA-F]{4,})*\b"), "<n>"),
    (re.compile(r"\d+(?:[.,:]\d+)*"), "<n>"),
)
_FRAME: Final = re.compile(r'^ *File "(.*)", line \d+, in (.+)$', re.MULTILINE)
_TRACEPARENT: Final = re.compile(r"[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")


@dataclass(frozen=True, slots=True)
class FailureEntry:
    """One operation that was given up.

    Attributes:
        operation_id: its id.
        queue: where it came from; empty when that is not known.
        priority: ``high``, ``normal`` or ``low``; empty when that is not known.
        processor: ``module:name``, or the bare name of a registered function; empty when that is not known.
        kind: ``operation`` or ``callback``; ``unknown`` when the body cannot be decoded.
        entity: what the processor was given; None when the body cannot be decoded.
        raw: the body as it is in Redis.
        reason: why it was given up, e.g. ``max_attempts`` or ``total_timeout``.
        error_type: class of the last error.
        error_message: its text.
        traceback: where it came up; may be empty.
        attempts: how many were made.
        history: one dict for each attempt, oldest first: ``attempt``, ``worker``, ``started``, ``ended`` (seconds,
            clock of Redis), ``reason``, ``error_type``, ``error``, perhaps ``trace``. A record that cannot be
            decoded is ``{"raw": text}``.
        failed_at: when it was given up, UTC.
        trace_id: 32 hexadecimal digits: the trace of its last attempt, else of its enqueueing; empty without tracing.
    """

    operation_id: str
    queue: str
    priority: str
    processor: str
    kind: str
    entity: dict[str, Any] | None
    raw: bytes
    reason: str
    error_type: str
    error_message: str
    traceback: str
    attempts: int
    history: list[dict[str, Any]]
    failed_at: datetime
    trace_id: str = ""

    @property
    def fingerprint(self) -> str:
        """12 hexadecimal digits, the same for equal errors: see `fingerprint`."""
        return fingerprint(self.processor, self.error_type, self.error_message, self.traceback)

    def to_dict(self) -> dict[str, Any]:
        """A form that `json.dumps` takes: `failed_at` in ISO 8601, `raw` in base64 (None if `entity` is there)."""
        return {
            "operation_id": self.operation_id,
            "queue": self.queue,
            "priority": self.priority,
            "processor": self.processor,
            "kind": self.kind,
            "entity": self.entity,
            "raw": base64.b64encode(self.raw).decode() if self.entity is None else None,
            "reason": self.reason,
            "error_type": self.error_type,
            "error_message": self.error_message,
            "traceback": self.traceback,
            "attempts": self.attempts,
            "history": self.history,
            "failed_at": self.failed_at.isoformat(),
            "trace_id": self.trace_id,
            "fingerprint": self.fingerprint,
        }


@dataclass(frozen=True, slots=True)
class FailureGroup:
    """Failures of one fingerprint.

    Attributes:
        fingerprint: 12 hexadecimal digits.
        count: how many there are among those that were looked at.
        first: when the oldest of them was given up, UTC.
        last: when the newest was.
        processor: as in `FailureEntry`.
        error_type: class of the error.
        error_message: its text in the newest.
        reason: why the newest was given up.
        example_id: operation id of the newest.
        trace_id: its trace; may be empty.
    """

    fingerprint: str
    count: int
    first: datetime
    last: datetime
    processor: str
    error_type: str
    error_message: str
    reason: str
    example_id: str
    trace_id: str

    def to_dict(self) -> dict[str, Any]:
        """A form that `json.dumps` takes: times in ISO 8601."""
        return {
            "fingerprint": self.fingerprint,
            "count": self.count,
            "first": self.first.isoformat(),
            "last": self.last.isoformat(),
            "processor": self.processor,
            "error_type": self.error_type,
            "error_message": self.error_message,
            "reason": self.reason,
            "example_id": self.example_id,
            "trace_id": self.trace_id,
        }


class FailureStore:
    """The failures of a queue, or its system errors. Thread-safe.

    Failures are operations that a worker tried and gave up. System errors are what no worker could even understand
    or was allowed to run. Both are kept for the configuration's `backup_ttl`.

    Args:
        config: the queue.
        system_errors: the system errors instead of the failures.

    Raises (every method):
        BrokerUnavailableError: Redis cannot serve now. What was done by then stays so.
    """

    def __init__(self, config: QueueConfig, *, system_errors: bool = False) -> None:
        self._config = config
        self._system_errors = system_errors
        self._state = "system_error" if system_errors else "failed"

    def count(self) -> int:
        """How many there are."""
        status = self._config.broker.run(self._config.commands.status())
        return status.system_errors if self._system_errors else status.failures

    def list(self, limit: int = 50, offset: int = 0) -> list[FailureEntry]:
        """Entries, newest first.

        Args:
            limit: how many at most, 0 or more.
            offset: how many of the newest to pass over. Entries that come or go meanwhile move the others.

        Raises:
            ConfigurationError: `limit` or `offset` is not an integer of 0 or more.
        """
        _check_natural("limit", limit)
        _check_natural("offset", offset)
        entries: list[FailureEntry] = []
        for start in range(offset, offset + limit, PAGE):
            size = min(PAGE, offset + limit - start)
            rows = self._page(start, size)
            entries += map(self._entry, rows)
            if not rows:
                break
        return entries

    def get(self, operation_id: str) -> FailureEntry | None:
        """The entry of that operation, or None."""
        call = self._config.commands.failures(operation_id=operation_id, system_errors=self._system_errors)
        rows = [row for row in self._config.broker.run(call) if row.state == self._state]
        return self._entry(rows[0]) if rows else None

    def groups(self, limit: int = GROUPED) -> Sequence[FailureGroup]:
        """The newest entries by fingerprint, the largest group first.

        Args:
            limit: entries that are looked at, at most, 10,000 by default: what is older is not counted.

        Raises:
            ConfigurationError: `limit` is not an integer of 0 or more.
        """
        _check_natural("limit", limit)
        groups: dict[str, FailureGroup] = {}
        seen: set[str] = set()  # what is given up meanwhile pushes others to a later page
        for start in range(0, limit, PAGE):
            rows = self._page(start, min(PAGE, limit - start))
            for entry in map(self._entry, (row for row in rows if row.operation_id not in seen)):
                groups[entry.fingerprint] = _joined(groups.get(entry.fingerprint), entry)
            seen.update(row.operation_id for row in rows)
            if not rows:
                break
        return sorted(groups.values(), key=lambda group: (-group.count, -group.last.timestamp()))

    def retry(self, operation_id: str) -> bool:
        """Put an operation back into its queue, with all its attempts before it again; its history stays.

        Returns:
            False when there is no such entry, or nothing of it that could be run.
        """
        return self._config.broker.run(self._requeue_call(operation_id))

    def retry_all(self, limit: int | None = None) -> int:
        """Put operations back into their queues, newest first, in bounded steps, and say how many those were.

        Only what was given up before the call is put back, so that it ends even if all of it fails again at once.

        Args:
            limit: how many at most; None for all.

        Raises:
            ConfigurationError: `limit` is not an integer of 0 or more.
        """
        if limit is not None:
            _check_natural("limit", limit)
        now = self._config.broker.run(self._config.commands.status()).now
        retried = offset = 0
        for _ in range(self._most_steps()):
            if limit is not None and retried >= limit:
                break
            rows = self._page(offset, PAGE)
            due = [row.operation_id for row in rows if row.failed_at <= now]
            gone = self._requeue(due if limit is None else due[: limit - retried])
            retried += gone
            offset += PAGE - gone  # what stays lies before the next page
            if not rows and offset >= self.count():
                break
        return retried

    def purge(self, *operation_ids: str) -> int:
        """Delete the given entries, in bounded steps; say how many those were. Without an id nothing is deleted."""
        return sum(
            self._config.broker.run(self._config.commands.purge_failures(ids, system_errors=self._system_errors))
            for ids in _chunks(operation_ids, PURGE_STEP)
        )

    def purge_all(self) -> int:
        """Delete all entries that are there now, the oldest first, in bounded steps; say how many those were."""
        return sum(
            self._config.broker.run(self._config.commands.purge_oldest_failures(system_errors=self._system_errors))
            for _ in range(0, self.count(), PURGE_STEP)
        )

    def _most_steps(self) -> int:
        """Each page may come up a second time, pushed back by what failed again; and a few more for what is new."""
        return 2 * (self.count() // PAGE + 1) + 10

    def _page(self, offset: int, limit: int) -> Sequence[FailureRow]:
        call = self._config.commands.failures(offset=offset, limit=limit, system_errors=self._system_errors)
        return self._config.broker.run(call)

    def _requeue_call(self, operation_id: str) -> Call[bool]:
        return self._config.commands.requeue_failure(operation_id, system_errors=self._system_errors)

    def _requeue(self, operation_ids: Sequence[str]) -> int:
        return sum(self._config.broker.run_many([self._requeue_call(each) for each in operation_ids]))

    def _entry(self, row: FailureRow) -> FailureEntry:
        operation = decode_body(row.operation_id, row.queue, row.body, self._config)
        error = json_object(row.error)
        history = history_of(row.history)
        priority, _, queue = row.queue.partition(":")
        return FailureEntry(
            operation_id=row.operation_id,
            queue=queue,
            priority=priority,
            processor="" if operation is None else processor_of(operation),
            kind=UNKNOWN if operation is None else operation.get("kind", KIND_OPERATION),
            entity=None if operation is None else operation["entity"],
            raw=row.body,
            reason=_text(error.get("reason")),
            error_type=_text(error.get("type")),
            error_message=_text(error.get("message")),
            traceback=_text(error.get("traceback")),
            attempts=row.attempts,
            history=history,
            failed_at=datetime.fromtimestamp(row.failed_at, UTC),
            trace_id=trace_of(history, operation),
        )


def fingerprint(processor: str, error_type: str, message: str, traceback: str = "") -> str:
    """12 hexadecimal digits that are the same for equal errors.

    Equal are errors of one processor and class, raised in one function of one file, whose texts differ at most in
    numbers, hexadecimal ids and what stands in quotes. Line numbers and directories do not matter: a new release of
    the application keeps its groups.
    """
    frames: list[tuple[str, str]] = _FRAME.findall(traceback)
    path, function = frames[-1] if frames else ("", "")
    file = re.split(r"[/\\]", path)[-1]
    message = message[:MAX_MESSAGE]  # a worker keeps no more, but anybody may have written this
    for pattern, stand_in in _VARIABLE:
        message = pattern.sub(stand_in, message)
    told = f"{processor}\0{error_type}\0{message}\0{file}\0{function}"
    return hashlib.sha256(told.encode("utf-8", "surrogatepass")).hexdigest()[:12]


def decode_body(operation_id: str, queue: str, raw: bytes, config: QueueConfig) -> Operation | None:
    """The operation in a body, as large and deep and well signed as a worker takes it; None when it cannot be decoded.

    Args:
        operation_id: under which it is in Redis.
        queue: ``{priority}:{queue}`` as its hash says; empty when that is not known.
        raw: what is in Redis.
        config: the queue; without signing keys a signature is not looked at.
    """
    # A callback carries its parent's entity and result.
    max_bytes, max_depth = 2 * config.max_operation_bytes, config.max_depth + 3
    try:
        body = config.signer.open(operation_id, queue, raw, max_bytes=max_bytes)
        return decode_operation(body, max_bytes=max_bytes, max_depth=max_depth)
    except DecodeError:
        return None


def history_of(records: Sequence[bytes]) -> list[dict[str, Any]]:
    """An operation's attempts; one that cannot be decoded is ``{"raw": text}``."""
    return [json_object(record) or {"raw": record.decode("utf-8", "replace")} for record in records]


def trace_of(history: Sequence[Mapping[str, Any]], operation: Operation | None) -> str:
    """The trace id of the last attempt, else of the enqueueing; empty when there is none."""
    headers = {} if operation is None else operation.get("headers", {})
    attempts = (str(record.get("trace", "")) for record in reversed(history))
    found = map(_TRACEPARENT.fullmatch, (*attempts, headers.get("traceparent", "")))
    return next((match[1] for match in found if match), "")


def processor_of(operation: Operation) -> str:
    """``module:name``, or the bare name of a registered function."""
    module, name = operation["processor_module"], operation["processor"]
    return name if module is None else f"{module}:{name}"


def json_object(raw: bytes) -> dict[str, Any]:
    """The JSON object in `raw`; an empty dict when there is none."""
    try:
        value = msgspec.json.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _joined(group: FailureGroup | None, entry: FailureEntry) -> FailureGroup:
    """The group with one more entry. The newest comes first, and stays the example."""
    if group is not None:
        first, last = min(group.first, entry.failed_at), max(group.last, entry.failed_at)
        return replace(group, count=group.count + 1, first=first, last=last)
    return FailureGroup(
        entry.fingerprint, 1, entry.failed_at, entry.failed_at, entry.processor, entry.error_type,
        entry.error_message, entry.reason, entry.operation_id, entry.trace_id,
    )  # fmt: skip


def _text(value: object) -> str:
    return "" if value is None else str(value)


def _chunks(items: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _check_natural(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ConfigurationError(f"{name} must be an integer of 0 or more, got {value!r}")
