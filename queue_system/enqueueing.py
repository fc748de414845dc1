"""How operations are made ready for Redis and what is answered about them: shared by both managers, without I/O.

Each public step is a generator: it yields the calls to make, with what to do while Redis is at work on them, and is
sent their replies. `manager` drives it, once with a synchronous broker and once with an asynchronous one.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Generator, Mapping, Sequence
from itertools import chain
from typing import Any, Final, TypeAlias, TypeVar

from queue_system.broker.lanes import Lane
from queue_system.broker.messages import (
    MAX_ENQUEUE,
    Accepted,
    Call,
    Meanwhile,
    NewOperation,
)
from queue_system.config import QueueConfig
from queue_system.errors import BrokerUnavailableError, InvalidOperationError, NotDurableError, QueueError
from queue_system.events import (
    Enqueued,
    EnqueueFailed,
    EnqueueStarted,
)
from queue_system.keys import check_priority, check_queue_name
from queue_system.operation import encode_entity
from queue_system.registry import Processor, reference_of
from queue_system.retry import QueueRetryConfig
from queue_system.summary import status_summary
from queue_system.template import DEFAULT_PRIORITY, NO_DELAY, FunctionOrName, Part, Template

T = TypeVar("T")
Steps: TypeAlias = Generator[tuple[list[Call[Any]], Meanwhile | None], list[Any], T]


_OPERATION_ID = re.compile(r"[\x21-\x7e]{1,128}")
_MAX_TEMPLATES: Final = 1024  # that are kept: most calls of a process are for the same few functions
_SHOWN_IDS = 3  # in the text of an error
_QUEUED: Final = Accepted.QUEUED
_OTHER_ANSWERS: Final = {
    Accepted.SCHEDULED: {"status": "scheduled"},
    Accepted.DUPLICATE_ID: {"status": "duplicate", "reason": "operation_id"},
    Accepted.DUPLICATE_KEY: {"status": "duplicate", "reason": "deduplication_key"},
}


class OperationFactory:
    """The steps of enqueuing that need no connection. `QueueManager` and its asynchronous twin derive from it."""

    def __init__(self, config: QueueConfig) -> None:
        self.config = config
        self._templates: dict[tuple[Any, ...], Template] = {}

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
        template: Template,
        entity: dict[str, Any],
        operation_id: str | None,
        deduplication_key: str | None,
        deduplicate: bool,
        custom_serializer: Callable[[Any], Any] | None,
    ) -> dict[str, Any]:
        """What `_queue_operation` takes: the operation's own, checked, and its template."""
        return {
            "operation_id": self._generate_operation_id() if operation_id is None else _check_id(operation_id),
            "entity": entity,
            "deduplication_key": self._deduplication_key(entity, deduplication_key, deduplicate, custom_serializer),
            "template": template,
        }

    def _new_operations(
        self,
        entities: Sequence[dict[str, Any]],
        processor: FunctionOrName,
        *,
        deduplication_key: str | None = None,
        custom_serializer: Callable[[Any], Any] | None = None,
        deduplicate: bool = False,
        **options: Any,
    ) -> tuple[Template | None, list[Part]]:
        """What they have in common, and what is each one's own; no template without an entity."""
        if isinstance(entities, Mapping | str | bytes) or not isinstance(entities, Sequence):
            raise InvalidOperationError(f"entities must be a list of dicts, not {type(entities).__name__}")
        if "operation_id" in options:
            raise InvalidOperationError("operation_id cannot be given for a batch: each operation gets its own")
        if not entities:
            return None, []
        template = self._template(processor, **options)
        new_id, key_of = self._generate_operation_id, self._deduplication_key
        return template, [
            (new_id(), entity, key_of(entity, deduplication_key, deduplicate, custom_serializer)) for entity in entities
        ]

    def _deduplication_key(
        self,
        entity: dict[str, Any],
        key: str | None,
        deduplicate: bool,
        custom_serializer: Callable[[Any], Any] | None,
    ) -> str | None:
        if key is not None:
            return _check_key(key)
        return self._hash_entity(entity, default_serializer=custom_serializer) if deduplicate else None

    def _template(
        self,
        processor: FunctionOrName,
        queue_name: str | None = None,
        priority: str = DEFAULT_PRIORITY,
        retry_config: QueueRetryConfig | None = None,
        on_success: FunctionOrName | None = None,
        on_failure: FunctionOrName | None = None,
        timeout: float | None = None,
        delay: float = NO_DELAY,
        deduplication_window: float | None = None,
        durability: str | None = None,
    ) -> Template:
        """Check what operations have in common; registers functions given as such.

        Most calls name a function and nothing else, or a queue: what those have in common is kept.
        """
        known = self._processor(processor)
        is_plain = (
            known is not None
            and retry_config is None
            and on_success is None
            and on_failure is None
            and timeout is None
            and delay is NO_DELAY
            and deduplication_window is None
            and durability is None
            and (queue_name is None or type(queue_name) is str)
            and isinstance(priority, str)
        )
        key = id(known), queue_name, priority, priority is DEFAULT_PRIORITY
        if is_plain and (kept := self._templates.get(key)) is not None and kept.known is known:
            return kept
        template = Template.of(
            known,
            reference_of(processor) if known is None else known.ref,
            queue_name,
            priority,
            retry_config,
            timeout,
            on_success,
            on_failure,
            callback_reference=self._callback_reference,
            delay=delay,
            deduplication_window=deduplication_window,
            durability=durability,
        )
        if is_plain:
            if len(self._templates) >= _MAX_TEMPLATES:
                self._templates.clear()
            self._templates[key] = template
        return template

    def _enqueue_steps(
        self,
        template: Template | None,
        parts: Sequence[Part],
        custom_serializer: Callable[[Any], Any] | None,
    ) -> Steps[list[dict[str, Any]]]:
        """Encode operations, send them, tell what became of each."""
        if template is None:
            return []
        hooks = self.config.hooks
        with hooks.enqueue_context(_started(template, parts)):
            try:
                durable = (template.durability or self.config.durability) == "wait"
                calls, lanes = self._calls(template, self._encode(template, parts, custom_serializer))
                if durable:
                    calls.append(self._confirm())
                results: list[dict[str, Any]] = []
                try:
                    replies = yield calls, lambda: results.extend(template.expected(parts))
                finally:
                    self.config.commands.lanes.give_back(lanes)
                confirmed = replies.pop() if durable else 0
                _tell_others(results, replies)
                if durable:
                    self._check_durable(template, results, confirmed)
            except QueueError as error:
                if isinstance(error, BrokerUnavailableError):
                    error.operation_ids = tuple(operation_id for operation_id, _, _ in parts)
                hooks.on_event(EnqueueFailed(template.queue, type(error).__name__))
                raise
        self._tell_enqueued(template, results)
        return results

    def _calls(self, template: Template, new: Sequence[NewOperation]) -> tuple[list[Call[Any]], list[Lane]]:
        """What to ask of Redis, in one round trip, and the lanes that were taken for it."""
        queue, priority, kind, enqueue = template.queue, template.priority, template.kind, self.config.commands.enqueue
        calls: list[Call[Any]] = []
        lanes: list[Lane] = []
        for start in range(0, len(new), MAX_ENQUEUE):
            call = enqueue(queue, priority, kind, new[start : start + MAX_ENQUEUE])
            calls.append(call)
            if call.lane is not None:
                lanes.append(call.lane)
        return calls, lanes

    def _confirm(self) -> Call[int | QueueError]:
        return self.config.commands.confirm(self.config.durability_replicas, self.config.durability_timeout)

    def _check_durable(
        self, template: Template, results: Sequence[dict[str, Any]], confirmed: int | QueueError
    ) -> None:
        replicas = self.config.durability_replicas
        count, cause = (0, confirmed) if isinstance(confirmed, QueueError) else (confirmed, None)
        if count < replicas:
            self._tell_enqueued(template, results)
            reason = cause or f"{count} of {replicas} replicas within {self.config.durability_timeout:g} s"
            raise NotDurableError(
                f"accepted by the primary but not confirmed ({reason}): {_ids(results)}; enqueue again with the same "
                "operation_id to ask again, which is safe while they are live or within done_ttl",
                results=results,
                confirmed=count,
                replicas=replicas,
            ) from cause

    def _status_steps(self) -> Steps[dict[str, Any]]:
        (status,) = yield [self.config.commands.status()], None
        return status_summary(status, self.config.keys)

    def _purge_steps(self, queue_name: str, priority: str) -> Steps[int]:
        queue, priority = check_queue_name(queue_name), check_priority(priority)
        commands = self.config.commands
        total: int = 0
        cursor: int = 0
        while True:
            (taken,) = yield [commands.purge_ready(queue, priority)], None
            total += taken
            if taken == 0:
                break
        while True:
            ((cursor, taken),) = yield [commands.purge_delayed(queue, priority, cursor)], None
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

    def _encode(
        self, template: Template, parts: Sequence[Part], custom_serializer: Callable[[Any], Any] | None
    ) -> list[NewOperation]:
        headers: dict[str, str] = {}
        self.config.hooks.inject(headers)
        encode, seal, serialize = template.envelope(headers).encode, self.config.signer.seal, self._serialize_entity
        queue, delay, max_bytes = template.name, template.delay, self.config.max_operation_bytes
        window = self.config.deduplication_window if template.window is None else template.window
        new: list[NewOperation] = []
        for operation_id, entity, key in parts:
            body = encode(operation_id, serialize(entity, custom_serializer).encode(), max_bytes)
            new.append(NewOperation(operation_id, seal(operation_id, queue, body), delay, key, window))
        return new

    def _tell_enqueued(self, template: Template, results: Sequence[Mapping[str, Any]]) -> None:
        accepted = tuple([result["operation_id"] for result in results if result["status"] != "duplicate"])
        duplicates = len(results) - len(accepted)
        self.config.hooks.on_event(
            Enqueued(template.queue, template.priority, template.processor, len(accepted), duplicates, accepted)
        )


def part_of(operation: Mapping[str, Any]) -> Part:
    """What is this operation's own."""
    return operation["operation_id"], operation["entity"], operation["deduplication_key"]


def _started(template: Template, parts: Sequence[Part]) -> EnqueueStarted:
    own_id = parts[0][0] if len(parts) == 1 else None
    return EnqueueStarted(template.queue, template.priority, template.processor, len(parts), own_id, template.delay)


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


def _check_key(key: object) -> str:
    if isinstance(key, str) and key:
        return key
    raise InvalidOperationError(f"deduplication_key must be a non-empty string, got {key!r}")
