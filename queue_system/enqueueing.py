"""How operations are made ready for Redis and what is answered about them: shared by both managers, without I/O.

Each public step is a generator: it yields the calls to make and is sent their replies. `manager` drives it, once with a
synchronous broker and once with an asynchronous one.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Generator, Mapping, Sequence
from functools import lru_cache
from itertools import chain
from typing import Any, Final, TypeAlias, TypeVar

from queue_system.broker.lanes import Lane
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
from queue_system.operation import WIRE_VERSION, Envelope, encode_entity
from queue_system.registry import Processor, reference_of
from queue_system.retry import QueueRetryConfig
from queue_system.summary import status_summary

T = TypeVar("T")
Steps: TypeAlias = Generator[list[Call[Any]], list[Any], T]
FunctionOrName: TypeAlias = Callable[..., Any] | str
Part: TypeAlias = tuple[str, Any, str | None]
"""What is an operation's own among those of a batch: id, entity, deduplication key."""


class _Default(str):
    """A default that can be told from the same text given by the caller: the latter wins over a processor's own."""

    __slots__ = ()


DEFAULT_PRIORITY: Final[str] = _Default("normal")

_OPERATION_ID = re.compile(r"[\x21-\x7e]{1,128}")
_OPTIONS: Final = ("delay", "deduplication_key", "deduplication_window", "durability")  # of the call, not the operation
_WIRE_FIELDS: Final = ("v", "operation_id", "processor", "processor_module", "queue", "priority", "entity")
_PLAIN: Final = frozenset((*_WIRE_FIELDS, *_OPTIONS))  # what every operation has, and most have nothing else
_CACHED: Final = 1024  # most names that a process uses are the same few
_SHOWN_IDS = 3  # in the text of an error
_QUEUED: Final = Accepted.QUEUED
_IS_ASYNC: Final = {KIND_ASYNC: True, KIND_SYNC: False}
_OTHER_ANSWERS: Final = {
    Accepted.SCHEDULED: {"status": "scheduled"},
    Accepted.DUPLICATE_ID: {"status": "duplicate", "reason": "operation_id"},
    Accepted.DUPLICATE_KEY: {"status": "duplicate", "reason": "deduplication_key"},
}


class OperationFactory:
    """The steps of enqueuing that need no connection. `QueueManager` and its asynchronous twin derive from it."""

    def __init__(self, config: QueueConfig) -> None:
        self.config = config

    def _generate_operation_id(self) -> str:
        """A unique id: 32 hexadecimal digits."""
        return os.urandom(16).hex()

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
        if known is not None:  # what is not said is what the function was registered with
            queue_name = known.queue if queue_name is None else queue_name
            priority = known.priority or priority if isinstance(priority, _Default) else priority
            retry_config = known.retry_config if retry_config is None else retry_config
            timeout = known.timeout if timeout is None else timeout
            on_success = known.on_success if on_success is None else on_success
            on_failure = known.on_failure if on_failure is None else on_failure
        if deduplicate and deduplication_key is None:
            deduplication_key = self._hash_entity(entity, default_serializer=custom_serializer)
        operation: dict[str, Any] = {
            "v": WIRE_VERSION,
            "operation_id": self._generate_operation_id() if operation_id is None else _check_id(operation_id),
            "processor": reference.name,
            "processor_module": reference.module,
            "queue": _check_user_queue(reference.name.rpartition(".")[2] if queue_name is None else queue_name),
            "priority": check_priority(priority),
            "entity": entity,
            "delay": _check_delay(delay),
            "deduplication_key": None if deduplication_key is None else _check_key(deduplication_key),
            "deduplication_window": self.config.deduplication_window
            if deduplication_window is None
            else check_seconds("deduplication_window", deduplication_window, error=InvalidOperationError),
            "durability": self.config.durability if durability is None else check_durability(durability),
        }
        if retry_config is not None:
            operation["retry_config"] = _check_retry_config(retry_config).to_dict()
        if timeout is not None:
            operation["timeout"] = check_seconds("timeout", timeout, error=InvalidOperationError)
        if on_success is not None:
            operation["on_success"] = self._callback_reference(on_success)
        if on_failure is not None:
            operation["on_failure"] = self._callback_reference(on_failure)
        return operation

    def _new_operations(
        self, entities: Sequence[dict[str, Any]], processor: FunctionOrName, options: dict[str, Any]
    ) -> tuple[dict[str, Any], list[Part]]:
        """The first operation, and what is each one's own: what they share is checked once."""
        if isinstance(entities, Mapping | str | bytes) or not isinstance(entities, Sequence):
            raise InvalidOperationError(f"entities must be a list of dicts, not {type(entities).__name__}")
        if "operation_id" in options:
            raise InvalidOperationError("operation_id cannot be given for a batch: each operation gets its own")
        if not entities:
            return {}, []
        first = self._new_operation(entities[0], processor, **options)
        key = first["deduplication_key"]
        parts: list[Part] = [(first["operation_id"], entities[0], key)]
        if options.get("deduplicate") and options.get("deduplication_key") is None:
            serializer = options.get("custom_serializer")
            for entity in entities[1:]:
                key = self._hash_entity(entity, default_serializer=serializer)
                parts.append((self._generate_operation_id(), entity, key))
        else:
            parts += [(self._generate_operation_id(), entity, key) for entity in entities[1:]]
        return first, parts

    def _enqueue_steps(
        self,
        first: Mapping[str, Any],
        parts: Sequence[Part],
        custom_serializer: Callable[[Any], Any] | None,
    ) -> Steps[list[dict[str, Any]]]:
        """Encode the first and those that share all but their parts with it, send them, tell what became of each."""
        if not parts:
            return []
        hooks = self.config.hooks
        with hooks.enqueue_context(_started(first, parts)):
            try:
                kind, durable = self._kind_of(first), first.get("durability") == "wait"
                calls, lanes = self._calls(first, kind, self._encode(first, parts, custom_serializer))
                if durable:
                    calls.append(self._confirm())
                results = _expected(first, kind, parts)  # before the reply: afterwards it would be in its way
                try:
                    replies = yield calls
                finally:
                    self.config.commands.lanes.give_back(lanes)
                confirmed = replies.pop() if durable else 0
                _tell_others(results, replies)
                if durable:
                    self._check_durable(first, results, confirmed)
            except QueueError as error:
                if isinstance(error, BrokerUnavailableError):
                    error.operation_ids = tuple(operation_id for operation_id, _, _ in parts)
                hooks.on_event(EnqueueFailed(first["queue"], type(error).__name__))
                raise
        self._tell_enqueued(first, results)
        return results

    def _calls(
        self, first: Mapping[str, Any], kind: str, new: Sequence[NewOperation]
    ) -> tuple[list[Call[Any]], list[Lane]]:
        """What to ask of Redis, in one round trip, and the lanes that were taken for it."""
        commands = self.config.commands
        calls: list[Call[Any]] = []
        lanes: list[Lane] = []
        for start in range(0, len(new), MAX_ENQUEUE):
            call = commands.enqueue(first["queue"], first["priority"], kind, new[start : start + MAX_ENQUEUE])
            calls.append(call)
            if call.lane is not None:
                lanes.append(call.lane)
        return calls, lanes

    def _confirm(self) -> Call[int | QueueError]:
        return self.config.commands.confirm(self.config.durability_replicas, self.config.durability_timeout)

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
        known = registry.by_function(processor)
        if known is not None:
            return known
        if not callable(processor):
            raise InvalidOperationError(f"a processor is a function or 'module:name', not {type(processor).__name__}")
        reference = reference_of(processor)
        return registry.register(processor, name=reference.name, module=reference.module)

    def _callback_reference(self, callback: FunctionOrName) -> tuple[str, str | None]:
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
        self, first: Mapping[str, Any], parts: Sequence[Part], custom_serializer: Callable[[Any], Any] | None
    ) -> list[NewOperation]:
        encode, seal, serialize = self._envelope(first).encode, self.config.signer.seal, self._serialize_entity
        queue, delay, window = f"{first['priority']}:{first['queue']}", first["delay"], first["deduplication_window"]
        return [
            NewOperation(
                operation_id,
                seal(operation_id, queue, encode(operation_id, serialize(entity, custom_serializer).encode())),
                delay,
                key,
                window,
            )
            for operation_id, entity, key in parts
        ]

    def _envelope(self, first: Mapping[str, Any]) -> Envelope:
        """What all of them share on the wire."""
        headers: dict[str, str] = {}
        self.config.hooks.inject(headers)
        max_bytes = self.config.max_operation_bytes
        if first.keys() == _PLAIN and not headers:
            return _plain_envelope(
                first["v"], first["processor"], first["processor_module"], first["queue"], first["priority"], max_bytes
            )
        shared = {name: value for name, value in first.items() if name not in _OPTIONS}
        if headers:
            shared["headers"] = headers
        return Envelope(shared, max_bytes=max_bytes)

    def _tell_enqueued(self, first: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> None:
        accepted = tuple([result["operation_id"] for result in results if result["status"] != "duplicate"])
        duplicates = len(results) - len(accepted)
        self.config.hooks.on_event(
            Enqueued(first["queue"], first["priority"], first["processor"], len(accepted), duplicates, accepted)
        )


def part_of(operation: Mapping[str, Any]) -> Part:
    """What is this operation's own."""
    return operation["operation_id"], operation["entity"], operation["deduplication_key"]


def _started(first: Mapping[str, Any], parts: Sequence[Part]) -> EnqueueStarted:
    own_id = first["operation_id"] if len(parts) == 1 else None
    return EnqueueStarted(first["queue"], first["priority"], first["processor"], len(parts), own_id, first["delay"])


@lru_cache(_CACHED)
def _plain_envelope(
    version: int, processor: str, module: str | None, queue: str, priority: str, max_bytes: int
) -> Envelope:
    values: tuple[Any, ...] = (version, "", processor, module, queue, priority, {})
    return Envelope(dict(zip(_WIRE_FIELDS, values, strict=True)), max_bytes=max_bytes)


def _expected(first: Mapping[str, Any], kind: str, parts: Sequence[Part]) -> list[dict[str, Any]]:
    """What `enqueue` returns for each operation, if all of them are queued."""
    queue, priority, processor, is_async = first["queue"], first["priority"], first["processor"], _IS_ASYNC.get(kind)
    results = []
    for operation_id, _, _ in parts:
        results.append(
            {
                "operation_id": operation_id,
                "status": "queued",
                "queue": queue,
                "priority": priority,
                "processor": processor,
                "is_async": is_async,
            }
        )
    return results


def _tell_others(results: Sequence[dict[str, Any]], replies: Sequence[Sequence[tuple[Accepted, str]]]) -> None:
    """Say of those that are not queued what became of them."""
    answers = replies[0] if len(replies) == 1 else list(chain.from_iterable(replies))
    for result, (accepted, holder) in zip(results, answers, strict=True):
        if accepted is not _QUEUED:
            result.update(_OTHER_ANSWERS[accepted])
            if accepted is not Accepted.SCHEDULED:
                result["duplicate_of"] = holder


def _ids(results: Sequence[Mapping[str, Any]]) -> str:
    shown = ", ".join(str(result["operation_id"]) for result in results[:_SHOWN_IDS])
    more = len(results) - _SHOWN_IDS
    return f"{shown} and {more} more" if more > 0 else shown


def _check_id(operation_id: object) -> str:
    if not isinstance(operation_id, str) or not _OPERATION_ID.fullmatch(operation_id):
        raise InvalidOperationError(
            f"bad operation_id {operation_id!r}: use 1 to 128 printable ASCII characters without spaces"
        )
    return operation_id


def _check_user_queue(queue: object) -> str:
    return _checked_queue(queue) if isinstance(queue, str) else check_queue_name(queue)


@lru_cache(_CACHED)
def _checked_queue(queue: str) -> str:
    name = check_queue_name(queue)
    if name == CALLBACK_QUEUE:
        raise InvalidOperationError(f"the queue {CALLBACK_QUEUE!r} is for callbacks only: choose another name")
    return name


def _check_delay(delay: object) -> float:
    if type(delay) is float and not delay:  # most often
        return delay
    return check_seconds("delay", delay, zero=True, error=InvalidOperationError)


def _check_key(key: object) -> str:
    if isinstance(key, str) and key:
        return key
    raise InvalidOperationError(f"deduplication_key must be a non-empty string, got {key!r}")


def _check_retry_config(retry_config: object) -> QueueRetryConfig:
    if not isinstance(retry_config, QueueRetryConfig):
        raise InvalidOperationError(f"retry_config must be a QueueRetryConfig, not {type(retry_config).__name__}")
    return retry_config
