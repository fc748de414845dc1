"""`QueueManager` and `AsyncQueueManager`: the producer's side. Thin: what they do is in `enqueueing` and `request`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from operator import attrgetter
from typing import Any, Final

from queue_system.broker.per_loop import PerLoop
from queue_system.broker.producing import AsyncProducer
from queue_system.config import QueueConfig
from queue_system.enqueueing import OperationFactory, Steps, T
from queue_system.errors import BrokerUnavailableError, QueueError
from queue_system.request import EnqueueRequest
from queue_system.retry import QueueRetryConfig
from queue_system.template import DEFAULT_PRIORITY, NO_DELAY, FunctionOrName
from queue_system.utils import circuit_breaker, try_catch

# What the package raises on purpose tells its story already; anything else is logged where it came up.
_logged = try_catch(log=lambda error: not isinstance(error, QueueError))
_TURN: Final = 0.002  # seconds for which a large batch is encoded before other tasks have their turn
_guarded = circuit_breaker(breaker=attrgetter("config.breaker"), exceptions=(BrokerUnavailableError,))


class QueueManager(OperationFactory):
    """Enqueues operations. Thread-safe.

    Args:
        config: where to, and with what limits.
    """

    def __init__(self, config: QueueConfig) -> None:
        super().__init__(config)

    @_logged
    def enqueue(
        self,
        entity: dict[str, Any],
        processor: FunctionOrName,
        queue_name: str | None = None,
        priority: str = DEFAULT_PRIORITY,
        operation_id: str | None = None,
        retry_config: QueueRetryConfig | None = None,
        on_success: FunctionOrName | None = None,
        on_failure: FunctionOrName | None = None,
        timeout: float | None = None,
        deduplication_key: str | None = None,
        custom_serializer: Callable[[Any], Any] | None = None,
        *,
        delay: float = NO_DELAY,
        deduplicate: bool = False,
        deduplication_window: float | None = None,
        durability: str | None = None,
    ) -> dict[str, Any]:
        """Enqueue one operation. What is not given comes from the function's `@processor(...)`, if it has one.

        Args:
            entity: a dict that has a JSON form; handed to the processor.
            processor: a module-level function, sync or async, or its name as ``module:name``. A name that this
                process has not registered or imported brings none of the defaults of `@processor(...)`.
            queue_name: the processor's name by default; matches ``[A-Za-z0-9_.-]{1,64}``.
            priority: ``high``, ``normal`` or ``low``; strict: a lower one waits while a higher one is ready.
            operation_id: yours, 1 to 128 printable characters, or None for a unique one. An id that is in the
                queue already is not accepted again.
            retry_config: when and how often to try again; by default 5 attempts with exponential backoff.
            on_success: called with ``{"operation_id", "queue", "priority", "processor", "entity", "attempts",
                "result"}``, where `result` is what the processor returned. A value in it that has no JSON form is given
                as ``{"__unserializable__": "module.Type"}``.
            on_failure: called with the same, and ``"reason"`` and ``"error"`` (type, message) instead of `result`,
                when the operation is given up.
            timeout: seconds for one attempt of an async processor; by default the worker's `work_timeout`. A sync
                processor has no time limit, and a timeout for one is logged as a warning: with it, its thread counts as
                abandoned later, and an awaitable that it returns is awaited for no longer.
            deduplication_key: an operation with the key of one that was accepted within the window is not accepted,
                whatever the processors and queues of the two: a key counts for all of the `queue_prefix`. Put the
                processor's name into it when it is to count for that one only.
            custom_serializer: called with each value of the entity that has no JSON form.
            delay: seconds from now until it is ready.
            deduplicate: the same entity for the same processor in the same queue is not accepted within the window. A
                `deduplication_key` wins over it.
            deduplication_window: seconds from the due time; by default that of the configuration (1 hour). The key
                is free again before that when the operation ends in failures or is purged. When a failure is put back
                into its queue, it takes its key again for a whole window, unless another operation has it by then.
            durability: ``primary`` or ``wait``; by default that of the configuration, which see.

        Returns:
            ``operation_id``, ``status`` (``queued``, ``scheduled`` or ``duplicate``), ``queue``, ``priority``,
            ``processor``, and ``is_async`` (None when this process does not know the function). Of a duplicate all of
            these are those of the operation that is there, None where they are not known; it has ``reason``
            (``operation_id`` or ``deduplication_key``) and ``duplicate_of``, which is that operation's id, too.

        Raises:
            InvalidOperationError: the operation cannot be enqueued as it is; the text says what to do.
            ConfigurationError: a bad queue name, priority or durability.
            BrokerUnavailableError: Redis cannot serve now. It has been tried `max_connection_retries` times, and of all
                these tries at most one was carried out. When the error is `ambiguous`, one may have been, and calling
                again is another request: give an `operation_id` (the error has it in `operation_ids`) and a `done_ttl`
                above the time that you go on trying, and the second is told as a duplicate of the first.
            NotDurableError: accepted, but with ``durability="wait"`` too few replicas have confirmed it in time.
        """
        template = self._template(
            processor,
            queue_name,
            priority,
            retry_config,
            on_success,
            on_failure,
            timeout,
            delay,
            deduplication_window,
            durability,
        )
        operation = self._new_operation(
            template, entity, operation_id, deduplication_key, deduplicate, custom_serializer
        )
        return self._queue_operation(operation, template.queue, template.priority, custom_serializer)

    @_logged
    def enqueue_batch(
        self, entities: list[dict[str, Any]], processor: FunctionOrName, **kwargs: Any
    ) -> list[dict[str, Any]]:
        """Enqueue one operation for each entity, in one round trip for each 1,000 of them.

        Args:
            entities: as for `enqueue`; an empty list is fine.
            processor: as for `enqueue`.
            **kwargs: those of `enqueue`, with these differences. `operation_id` is not taken; ``operation_ids`` is a
                list with one id for each entity, in their order. `deduplication_key` is a function, which is called
                with each entity and returns its key; a text is refused, unless there is one entity only.

        Returns:
            One result for each entity, in their order, as `enqueue` returns it: duplicates are told one by one, also
            those of another entity of the batch.

        Raises:
            InvalidOperationError: as `enqueue`; `index` says which entity it is about. One bad entity refuses the whole
                batch, before anything is sent.
            BrokerUnavailableError, BrokerReplyError: as `enqueue`. Of more than 1,000 some may have been accepted by
                then: `accepted`, `unknown` and `refused` have the ids, see `errors.EnqueueOutcome`.
            QueueError: as `enqueue`.
        """
        request = self._new_operations(entities, processor, **kwargs)
        return [] if request is None else self._enqueue(request)

    @_logged
    @_guarded
    def get_queue_status(self) -> dict[str, Any]:
        """Counts of all known queues, what was given up, and metrics, all of one instant.

        Returns:
            ``{"queue:{priority}:{name}": ready, ..., "queue:failures", "queue:system_errors", "total_items",
            "delayed", "in_flight", "metrics": {...}, "status_time"}``; see `summary.status_summary`.

        Raises:
            BrokerUnavailableError: Redis cannot serve now.
        """
        return self._drive(self._status_steps())

    @_logged
    def purge_queue(self, queue_name: str, priority: str = "normal") -> int:
        """Discard everything that waits in a queue, ready or delayed, and say how many operations that were.

        What is in flight goes on. The discarded are counted in the metric ``discarded``.

        Raises:
            ConfigurationError: a bad queue name or priority.
            BrokerUnavailableError: Redis cannot serve now; what was discarded by then stays so.
        """
        return self._drive(self._purge_steps(queue_name, priority))

    def close(self) -> None:
        """Close the connections of the configuration."""
        self.config.close()

    @_logged
    @_guarded
    def _queue_operation(
        self,
        queue_data: dict[str, Any],
        queue_name: str,
        priority: str = "normal",
        custom_serializer: Callable[[Any], Any] | None = None,
    ) -> dict[str, Any]:
        """Encode one operation, send it, and tell what became of it."""
        template = queue_data["template"].at(queue_name, priority)
        return self._enqueue(EnqueueRequest(self.config, template, (queue_data["part"],), None, custom_serializer))[0]

    def _enqueue(self, request: EnqueueRequest) -> list[dict[str, Any]]:
        with request:
            request.prepare()
            for calls in request.rounds():
                request.take(self.config.broker.run_many(calls, request.expect))
        return request.results

    def _drive(self, steps: Steps[T]) -> T:
        reply = None
        while True:
            try:
                call = steps.send(reply)
            except StopIteration as done:
                result: T = done.value
                return result
            reply = self.config.broker.run(call)


class AsyncQueueManager(OperationFactory):
    """`QueueManager` for asyncio: the same methods, awaited, by as many tasks at once as you like.

    It has at most 4 connections, and what is enqueued while others are on their way goes together. It may be used in
    several event loops, one after the other or in several threads: each has connections of its own, which are closed
    when it ends.
    """

    def __init__(self, config: QueueConfig) -> None:
        super().__init__(config)
        self._producers: PerLoop[AsyncProducer] = PerLoop(
            config.new_async_producer, AsyncProducer.close, AsyncProducer.abandon
        )

    @_logged
    async def enqueue(
        self,
        entity: dict[str, Any],
        processor: FunctionOrName,
        queue_name: str | None = None,
        priority: str = DEFAULT_PRIORITY,
        operation_id: str | None = None,
        retry_config: QueueRetryConfig | None = None,
        on_success: FunctionOrName | None = None,
        on_failure: FunctionOrName | None = None,
        timeout: float | None = None,
        deduplication_key: str | None = None,
        custom_serializer: Callable[[Any], Any] | None = None,
        *,
        delay: float = NO_DELAY,
        deduplicate: bool = False,
        deduplication_window: float | None = None,
        durability: str | None = None,
    ) -> dict[str, Any]:
        """See `QueueManager.enqueue`."""
        template = self._template(
            processor,
            queue_name,
            priority,
            retry_config,
            on_success,
            on_failure,
            timeout,
            delay,
            deduplication_window,
            durability,
        )
        operation = self._new_operation(
            template, entity, operation_id, deduplication_key, deduplicate, custom_serializer
        )
        return await self._queue_operation(operation, template.queue, template.priority, custom_serializer)

    @_logged
    async def enqueue_batch(
        self, entities: list[dict[str, Any]], processor: FunctionOrName, **kwargs: Any
    ) -> list[dict[str, Any]]:
        """See `QueueManager.enqueue_batch`."""
        request = self._new_operations(entities, processor, **kwargs)
        return [] if request is None else await self._enqueue(request)

    @_logged
    @_guarded
    async def get_queue_status(self) -> dict[str, Any]:
        """See `QueueManager.get_queue_status`."""
        return await self._drive(self._status_steps())

    @_logged
    async def purge_queue(self, queue_name: str, priority: str = "normal") -> int:
        """See `QueueManager.purge_queue`."""
        return await self._drive(self._purge_steps(queue_name, priority))

    async def close(self) -> None:
        """Close the connections of this manager. It may be used again: it then connects anew.

        Calls that are not answered yet raise `ClosedError`. Other event loops close theirs as soon as they come to it.
        """
        await self._producers.close()

    @_logged
    @_guarded
    async def _queue_operation(
        self,
        queue_data: dict[str, Any],
        queue_name: str,
        priority: str = "normal",
        custom_serializer: Callable[[Any], Any] | None = None,
    ) -> dict[str, Any]:
        """See `QueueManager._queue_operation`."""
        template = queue_data["template"].at(queue_name, priority)
        request = EnqueueRequest(self.config, template, (queue_data["part"],), None, custom_serializer)
        return (await self._enqueue(request))[0]

    async def _enqueue(self, request: EnqueueRequest) -> list[dict[str, Any]]:
        with request:
            while not request.prepare(_TURN):  # noqa: ASYNC110  it waits for nothing: other tasks have their turn
                await asyncio.sleep(0)
            producer = await self._connected()
            groups = producer.durable if request.waits else producer.primary
            if not request.is_one:
                await self._send(request, producer)
            elif groups.busy:
                answer = request.join(groups)
                request.expect()
                request.take(await answer)
            else:
                groups.depart()
                try:
                    await self._send(request, producer)
                finally:
                    groups.arrived()
        return request.results

    async def _send(self, request: EnqueueRequest, producer: AsyncProducer) -> None:
        for calls in request.rounds():
            request.take(await producer.broker.run_all(calls, request.expect))

    async def _drive(self, steps: Steps[T]) -> T:
        reply = None
        while True:
            try:
                call = steps.send(reply)
            except StopIteration as done:
                result: T = done.value
                return result
            reply = await (await self._connected()).broker.run(call)

    async def _connected(self) -> AsyncProducer:
        """That of this event loop, whose server is new enough."""
        producer = self._producers.get()
        if not producer.checked:
            await producer.check()
        return producer
