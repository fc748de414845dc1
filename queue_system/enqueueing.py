"""How operations are made ready for Redis and what is answered about them: shared by both managers, without I/O.

What takes several round trips is a generator: it yields the calls to make, one at a time, and is sent their replies.
`manager` drives it, once with a synchronous broker and once with an asynchronous one.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Generator, Mapping, Sequence
from types import FunctionType
from typing import Any, Final, TypeAlias, TypeVar

from queue_system.broker.messages import Call
from queue_system.config import QueueConfig
from queue_system.errors import InvalidOperationError
from queue_system.keys import check_priority, check_queue_name
from queue_system.operation import encode_entity
from queue_system.registry import Processor, reference_of
from queue_system.retry import QueueRetryConfig
from queue_system.summary import status_summary
from queue_system.template import DEFAULT_PRIORITY, NO_DELAY, FunctionOrName, Part, Template

T = TypeVar("T")
Steps: TypeAlias = Generator[Call[Any], Any, T]

_OPERATION_ID = re.compile(r"[\x21-\x7e]{1,128}")
_MAX_TEMPLATES: Final = 1024  # that are kept: most calls of a process are for the same few functions
_KEPT_FOR: Final = frozenset((str, FunctionType))  # what can be a key, and is not made anew for each call


class OperationFactory:
    """The steps of enqueuing that need no connection. `QueueManager` and its asynchronous twin derive from it."""

    def __init__(self, config: QueueConfig) -> None:
        self.config = config
        # Each with the number of changes of the registry that it was made after.
        self._templates: dict[tuple[Any, ...], tuple[int, Template]] = {}

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
        if deduplication_key is not None or deduplicate:
            own_key = self._deduplication_key(entity, deduplication_key, deduplicate, custom_serializer)
        return {"template": template, "part": (own_id, entity, own_key)}

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
        if is_plain:
            if len(self._templates) >= _MAX_TEMPLATES:
                self._templates.clear()
            self._templates[key] = changes, template
        return template

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
