"""What the operations of one call to enqueue have in common: checked once, encoded once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, Self, TypeAlias

from queue_system.broker.messages import KIND_ASYNC, KIND_SYNC, KIND_UNKNOWN
from queue_system.checks import check_durability, check_seconds
from queue_system.errors import ConfigurationError, InvalidOperationError
from queue_system.keys import CALLBACK_QUEUE, check_priority, check_queue_name
from queue_system.operation import WIRE_VERSION, Envelope
from queue_system.registry import FunctionRef, Processor
from queue_system.retry import QueueRetryConfig

FunctionOrName: TypeAlias = Callable[..., Any] | str
Part: TypeAlias = tuple[str, Any, str | None]
"""What is an operation's own: id, entity, deduplication key."""


class _Default(str):
    """A default that can be told from the same text given by the caller: the latter wins over a processor's own."""

    __slots__ = ()


DEFAULT_PRIORITY: Final[str] = _Default("normal")
NO_DELAY: Final = 0.0


class Template:
    """See `of`, which makes one.

    Attributes:
        known: the registered processor; None when this process does not know it.
        processor: its name.
        queue, priority: where to.
        name: ``{priority}:{queue}``.
        kind: ``a`` async, ``s`` sync, ``u`` when this process does not know the function.
        delay: seconds.
        window: of deduplication, in seconds; None for that of the configuration.
        durability: None for that of the configuration.
        envelope: encodes them.
        answer: what `enqueue` returns of each that is queued, beside its id.
    """

    __slots__ = (
        "_fields",
        "answer",
        "delay",
        "durability",
        "envelope",
        "kind",
        "known",
        "name",
        "priority",
        "processor",
        "queue",
        "window",
    )

    def __init__(self, known: Processor | None, fields: dict[str, Any]) -> None:
        self.known = known
        self.processor: str = fields["processor"]
        self.queue: str = fields["queue"]
        self.priority: str = fields["priority"]
        self.name = f"{self.priority}:{self.queue}"
        self.kind = KIND_UNKNOWN if known is None else KIND_ASYNC if known.is_async else KIND_SYNC
        self.delay = NO_DELAY
        self.window: float | None = None
        self.durability: str | None = None
        self._fields = fields
        self.envelope = Envelope(fields)
        self.answer = {
            "status": "queued",
            "queue": self.queue,
            "priority": self.priority,
            "processor": self.processor,
            "is_async": None if known is None else known.is_async,
        }

    @property
    def place(self) -> str:
        """Which function it is, of which queue, whatever the priority."""
        return f"{self._fields['processor_module'] or ''}:{self.processor} {self.queue}"

    @classmethod
    def of(
        cls,
        known: Processor | None,
        reference: FunctionRef,
        queue_name: str | None,
        priority: str,
        retry_config: QueueRetryConfig | None,
        timeout: float | None,
        on_success: FunctionOrName | None,
        on_failure: FunctionOrName | None,
        *,
        callback_reference: Callable[[FunctionOrName], tuple[str, str | None]],
        delay: float,
        deduplication_window: float | None,
        durability: str | None,
    ) -> Self:
        """Check everything. What is not given is what the function was registered with.

        `known` is the registered processor, if there is one, `reference` its name and module; `callback_reference`
        gives those of a callback. All others are as for `QueueManager.enqueue`.

        Raises:
            InvalidOperationError, ConfigurationError: as `QueueManager.enqueue`.
        """
        if known is not None:
            queue_name = known.queue if queue_name is None else queue_name
            priority = known.priority or priority if isinstance(priority, _Default) else priority
            retry_config = known.retry_config if retry_config is None else retry_config
            timeout = known.timeout if timeout is None else timeout
            on_success = known.on_success if on_success is None else on_success
            on_failure = known.on_failure if on_failure is None else on_failure
        fields: dict[str, Any] = {
            "v": WIRE_VERSION,
            "operation_id": "",  # its place
            "processor": reference.name,
            "processor_module": reference.module,
            "queue": _own_queue(reference.name) if queue_name is None else _check_user_queue(queue_name),
            "priority": check_priority(priority),
        }
        if retry_config is not None:
            fields["retry_config"] = _check_retry_config(retry_config).to_dict()
        if timeout is not None:
            fields["timeout"] = check_seconds("timeout", timeout, error=InvalidOperationError)
        if on_success is not None:
            fields["on_success"] = callback_reference(on_success)
        if on_failure is not None:
            fields["on_failure"] = callback_reference(on_failure)
        template = cls(known, fields)
        template.delay = check_seconds("delay", delay, zero=True, error=InvalidOperationError)
        if deduplication_window is not None:
            template.window = check_seconds("deduplication_window", deduplication_window, error=InvalidOperationError)
        template.durability = None if durability is None else check_durability(durability)
        return template

    def at(self, queue_name: str, priority: str) -> Template:
        """The same for another queue."""
        if queue_name == self.queue and priority == self.priority:
            return self
        place = {"queue": _check_user_queue(queue_name), "priority": check_priority(priority)}
        other = Template(self.known, {**self._fields, **place})
        other.delay, other.window, other.durability = self.delay, self.window, self.durability
        return other

    def envelope_with(self, headers: Mapping[str, str]) -> Envelope:
        """What encodes them with these headers."""
        return Envelope({**self._fields, "headers": headers})


def _check_user_queue(queue: object) -> str:
    name = check_queue_name(queue)
    if name == CALLBACK_QUEUE:
        raise InvalidOperationError(f"the queue {CALLBACK_QUEUE!r} is for callbacks only: choose another name")
    return name


def _own_queue(function: str) -> str:
    """The queue of those that name none: that of the function's name."""
    name = function.rpartition(".")[2]
    try:
        return _check_user_queue(name)
    except ConfigurationError as error:
        raise ConfigurationError(
            f"the function's name {name!r} cannot be the name of its queue: give queue_name=, 1 to 64 characters of "
            "A-Z, a-z, 0-9, '_', '.' and '-'"
        ) from error


def _check_retry_config(retry_config: object) -> QueueRetryConfig:
    if not isinstance(retry_config, QueueRetryConfig):
        raise InvalidOperationError(f"retry_config must be a QueueRetryConfig, not {type(retry_config).__name__}")
    return retry_config
