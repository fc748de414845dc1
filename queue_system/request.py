"""One request to enqueue: what is asked of Redis, what is told about it, and what is returned. Without I/O."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from itertools import chain
from types import TracebackType
from typing import Any, Final, Self

from queue_system.broker.messages import MAX_ENQUEUE, Accepted, Call, NewOperation
from queue_system.config import QueueConfig
from queue_system.errors import BrokerUnavailableError, NotDurableError, QueueError
from queue_system.events import Enqueued, EnqueueFailed, EnqueueStarted
from queue_system.hooks import NO_CONTEXT
from queue_system.operation import encode_entity
from queue_system.template import Part, Template

_SHOWN_IDS: Final = 3  # in the text of an error
_QUEUED: Final = Accepted.QUEUED
_OTHER_ANSWERS: Final = {
    Accepted.SCHEDULED: {"status": "scheduled"},
    Accepted.DUPLICATE_ID: {"status": "duplicate", "reason": "operation_id"},
    Accepted.DUPLICATE_KEY: {"status": "duplicate", "reason": "deduplication_key"},
}


class EnqueueRequest:
    """Within it, `calls` are sent in one round trip, `expect` is done meanwhile, and `take` is given their replies.

    At its end, those who listen are told how it went.

    Args:
        config: for what queue system, with what limits.
        template: what its operations have in common.
        parts: what is each one's own, one at least.
        custom_serializer: as for `QueueManager.enqueue`.

    Attributes:
        results: what `enqueue` returns for each operation.
    """

    __slots__ = (
        "_calls",
        "_config",
        "_context",
        "_enqueued",
        "_parts",
        "_serializer",
        "_template",
        "_waits",
        "results",
    )

    def __init__(
        self,
        config: QueueConfig,
        template: Template,
        parts: Sequence[Part],
        custom_serializer: Callable[[Any], Any] | None,
    ) -> None:
        self._config = config
        self._template = template
        self._parts = parts
        self._serializer = custom_serializer
        self._waits = (template.durability or config.durability) == "wait"
        self._calls: list[Call[Any]] = []
        self._context: AbstractContextManager[None] = NO_CONTEXT
        self._enqueued: Enqueued
        self.results: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        template, parts = self._template, self._parts
        own_id = parts[0][0] if len(parts) == 1 else None
        self._context = context = self._config.hooks.enqueue_context(
            EnqueueStarted(template.queue, template.priority, template.processor, len(parts), own_id, template.delay)
        )
        if context is not NO_CONTEXT:
            context.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for call in self._calls:
            if call.lane is not None:
                self._config.commands.lanes.give_back(call.lane)
        if isinstance(error, QueueError):
            self._failed(error)
        if self._context is not NO_CONTEXT:
            self._context.__exit__(kind, error, trace)
        if error is None:
            self._config.hooks.on_event(self._enqueued)

    def calls(self) -> list[Call[Any]]:
        """What to ask of Redis, encoded.

        Raises:
            SerializationError, EntityTooLargeError, InvalidOperationError: an entity cannot be enqueued as it is.
        """
        template, commands, new = self._template, self._config.commands, self._encoded()
        for start in range(0, len(new), MAX_ENQUEUE):
            batch = new[start : start + MAX_ENQUEUE]
            self._calls.append(commands.enqueue(template.queue, template.priority, template.kind, batch))
        if self._waits:
            self._calls.append(commands.confirm(self._config.durability_replicas, self._config.durability_timeout))
        return self._calls

    def expect(self) -> None:
        """Put together what holds if all are queued, as most are. It may be done again."""
        template = self._template
        answer, ids = template.answer, tuple([part[0] for part in self._parts])
        self.results = [{"operation_id": operation_id, **answer} for operation_id in ids]
        self._enqueued = Enqueued(template.queue, template.priority, template.processor, len(ids), 0, ids)

    def take(self, replies: list[Any]) -> None:
        """Correct what was expected by what Redis has said.

        Raises:
            NotDurableError: too few replicas have confirmed it.
        """
        confirmed = replies.pop() if self._waits else 0
        self._correct(replies[0] if len(replies) == 1 else list(chain.from_iterable(replies)))
        if self._waits:
            self._check_durable(confirmed)

    def _encoded(self) -> list[NewOperation]:
        config, template, serializer = self._config, self._template, self._serializer
        headers: dict[str, str] = {}
        config.hooks.inject(headers)
        envelope = template.envelope_with(headers) if headers else template.envelope
        encode, seal = envelope.encode, config.signer.seal
        queue, delay, max_bytes, max_depth = template.name, template.delay, config.max_operation_bytes, config.max_depth
        window = config.deduplication_window if template.window is None else template.window
        new: list[NewOperation] = []
        for operation_id, entity, key in self._parts:
            body = encode(operation_id, encode_entity(entity, serializer, max_depth=max_depth), max_bytes)
            new.append(NewOperation(operation_id, seal(operation_id, queue, body), delay, key, window))
        return new

    def _correct(self, answers: Sequence[tuple[Accepted, str]]) -> None:
        if len(answers) == 1 == len(self._parts) and answers[0][0] is _QUEUED:
            return
        duplicates = 0
        for result, (accepted, holder) in zip(self.results, answers, strict=True):
            if accepted is _QUEUED:
                continue
            result.update(_OTHER_ANSWERS[accepted])
            if accepted is not Accepted.SCHEDULED:
                result["duplicate_of"] = holder
                duplicates += 1
        if duplicates:
            ids = tuple([each["operation_id"] for each in self.results if each["status"] != "duplicate"])
            template = self._template
            self._enqueued = Enqueued(template.queue, template.priority, template.processor, len(ids), duplicates, ids)

    def _check_durable(self, confirmed: int | QueueError) -> None:
        replicas = self._config.durability_replicas
        count, cause = (0, confirmed) if isinstance(confirmed, QueueError) else (confirmed, None)
        if count < replicas:
            self._config.hooks.on_event(self._enqueued)
            reason = cause or f"{count} of {replicas} replicas within {self._config.durability_timeout:g} s"
            raise NotDurableError(
                f"accepted by the primary but not confirmed ({reason}): {_ids(self.results)}; enqueue again with the "
                "same operation_id to ask again, which is safe while they are live or within done_ttl",
                results=self.results,
                confirmed=count,
                replicas=replicas,
            ) from cause

    def _failed(self, error: QueueError) -> None:
        if isinstance(error, BrokerUnavailableError):
            error.operation_ids = tuple(operation_id for operation_id, _, _ in self._parts)
        self._config.hooks.on_event(EnqueueFailed(self._template.queue, type(error).__name__))


def _ids(results: Sequence[dict[str, Any]]) -> str:
    shown = ", ".join(str(result["operation_id"]) for result in results[:_SHOWN_IDS])
    more = len(results) - _SHOWN_IDS
    return f"{shown} and {more} more" if more > 0 else shown
