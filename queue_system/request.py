"""One request to enqueue: what is asked of Redis, what is told about it, and what is returned. Without I/O."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from time import perf_counter
from types import TracebackType
from typing import Any, Final, Self

from queue_system.broker.grouping import Answer, EnqueueGroups
from queue_system.broker.messages import MAX_ENQUEUE, Accepted, Call, Holder, NewOperation
from queue_system.config import QueueConfig
from queue_system.errors import (
    BrokerReplyError,
    BrokerUnavailableError,
    ClosedError,
    InvalidOperationError,
    NotDurableError,
    QueueError,
)
from queue_system.events import Enqueued, EnqueueFailed, EnqueueStarted
from queue_system.hooks import NO_CONTEXT
from queue_system.operation import encode_entity
from queue_system.template import Part, Template

_SHOWN_IDS: Final = 3  # in the text of an error
_QUEUED: Final = Accepted.QUEUED
_REASONS: Final = {Accepted.DUPLICATE_ID: "operation_id", Accepted.DUPLICATE_KEY: "deduplication_key"}


class EnqueueRequest:
    """Within it `prepare` encodes all; then each of `rounds` is one round trip, whose replies `take` is given.

    `expect` is done while Redis is at work on a round. At its end, those who listen are told how it went.

    Args:
        config: for what queue system, with what limits.
        template: what its operations have in common.
        parts: what is each one's own, one at least. They are taken one by one, when they are encoded.
        count: how many those are when it is a batch; None for a single one.
        custom_serializer: as for `QueueManager.enqueue`.

    Attributes:
        is_one: whether it has one operation only.
        waits: whether replicas have to confirm it.
        results: what `enqueue` returns for each operation that Redis has answered for.
    """

    __slots__ = (
        "_calls",
        "_config",
        "_context",
        "_count",
        "_encode",
        "_enqueued",
        "_expected",
        "_ids",
        "_is_batch",
        "_new",
        "_on_its_way",
        "_parts",
        "_serializer",
        "_shortfall",
        "_template",
        "is_one",
        "results",
        "waits",
    )

    def __init__(
        self,
        config: QueueConfig,
        template: Template,
        parts: Iterable[Part],
        count: int | None,
        custom_serializer: Callable[[Any], Any] | None,
    ) -> None:
        self._config = config
        self._template = template
        self._parts = iter(parts)
        self._is_batch = count is not None
        self._count = count or 1
        self._serializer = custom_serializer
        self.is_one = self._count == 1
        self.waits = (template.durability or config.durability) == "wait"
        self._calls: list[Call[Any]] = []
        self._context: AbstractContextManager[None] = NO_CONTEXT
        self._encode: Callable[[str, bytes, int], bytes] | None = None
        self._ids: list[str] = []
        self._new: list[NewOperation] = []
        self._on_its_way = False
        self._expected: list[dict[str, Any]] = []
        self._enqueued: Enqueued | None = None
        self._shortfall: tuple[int | QueueError] | None = None
        self.results: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        template, own_id = self._template, None
        if self._count == 1:
            part = self._first()
            own_id, self._parts = part[0], iter((part,))
        self._context = context = self._config.hooks.enqueue_context(
            EnqueueStarted(template.queue, template.priority, template.processor, self._count, own_id, template.delay)
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
            self._tell()

    def prepare(self, turn: float = float("inf")) -> bool:
        """Encode what is left, for about `turn` seconds at most; whether all is encoded.

        Raises:
            SerializationError, EntityTooLargeError, InvalidOperationError: an entity cannot be enqueued as it is.
        """
        config, template, serializer, ids = self._config, self._template, self._serializer, self._ids
        if self._encode is None:
            self._encode = self._new_encoder()
        encode, seal, max_bytes, max_depth = (
            self._encode, config.signer.seal, config.max_operation_bytes, config.max_depth
        )  # fmt: skip
        queue, delay = template.name, template.delay
        window = config.deduplication_window if template.window is None else template.window
        until = perf_counter() + turn
        try:
            for operation_id, entity, key in self._parts:
                body = encode(operation_id, encode_entity(entity, serializer, max_depth=max_depth), max_bytes)
                self._new.append(NewOperation(operation_id, seal(operation_id, queue, body), delay, key, window))
                ids.append(operation_id)
                if len(self._new) == MAX_ENQUEUE:
                    self._add_call()
                if perf_counter() >= until:
                    return False
        except InvalidOperationError as error:
            self._name_entity(error)
            raise
        if self._new and not self.is_one:
            self._add_call()
        return True

    def join(self, groups: EnqueueGroups) -> asyncio.Future[Answer]:
        """Instead of `rounds`: send its only operation, which is encoded, together with others.

        Returns:
            What `take` is to be given, when it is awaited.
        """
        template = self._template
        self._on_its_way = True
        return groups.join(template.queue, template.priority, template.kind, self._new[0])

    def rounds(self) -> Iterator[list[Call[Any]]]:
        """What to ask of Redis, one round trip after the other.

        Each asks for its own confirmation, since after a failover another server may have the next. When one was not
        confirmed in time, no other need wait.
        """
        config = self._config
        if self._new:
            self._add_call()
        self._on_its_way = True
        for call in self._calls:
            if self.waits and self._shortfall is None:
                yield [call, config.commands.confirm(config.durability_replicas, config.durability_timeout)]
            else:
                yield [call]
        self._on_its_way = False

    def expect(self) -> None:
        """Put together what holds if all of a round are queued, as most are. It may be done again."""
        answer, ids = self._template.answer, self._ids
        if len(ids) > MAX_ENQUEUE:
            ids = ids[len(self.results) : len(self.results) + MAX_ENQUEUE]
        self._expected = [{"operation_id": operation_id, **answer} for operation_id in ids]
        if self.is_one or len(self._calls) == 1:
            self._enqueued = self._all_enqueued()

    def take(self, replies: Sequence[Any]) -> None:
        """Correct what was expected of a round by what Redis has said.

        Raises:
            NotDurableError: too few replicas have confirmed it; after the last round.
        """
        if self.waits and self._shortfall is None:
            confirmed = replies[1]
            if isinstance(confirmed, QueueError) or confirmed < self._config.durability_replicas:
                self._shortfall = (confirmed,)
        self._correct(replies[0])
        self.results += self._expected
        if self._shortfall is not None and len(self.results) == len(self._ids):
            self._refuse_to_confirm(*self._shortfall)

    def _first(self) -> Part:
        try:
            return next(self._parts)
        except InvalidOperationError as error:
            self._name_entity(error)
            raise

    def _name_entity(self, error: InvalidOperationError) -> None:
        if self._is_batch:
            error.index = len(self._ids)
            error.args = (f"entities[{error.index}]: {error}",)

    def _new_encoder(self) -> Callable[[str, bytes, int], bytes]:
        headers: dict[str, str] = {}
        self._config.hooks.inject(headers)
        return (self._template.envelope_with(headers) if headers else self._template.envelope).encode

    def _add_call(self) -> None:
        template, new = self._template, self._new
        self._new = []
        self._calls.append(self._config.commands.enqueue(template.queue, template.priority, template.kind, new))

    def _correct(self, answers: Sequence[tuple[Accepted, str]]) -> None:
        if len(answers) == 1 == len(self._expected) and answers[0][0] is _QUEUED:
            return
        for result, (accepted, holder) in zip(self._expected, answers, strict=True):
            if accepted is _QUEUED:
                continue
            if accepted is Accepted.SCHEDULED:
                result["status"] = "scheduled"
            else:
                result.update(self._of_holder(holder), reason=_REASONS[accepted])
                self._enqueued = None

    def _of_holder(self, holder: str) -> dict[str, Any]:
        """What a duplicate is told: all of it about the operation that is there."""
        name, processor = (holder.name, holder.processor) if isinstance(holder, Holder) else ("", "")
        priority, _, queue = name.partition(":")
        answer = self._template.answer
        return {
            "operation_id": str(holder),
            "status": "duplicate",
            "queue": queue or None,
            "priority": priority or None,
            "processor": processor or None,
            "is_async": answer["is_async"] if (queue, processor) == (answer["queue"], answer["processor"]) else None,
            "duplicate_of": str(holder),
        }

    def _all_enqueued(self) -> Enqueued:
        template, ids = self._template, tuple(self._ids)
        return Enqueued(template.queue, template.priority, template.processor, len(ids), 0, ids)

    def _accepted_ids(self) -> tuple[str, ...]:
        return tuple([each["operation_id"] for each in self.results if each["status"] != "duplicate"])

    def _tell(self) -> None:
        """Say to those who listen what was accepted."""
        if self._enqueued is None:
            template, ids = self._template, self._accepted_ids()
            duplicates = len(self.results) - len(ids)
            self._enqueued = Enqueued(template.queue, template.priority, template.processor, len(ids), duplicates, ids)
        self._config.hooks.on_event(self._enqueued)

    def _refuse_to_confirm(self, confirmed: int | QueueError) -> None:
        count, cause = (0, confirmed) if isinstance(confirmed, QueueError) else (confirmed, None)
        replicas = self._config.durability_replicas
        self._tell()
        reason = cause or f"{count} of {replicas} replicas within {self._config.durability_timeout:g} s"
        raise NotDurableError(
            f"accepted by the primary but not confirmed ({reason}): {_ids(self.results)}; enqueue again with the "
            "same operation_id to ask again, which is safe while they are live or within done_ttl",
            results=self.results,
            confirmed=count,
            replicas=replicas,
        ) from cause

    def _failed(self, error: QueueError) -> None:
        if isinstance(error, BrokerUnavailableError | BrokerReplyError | ClosedError):
            self._say_what_is_known(error)
            if self.results:
                self._enqueued = None
                self._tell()
        self._config.hooks.on_event(EnqueueFailed(self._template.queue, type(error).__name__))

    def _say_what_is_known(self, error: BrokerUnavailableError | BrokerReplyError | ClosedError) -> None:
        ids, answered = tuple(self._ids), len(self.results)
        if not self._on_its_way:  # there was no connection yet to send it on
            error.ambiguous = False
        sent = answered + MAX_ENQUEUE if error.ambiguous else answered
        error.results, error.accepted = self.results, self._accepted_ids()
        error.unknown, error.refused, error.operation_ids = ids[answered:sent], ids[sent:], ids[answered:]
        if len(ids) > 1:
            numbers = len(error.accepted), len(error.unknown), len(error.refused), answered - len(error.accepted)
            error.args = (f"{error}; {_summary(len(ids), *numbers)}", *error.args[1:])


def _summary(count: int, accepted: int, unknown: int, refused: int, duplicates: int) -> str:
    """What became of so many operations, in words."""
    if refused == count:
        return f"none of the {count:,} operations was accepted"
    found = {"accepted": accepted, "duplicate": duplicates, "perhaps accepted": unknown, "not accepted": refused}
    return f"of {count:,} operations: {', '.join(f'{number:,} {what}' for what, number in found.items() if number)}"


def _ids(results: Sequence[dict[str, Any]]) -> str:
    shown = ", ".join(str(result["operation_id"]) for result in results[:_SHOWN_IDS])
    more = len(results) - _SHOWN_IDS
    return f"{shown} and {more} more" if more > 0 else shown
