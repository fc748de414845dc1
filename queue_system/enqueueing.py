"""How operations are made ready for Redis and what is answered about them: shared by both managers, without I/O.

What takes several round trips is a generator: it yields the calls to make, one at a time, and is sent their replies.
`manager` drives it, once with a synchronous broker and once with an asynchronous one.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Generator, Mapping, Sequence
from functools import partial
from itertools import repeat
from types import FunctionType
from typing import Any, Final, TypeAlias, TypeVar

from queue_system.broker.messages import Call
from queue_system.config import QueueConfig
from queue_system.errors import InvalidOperationError
from queue_system.keys import check_priority, check_queue_name
from queue_system.operation import encode_entity
from queue_system.registry import FunctionRef, Processor, reference_of, tell_of_timeout
from queue_system.request import EnqueueRequest
from queue_system.retry import QueueRetryConfig
from queue_system.summary import status_summary
from queue_system.template import DEFAULT_PRIORITY, NO_DELAY, FunctionOrName, Template

T = TypeVar("T")
Steps: TypeAlias = Generator[Call[Any], Any, T]
KeyOf: TypeAlias = Callable[[dict[str, Any]], Any]
"""Gives the deduplication key of an entity."""

_OPERATION_ID = re.compile(r"[\x21-\x7e]{1,128}")
_MAX_TEMPLATES: Final = 1024  # that are kept: most calls of a process are for the same few functions
_COMMON: Final = frozenset(("queue_name", "priority", "retry_config", "on_success", "on_failure", "timeout", "delay",
                            "deduplication_window", "durability"))  # fmt: skip
"""What the operations of a batch have in common, of the arguments of `enqueue`."""
_KEPT_FOR: Final = frozenset((str, FunctionType))  # what can be a key, and is not made anew for each call


class OperationFactory:
    """The steps of enqueuing that need no connection. `QueueManager` and its asynchronous twin derive from it."""

    def __init__(self, config: QueueConfig) -> None:
        self.config = config
        # Each with the number of changes of the registry that it was made after.
        self._templates: dict[tuple[Any, ...], tuple[int, Template]] = {}
        self._told_of_timeout: set[FunctionRef] = set()

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
        own_id = self._generate_operation_id() if operation_id is None else _check_id(operation_id)
        own_key = None
        if deduplication_key is not None:
            own_key = _check_key(deduplication_key)
        elif deduplicate:
            own_key = self._key_by_content(template, entity, custom_serializer)
        return {"template": template, "part": (own_id, entity, own_key)}

    def _new_operations(
        self,
        entities: Sequence[dict[str, Any]],
        processor: FunctionOrName,
        *,
        operation_ids: Sequence[str] | None = None,
        deduplication_key: str | KeyOf | None = None,
        custom_serializer: Callable[[Any], Any] | None = None,
        deduplicate: bool = False,
        **options: Any,
    ) -> EnqueueRequest | None:
        """The request for a batch; None without an entity. What is each one's own is made when it is encoded."""
        entities = _check_sequence("entities", "dicts", entities)
        if "operation_id" in options:
            raise InvalidOperationError(
                "operation_id cannot be given for a batch, whose operations have an id each: use operation_ids=[...]"
            )
        unknown = sorted(options.keys() - _COMMON)
        if unknown:
            raise TypeError(f"enqueue_batch() got an unexpected keyword argument {unknown[0]!r}")
        if operation_ids is not None:
            operation_ids = _check_sequence("operation_ids", "texts, one for each entity", operation_ids)
            if len(operation_ids) != len(entities):
                raise InvalidOperationError(
                    f"operation_ids must have one id for each of the {len(entities):,} entities, "
                    f"not {len(operation_ids):,}"
                )
        key_of = _check_key_of(deduplication_key, len(entities))
        if not entities:
            return None
        template = self._template(processor, **options)
        ids = repeat(None) if operation_ids is None else operation_ids
        if key_of is None and deduplicate:
            key_of = partial(self._key_by_content, template, custom_serializer=custom_serializer)
        pairs = zip(ids, entities, strict=False)  # there may be no end of ids
        parts = ((self._id_of(own_id), entity, key_of and key_of(entity)) for own_id, entity in pairs)
        return EnqueueRequest(self.config, template, parts, len(entities), custom_serializer)

    def _id_of(self, given: str | None) -> str:
        return self._generate_operation_id() if given is None else _check_id(given)

    def _key_by_content(
        self, template: Template, entity: dict[str, Any], custom_serializer: Callable[[Any], Any] | None
    ) -> str:
        """Equal entities are the same work only for one processor, in one queue."""
        return f"{template.place}\n{self._hash_entity(entity, default_serializer=custom_serializer)}"

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
        changes = self.config.registry.changes
        is_plain = (
            retry_config is None
            and on_success is None
            and on_failure is None
            and timeout is None
            and delay is NO_DELAY
            and deduplication_window is None
            and durability is None
            and (queue_name is None or type(queue_name) is str)
            and (priority is DEFAULT_PRIORITY or type(priority) is str)
            and type(processor) in _KEPT_FOR
        )
        if is_plain:
            key = processor, queue_name, priority, priority is DEFAULT_PRIORITY
            kept = self._templates.get(key)
            if kept is not None and kept[0] == changes:
                return kept[1]
        known = self._processor(processor)
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
        if timeout is not None and known is not None and not known.is_async:
            self._tell_of_timeout(known, timeout)
        if is_plain:
            if len(self._templates) >= _MAX_TEMPLATES:
                self._templates.clear()
            self._templates[key] = changes, template
        return template

    def _tell_of_timeout(self, known: Processor, timeout: float) -> None:
        if known.ref not in self._told_of_timeout:  # once for a function, not for each operation
            self._told_of_timeout.add(known.ref)
            tell_of_timeout(self.config.logger, str(known.ref), timeout)

    def _status_steps(self) -> Steps[dict[str, Any]]:
        status = yield self.config.commands.status()
        return status_summary(status, self.config.keys)

    def _purge_steps(self, queue_name: str, priority: str) -> Steps[int]:
        queue, priority = check_queue_name(queue_name), check_priority(priority)
        commands = self.config.commands
        total: int = 0
        cursor: int = 0
        while True:
            taken = yield commands.purge_ready(queue, priority)
            total += taken
            if taken == 0:
                break
        while True:
            cursor, taken = yield commands.purge_delayed(queue, priority, cursor)
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


def _check_key_of(key: object, count: int) -> KeyOf | None:
    """What gives the key of each entity of a batch."""
    if key is None:
        return None
    if callable(key):
        return partial(_key_from, key)
    _check_key(key)
    if count > 1:
        raise InvalidOperationError(
            f"one deduplication_key for {count:,} entities would accept the first and call the others its duplicates: "
            "give a function, which is called with each entity and returns its key, e.g. "
            "deduplication_key=lambda entity: f\"order-{entity['id']}\", or use deduplicate=True or operation_ids=[...]"
        )
    return lambda _: str(key)


def _key_from(function: KeyOf, entity: dict[str, Any]) -> str:
    try:
        key = function(entity)
    except Exception as error:
        raise InvalidOperationError(f"the function deduplication_key raised {type(error).__name__}: {error}") from error
    if isinstance(key, str) and key != "":
        return key
    raise InvalidOperationError(f"the function deduplication_key must return a non-empty string, got {key!r}")


def _check_sequence(name: str, of_what: str, values: object) -> Sequence[Any]:
    """A copy, so that nobody changes it meanwhile."""
    if isinstance(values, Mapping | str | bytes | bytearray) or not isinstance(values, Sequence):
        raise InvalidOperationError(f"{name} must be a list of {of_what}, not {type(values).__name__}")
    return tuple(values)
