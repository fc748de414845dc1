"""How operations are made ready for Redis and what is answered about them: shared by both managers, without I/O.

Each public step is a generator: it yields the calls to make and is sent their replies. `manager` drives it, once with a
synchronous broker and once with an asynchronous one.
"""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, TypeAlias, TypeVar

from queue_system.broker.messages import (
    KIND_ASYNC,
    KIND_SYNC,
    KIND_UNKNOWN,
    MAX_ENQUEUE,
    Accepted,
    Call,
    NewOperation,
)
from queue_system.checks import check_durability, check_seconds
from queue_system.config import QueueConfig
from queue_system.errors import BrokerUnavailableError, InvalidOperationError, NotDurableError, QueueError
from queue_system.events import (
    Enqueued,
    EnqueueFailed,
    EnqueueStarted,
)
from queue_system.keys import CALLBACK_QUEUE, check_priority, check_queue_name
from queue_system.operation import WIRE_VERSION, encode_entity, encode_operation
from queue_system.registry import Processor, reference_of
from queue_system.retry import QueueRetryConfig
from queue_system.summary import status_summary

T = TypeVar("T")
Steps: TypeAlias = Generator[list[Call[Any]], list[Any], T]
FunctionOrName: TypeAlias = Callable[..., Any] | str


class _Default(str):
    """A default that can be told from the same text given by the caller: the latter wins over a processor's own."""

    __slots__ = ()


DEFAULT_PRIORITY: Final[str] = _Default("normal")

_OPERATION_ID = re.compile(r"[\x21-\x7e]{1,128}")
_OPTIONS = frozenset({"delay", "deduplication_key", "deduplication_window", "durability"})
_SHOWN_IDS = 3  # in the text of an error


class OperationFactory:
    """The steps of enqueuing that need no connection. `QueueManager` and its asynchronous twin derive from it."""

    def __init__(self, config: QueueConfig) -> None:
        self.config = config

    def _generate_operation_id(self) -> str:
        """A unique id: 32 hexadecimal digits."""
        return uuid.uuid4().hex

    def _hash_entity(self, entity: dict[str, Any], *, default_serializer: Callable[[Any], Any] | None = None) -> str:
        """SHA-256 of the entity's JSON with sorted keys: equal for equal content, whatever the order of keys."""
        encoded = encode_entity(entity, default_serializer, max_depth=self.config.max_depth, sort_keys=True)
        return hashlib.sha256(encoded).hexdigest()

    def _serialize_entity(self, entity: Any, default_serializer: Callable[[Any], Any] | None = None) -> str:
        """The entity's JSON.

        Args:
            entity: a dict.
            default_serializer: called with each value that has no JSON form; returns one that has.

        Raises:
            SerializationError: a value has no JSON form; says where it is.
        """
        return encode_entity(entity, default_serializer, max_depth=self.config.max_depth).decode()

    def _new_operation(
        self,
        entity: dict[str, Any],
        processor: FunctionOrName,
        *,
        queue_name: str | None = None,
        priority: str = DEFAULT_PRIORITY,
        operation_id: str | None = None,
        retry_config: QueueRetryConfig | None = None,
        on_success: FunctionOrName | None = None,
        on_failure: FunctionOrName | None = None,
        timeout: float | None = None,
        deduplication_key: str | None = None,
        custom_serializer: Callable[[Any], Any] | None = None,
        delay: float = 0.0,
        deduplicate: bool = False,
        deduplication_window: float | None = None,
        durability: str | None = None,
    ) -> dict[str, Any]:
        """Check every argument and put it into the form of an operation; registers functions given as such."""
        known = self._processor(processor)
        reference = reference_of(processor) if known is None else known.ref
        queue = _given_or_default(queue_name, known, "queue")
        if isinstance(priority, _Default) and known is not None and known.priority is not None:
            priority = known.priority
        retry = _given_or_default(retry_config, known, "retry_config")
        if retry is not None and not isinstance(retry, QueueRetryConfig):
            raise InvalidOperationError(f"retry_config must be a QueueRetryConfig, not {type(retry).__name__}")
        if deduplicate and deduplication_key is None:
            deduplication_key = self._hash_entity(entity, default_serializer=custom_serializer)
        operation: dict[str, Any] = {
            "v": WIRE_VERSION,
            "operation_id": self._generate_operation_id() if operation_id is None else _check_id(operation_id),
            "processor": reference.name,
            "processor_module": reference.module,
            "queue": _check_user_queue(reference.name.rpartition(".")[2] if queue is None else queue),
            "priority": str(check_priority(priority)),
            "entity": entity,
            "delay": check_seconds("delay", delay, zero=True, error=InvalidOperationError),
            "deduplication_key": _check_key(deduplication_key),
            "deduplication_window": self.config.deduplication_window
            if deduplication_window is None
            else check_seconds("deduplication_window", deduplication_window, error=InvalidOperationError),
            "durability": self.config.durability if durability is None else check_durability(durability),
        }
        optional = {
            "retry_config": None if retry is None else retry.to_dict(),
            "timeout": _check_timeout(_given_or_default(timeout, known, "timeout")),
            "on_success": self._callback_reference(_given_or_default(on_success, known, "on_success")),
            "on_failure": self._callback_reference(_given_or_default(on_failure, known, "on_failure")),
        }
        return operation | {name: value for name, value in optional.items() if value is not None}

    def _new_operations(
        self, entities: Sequence[dict[str, Any]], processor: FunctionOrName, options: dict[str, Any]
    ) -> list[dict[str, Any]]:
        """One operation for each entity; what they share is checked once."""
        if isinstance(entities, Mapping | str | bytes) or not isinstance(entities, Sequence):
            raise InvalidOperationError(f"entities must be a list of dicts, not {type(entities).__name__}")
        if "operation_id" in options:
            raise InvalidOperationError("operation_id cannot be given for a batch: each operation gets its own")
        if not entities:
            return []
        first = self._new_operation(entities[0], processor, **options)
        per_entity = options.get("deduplicate") and options.get("deduplication_key") is None
        operations = [first]
        for entity in entities[1:]:
            operation = {**first, "operation_id": self._generate_operation_id(), "entity": entity}
            if per_entity:
                serializer = options.get("custom_serializer")
                operation["deduplication_key"] = self._hash_entity(entity, default_serializer=serializer)
            operations.append(operation)
        return operations

    def _enqueue_steps(
        self,
        operations: Sequence[dict[str, Any]],
        custom_serializer: Callable[[Any], Any] | None,
    ) -> Steps[list[dict[str, Any]]]:
        """Encode operations of one queue and processor, send them in one round trip, tell what became of each."""
        if not operations:
            return []
        first = operations[0]
        queue, priority, kind = first["queue"], first["priority"], self._kind_of(first)
        with self._observed(operations, queue, priority):
            headers: dict[str, str] = {}
            self.config.hooks.inject(headers)
            encoded = [self._encode(operation, headers, custom_serializer) for operation in operations]
            durable = first.get("durability") == "wait"
            answers, confirmed = yield from self._send_steps(queue, priority, kind, encoded, durable=durable)
            results = [
                _result(operation, accepted, holder, kind)
                for operation, (accepted, holder) in zip(operations, answers, strict=True)
            ]
            if durable:
                self._check_durable(first, results, confirmed)
        self._tell_enqueued(first, results)
        return results

    def _send_steps(
        self, queue: str, priority: str, kind: str, new: Sequence[NewOperation], *, durable: bool
    ) -> Steps[tuple[list[tuple[Accepted, str]], int | QueueError]]:
        """What became of each, and how many replicas have them all, or why that is not known."""
        commands = self.config.commands
        calls: list[Call[Any]] = [
            commands.enqueue(queue, priority, kind, new[start : start + MAX_ENQUEUE])
            for start in range(0, len(new), MAX_ENQUEUE)
        ]
        lanes = [call.lane for call in calls if call.lane is not None]
        if durable:
            calls.append(commands.confirm(self.config.durability_replicas, self.config.durability_timeout))
        try:
            replies = yield calls
        finally:
            commands.lanes.give_back(lanes)
        confirmed = replies.pop() if durable else 0
        return [answer for reply in replies for answer in reply], confirmed

    def _check_durable(
        self, first: Mapping[str, Any], results: Sequence[dict[str, Any]], confirmed: int | QueueError
    ) -> None:
        replicas = self.config.durability_replicas
        count, cause = (0, confirmed) if isinstance(confirmed, QueueError) else (confirmed, None)
        if count < replicas:
            self._tell_enqueued(first, results)
            reason = cause or f"{count} of {replicas} replicas within {self.config.durability_timeout:g} s"
            raise NotDurableError(
                f"accepted by the primary but not confirmed ({reason}): {_ids(results)}; enqueue again with the same "
                "operation_id to ask again, which is safe while they are live or within done_ttl",
                results=results,
                confirmed=count,
                replicas=replicas,
            ) from cause

    def _status_steps(self) -> Steps[dict[str, Any]]:
        (status,) = yield [self.config.commands.status()]
        return status_summary(status, self.config.keys)

    def _purge_steps(self, queue_name: str, priority: str) -> Steps[int]:
        queue, priority = check_queue_name(queue_name), check_priority(priority)
        commands = self.config.commands
        total: int = 0
        cursor: int = 0
        while True:
            (taken,) = yield [commands.purge_ready(queue, priority)]
            total += taken
            if taken == 0:
                break
        while True:
            ((cursor, taken),) = yield [commands.purge_delayed(queue, priority, cursor)]
            total += taken
            if cursor == 0:
                return total

    def _processor(self, processor: FunctionOrName) -> Processor | None:
        """The registered processor; a function that is not registered yet is registered, plain and findable."""
        registry = self.config.registry
        if isinstance(processor, str):
            return registry.find(*reference_of(processor))
        if not callable(processor):
            raise InvalidOperationError(f"a processor is a function or 'module:name', not {type(processor).__name__}")
        known = registry.by_function(processor)
        if known is None:
            reference = reference_of(processor)
            known = registry.register(processor, name=reference.name, module=reference.module)
        return known

    def _callback_reference(self, callback: FunctionOrName | None) -> tuple[str, str | None] | None:
        if callback is None:
            return None
        if not isinstance(callback, str):
            known = self.config.registry.by_function(callback)
            if known is not None:
                return known.ref
            self.config.register_callback(callback)
        return reference_of(callback, self.config.callbacks)

    def _kind_of(self, operation: Mapping[str, Any]) -> str:
        """``a`` async, ``s`` sync, ``u`` when this process does not know the function."""
        known = self.config.registry.find(operation["processor"], operation["processor_module"])
        return KIND_UNKNOWN if known is None else KIND_ASYNC if known.is_async else KIND_SYNC

    def _encode(
        self,
        operation: Mapping[str, Any],
        headers: dict[str, str],
        custom_serializer: Callable[[Any], Any] | None,
    ) -> NewOperation:
        entity = self._serialize_entity(operation["entity"], custom_serializer).encode()
        envelope = {name: value for name, value in operation.items() if name not in _OPTIONS}
        if headers:
            envelope["headers"] = headers
        body = encode_operation(envelope, entity, max_bytes=self.config.max_operation_bytes)
        queue = f"{operation['priority']}:{operation['queue']}"
        return NewOperation(
            operation["operation_id"],
            self.config.signer.seal(operation["operation_id"], queue, body),
            operation["delay"],
            operation["deduplication_key"],
            operation["deduplication_window"],
        )

    @contextmanager
    def _observed(self, operations: Sequence[dict[str, Any]], queue: str, priority: str) -> Iterator[None]:
        first = operations[0]
        single = len(operations) == 1
        started = EnqueueStarted(
            queue,
            priority,
            first["processor"],
            len(operations),
            first["operation_id"] if single else None,
            first["delay"],
        )
        with self.config.hooks.enqueue_context(started):
            try:
                yield
            except QueueError as error:
                if isinstance(error, BrokerUnavailableError):
                    error.operation_ids = tuple(operation["operation_id"] for operation in operations)
                self.config.hooks.on_event(EnqueueFailed(queue, type(error).__name__))
                raise

    def _tell_enqueued(self, first: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> None:
        accepted = tuple(result["operation_id"] for result in results if result["status"] != "duplicate")
        duplicates = len(results) - len(accepted)
        self.config.hooks.on_event(
            Enqueued(first["queue"], first["priority"], first["processor"], len(accepted), duplicates, accepted)
        )


def _result(operation: Mapping[str, Any], accepted: Accepted, holder: str, kind: str) -> dict[str, Any]:
    """What `enqueue` returns for one operation."""
    result = {
        "operation_id": operation["operation_id"],
        "status": "scheduled" if accepted is Accepted.SCHEDULED else "queued",
        "queue": operation["queue"],
        "priority": operation["priority"],
        "processor": operation["processor"],
        "is_async": {KIND_ASYNC: True, KIND_SYNC: False}.get(kind),
    }
    if accepted is Accepted.DUPLICATE_ID:
        result |= {"status": "duplicate", "reason": "operation_id", "duplicate_of": holder}
    elif accepted is Accepted.DUPLICATE_KEY:
        result |= {"status": "duplicate", "reason": "deduplication_key", "duplicate_of": holder}
    return result


def _ids(results: Sequence[Mapping[str, Any]]) -> str:
    shown = ", ".join(str(result["operation_id"]) for result in results[:_SHOWN_IDS])
    more = len(results) - _SHOWN_IDS
    return f"{shown} and {more} more" if more > 0 else shown


def _given_or_default(given: Any, known: Processor | None, name: str) -> Any:
    """What the caller says, or else what the function was registered with."""
    return given if given is not None or known is None else getattr(known, name)


def _check_id(operation_id: object) -> str:
    if not isinstance(operation_id, str) or not _OPERATION_ID.fullmatch(operation_id):
        raise InvalidOperationError(
            f"bad operation_id {operation_id!r}: use 1 to 128 printable ASCII characters without spaces"
        )
    return operation_id


def _check_user_queue(queue: object) -> str:
    name = check_queue_name(queue)
    if name == CALLBACK_QUEUE:
        raise InvalidOperationError(f"the queue {CALLBACK_QUEUE!r} is for callbacks only: choose another name")
    return name


def _check_key(key: object) -> str | None:
    if key is None or (isinstance(key, str) and key):
        return key
    raise InvalidOperationError(f"deduplication_key must be a non-empty string, got {key!r}")


def _check_timeout(timeout: object) -> float | None:
    return None if timeout is None else check_seconds("timeout", timeout, error=InvalidOperationError)
