"""What to ask of Redis and how to read its answer, without any I/O.

Each method builds a `Call`; `sync.SyncBroker` and `aio.AsyncBroker` carry it out. The scripts' headers (in ``lua/``)
list their keys, arguments and replies; this module and `replies` are the only ones that know them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from typing import Any, Final

from queue_system.broker import replies
from queue_system.broker.lanes import LEAST_MEMORY, Lane, LanePool
from queue_system.broker.messages import (
    AUDIT_STEP,
    AUDIT_WINDOW,
    MAX_CLAIM,
    PURGE_STEP,
    REAP_LIMIT,
    SEARCH_LIMIT,
    Accepted,
    AuditCounts,
    Call,
    Callback,
    Claimed,
    Completion,
    DepthReply,
    FailureRow,
    KeyFacts,
    ListPage,
    MembersStep,
    NewOperation,
    OperationFacts,
    ReadyQueue,
    Reaped,
    Status,
    Whereabouts,
)
from queue_system.broker.replies import to_id
from queue_system.errors import QueueError
from queue_system.keys import Keys, dedup_digest

_QUEUED: Final = Accepted.QUEUED
_ONE_QUEUED: Final = [b"q"]

DEFAULT_MAX_FAILURES: Final = 100_000
DEFAULT_MAX_FAILURE_BYTES: Final = 512 * 1024 * 1024

_RING_STAYS = 5.0  # seconds; longer than a blocking read


class Commands:
    """Builds the calls for one prefix. All times in seconds.

    Args:
        keys: of that prefix.
        answer_memory: for which Redis keeps the answer of an enqueue, in case it is sent again.
        retention: for which what was given up counts; 0 for as long as it is there.
        max_failures: so many failures, and so many system errors, are kept.
        max_failure_bytes: of both together.
    """

    def __init__(
        self,
        keys: Keys,
        *,
        answer_memory: float = LEAST_MEMORY,
        retention: float = 0.0,
        max_failures: int = DEFAULT_MAX_FAILURES,
        max_failure_bytes: int = DEFAULT_MAX_FAILURE_BYTES,
    ) -> None:
        self.keys = keys
        self.lanes = LanePool(keys.sent_prefix)
        self._answer_memory = _ms(answer_memory)
        self._retention = _ms(retention)
        self._most_kept = max_failures, max_failure_bytes
        self._enqueue_keys = (
            keys.registry,
            keys.registry_version,
            keys.delayed,
            keys.metrics,
            keys.wake,
            keys.wake_sync,
        )
        self._enqueue_one_keys = keys.registry, keys.metrics, keys.guard

    def enqueue(
        self, queue: str, priority: str, kind: str, operations: Sequence[NewOperation]
    ) -> Call[list[tuple[Accepted, str]]]:
        """Accept at most `MAX_ENQUEUE` operations; for each what became of it, and the holder of a duplicate.

        The call is one request, however often it is sent. It has taken a lane: give that back to `lanes` afterwards.
        """
        lane, name = self.lanes.take(), f"{priority}:{queue}"
        if len(operations) == 1 and not operations[0].delay and operations[0].deduplication_key is None:
            return self._enqueue_one(lane, name, kind, operations[0])
        args: list[Any] = [self.keys.prefix, name, kind, lane.number, self._answer_memory]
        ids: list[str] = []
        for new in operations:
            key, window = new.deduplication_key, new.dedup_window
            ids.append(new.operation_id)
            args += (
                to_id(new.operation_id),
                _ms(new.delay) if new.delay else 0,
                "" if key is None else dedup_digest(key),
                0 if key is None else _ms(window),
                new.body,
            )
        return Call("enqueue", (*self._enqueue_keys, lane.key, self.keys.guard), args, partial(_became, ids), lane=lane)

    def _enqueue_one(self, lane: Lane, name: str, kind: str, new: NewOperation) -> Call[list[tuple[Accepted, str]]]:
        operation_id = new.operation_id
        return Call(
            "enqueue_one",
            (lane.key, *self._enqueue_one_keys),
            (
                self.keys.prefix,
                name,
                kind,
                lane.number,
                self._answer_memory,
                operation_id.encode(),
                new.body,
                f"{lane.number - 1} q",
            ),
            partial(_became_one, operation_id),
            lane=lane,
        )

    def confirm(self, replicas: int, timeout: float) -> Call[int | QueueError]:
        """Wait until so many replicas have what was sent before on this connection, so it must be one of many.

        The reply says how many have it; an error stands for what hindered Redis from telling.
        """
        return Call("WAIT", (), [replicas, max(_ms(timeout), 1)], int, plain=True, refused=lambda error: error)

    def claim(
        self,
        *,
        async_slots: int,
        sync_slots: int,
        lease: float,
        retention: float,
        worker: str = "",
        suspect: bool = False,
        only: Sequence[str] = (),
    ) -> Call[Claimed]:
        """Lease at most so many operations to `worker`, in the order of dispatch.

        With `suspect`, one during which workers have died may be leased, and then nothing else. `only` names the queues
        to take from, each as ``{priority}:{queue}``; none for all.
        """
        keys = self.keys
        return Call(
            "claim",
            (
                keys.leases,
                keys.delayed,
                keys.metrics,
                keys.wake,
                keys.wake_sync,
                keys.system_errors,
                keys.registry,
                keys.ready_index,
                keys.ready_index_sync,
                keys.guard,
            ),
            [
                keys.prefix,
                min(async_slots, MAX_CLAIM),
                min(sync_slots, MAX_CLAIM),
                _ms(lease),
                _ms(retention),
                worker,
                int(suspect),
                *only,
            ],
            partial(replies.claimed, keys.prefix),
            idempotent=False,
        )

    def known(self) -> Call[list[ReadyQueue]]:
        """The known queues; for who asks seldom, since a claim says when they have changed."""
        keys = self.keys
        return Call("HGETALL", (), [keys.registry], lambda reply: replies.ready_queues(reply, keys.ready), plain=True)

    def count_lists(self, lists: Sequence[str]) -> Call[int]:
        """How many of these lists of ready operations are not empty."""
        return Call("EXISTS", (), list(lists), int, plain=True)

    def learn(self, queue: str, priority: str, kind: str) -> Call[str]:
        """Note the kind of a queue's processors; the reply is the kind on record."""
        keys = self.keys
        args = [keys.prefix, f"{priority}:{queue}", kind]
        return Call("learn", (keys.registry, keys.registry_version, keys.guard), args, replies.text)

    def renew(self, held: Sequence[tuple[str, int]], lease: float) -> Call[list[tuple[str, int]]]:
        """Prolong leases, at most `MAX_RENEW`; the reply has those (id, token) that are lost."""
        keys = self.keys
        args: list[Any] = [keys.prefix, _ms(lease)]
        for operation_id, token in held:
            args += (to_id(operation_id), token)
        return Call(
            "renew", (keys.leases, keys.guard), args, lambda reply: [held[int(position) - 1] for position in reply]
        )

    def complete(self, completions: Sequence[Completion], *, done_ttl: float, again: bool) -> Call[list[bool]]:
        """End at most `MAX_COMPLETE` operations well; false for each whose token is stale."""
        keys = self.keys
        args: list[Any] = [keys.prefix, _ms(done_ttl), int(again)]
        for done in completions:
            if done.callback is None:  # most often
                args += (to_id(done.operation_id), done.token, done.kind)
            else:
                args += (to_id(done.operation_id), done.token, done.kind.upper(), *_callback_args(done.callback))
        return Call(
            "complete",
            (keys.leases, keys.metrics, keys.registry, keys.registry_version, keys.wake, keys.guard),
            args,
            lambda reply: [bool(code) for code in reply],
        )

    def retry(
        self,
        operation_id: str,
        token: int,
        *,
        delay: float,
        exhausted: bool,
        counters: Sequence[str],
        record: bytes,
        again: bool,
        trace: str = "",
        first_called: float = 0.0,
    ) -> Call[bool]:
        """End an attempt and schedule the next; false when the token is stale.

        `first_called` is when its processor was first called, in seconds on the clock of Redis; 0 when it never was.
        """
        keys = self.keys
        return Call(
            "retry",
            (keys.leases, keys.delayed, keys.metrics, keys.guard),
            [
                keys.prefix,
                to_id(operation_id),
                token,
                _ms(delay),
                int(exhausted),
                ",".join(counters),
                record,
                int(again),
                trace,
                _ms(first_called),
            ],
            bool,
        )

    def fail(
        self,
        operation_id: str,
        token: int,
        *,
        system_error: bool,
        attempted: bool,
        counters: Sequence[str],
        error: bytes,
        record: bytes,
        retention: float,
        callback: Callback | None,
        again: bool,
    ) -> Call[bool]:
        """Give an operation up; false when the token is stale."""
        keys = self.keys
        return Call(
            "fail",
            (
                keys.leases,
                keys.system_errors if system_error else keys.failures,
                keys.metrics,
                keys.registry,
                keys.registry_version,
                keys.wake,
                keys.guard,
            ),
            [
                keys.prefix,
                to_id(operation_id),
                token,
                "system_error" if system_error else "failed",
                int(attempted),
                ",".join(counters),
                error,
                record,
                _ms(retention),
                *_callback_args(callback),
                int(again),
                *self._most_kept,
            ],
            bool,
        )

    def release(
        self, operation_id: str, token: int, *, delay: float = 0.0, reason: str = "released", first_called: float = 0.0
    ) -> Call[bool]:
        """Give an operation back without burning an attempt; false when the token is stale. See `retry`."""
        keys = self.keys
        return Call(
            "release",
            (keys.leases, keys.delayed, keys.registry, keys.guard),
            [keys.prefix, to_id(operation_id), token, reason, _ms(delay), _ms(first_called)],
            bool,
        )

    def reap(
        self, *, max_crashes: int, interval: float, lease: float, retention: float, good_for: float | None = None
    ) -> Call[Reaped]:
        """Take back at most `REAP_LIMIT` expired leases.

        `good_for` is since how many seconds no reaping of the caller's has failed; None when none ever has. Nothing is
        taken back before that is a whole lease.
        """
        keys = self.keys
        return Call(
            "reap",
            (
                keys.leases,
                keys.metrics,
                keys.reaper,
                keys.registry,
                keys.failures,
                keys.system_errors,
                keys.workers,
                keys.delayed,
                keys.depths,
                keys.registry_version,
                keys.ready_index,
                keys.ready_index_sync,
                keys.guard,
            ),
            [
                keys.prefix,
                max_crashes,
                _ms(interval),
                _ms(lease),
                _ms(retention),
                REAP_LIMIT,
                -1 if good_for is None else _ms(good_for),
                *self._most_kept,
            ],
            lambda reply: Reaped(int(reply[0]), bool(reply[1]), replies.deliveries(reply[2], (), 0.0), int(reply[3])),
            idempotent=False,
        )

    def requeue_failure(self, operation_id: str, *, system_errors: bool = False) -> Call[bool]:
        """Put an entry back into its queue; false when there is none of that id that could go back."""
        keys = self.keys
        key, state = (keys.system_errors, "system_error") if system_errors else (keys.failures, "failed")
        return Call(
            "requeue_failure",
            (key, keys.metrics, keys.registry, keys.guard),
            [keys.prefix, to_id(operation_id), state],
            bool,
            # The second sending would find no entry and say so, or put back what has failed anew in the meantime.
            idempotent=False,
        )

    def purge_ready(self, queue: str, priority: str) -> Call[int]:
        """Discard up to 500 ready operations; the reply says how many ids were taken out."""
        keys = self.keys
        others = keys.metrics, keys.ready_index, keys.ready_index_sync, keys.guard
        return Call("purge", (keys.ready(queue, priority), *others), [keys.prefix], int)

    def purge_delayed(self, queue: str, priority: str, cursor: int) -> Call[tuple[int, int]]:
        """One step over the delayed operations: (next cursor, 0 at the end; how many were discarded)."""
        keys = self.keys
        return Call(
            "purge_delayed",
            (keys.delayed, keys.metrics, keys.guard),
            [keys.prefix, f"{priority}:{queue}", cursor],
            lambda reply: (int(reply[0]), int(reply[1])),
        )

    def purge_failures(self, ids: Sequence[str], *, system_errors: bool = False) -> Call[int]:
        """Delete the given entries, at most 500, and none without an id; the reply says how many were deleted."""
        keys = self.keys.system_errors if system_errors else self.keys.failures, self.keys.guard
        return Call("purge_failures", keys, [self.keys.prefix, 0, *map(to_id, ids)], int)

    def purge_oldest_failures(self, *, system_errors: bool = False) -> Call[int]:
        """Delete the oldest 500 entries; the reply says how many were deleted."""
        keys = self.keys.system_errors if system_errors else self.keys.failures, self.keys.guard
        # The oldest are others when it is sent again.
        return Call("purge_failures", keys, [self.keys.prefix, PURGE_STEP], int, idempotent=False)

    def failures(
        self, *, offset: int = 0, limit: int = 50, operation_id: str | None = None, system_errors: bool = False
    ) -> Call[list[FailureRow]]:
        """A page of entries, newest first, or the one of an operation."""
        key = self.keys.system_errors if system_errors else self.keys.failures
        args: list[Any] = [self.keys.prefix, offset, limit]
        if operation_id is not None:
            args.append(to_id(operation_id))
        return Call("failures", (key,), args, replies.failure_rows)

    def status(self, *, alive_within: float = 30.0) -> Call[Status]:
        """All counts in one instant."""
        keys = self.keys
        return Call(
            "status",
            (
                keys.registry,
                keys.delayed,
                keys.leases,
                keys.failures,
                keys.system_errors,
                keys.metrics,
                keys.workers,
            ),
            [keys.prefix, _ms(alive_within), self._retention],
            replies.status,
        )

    def depth(self) -> Call[DepthReply]:
        """Counts and ages by queue, at a cost that does not depend on how many operations there are."""
        keys = self.keys
        return Call(
            "depth",
            (
                keys.registry,
                keys.delayed,
                keys.leases,
                keys.failures,
                keys.system_errors,
                keys.metrics,
                keys.depths,
            ),
            [keys.prefix],
            replies.depth,
        )

    def explain(self, operation_id: str, *, alive_within: float = 30.0) -> Call[Whereabouts]:
        """Where an operation is, what is before it, and who could take it, in one instant."""
        keys = self.keys
        return Call(
            "explain",
            (keys.registry, keys.delayed, keys.leases, keys.workers),
            [keys.prefix, to_id(operation_id), _ms(alive_within), SEARCH_LIMIT],
            replies.whereabouts,
        )

    def audit_counts(self, *, left_behind_after: float = 60.0) -> Call[AuditCounts]:
        """What the sums are checked against, in one instant."""
        keys = self.keys
        return Call(
            "audit_counts",
            (
                keys.registry,
                keys.delayed,
                keys.leases,
                keys.failures,
                keys.system_errors,
                keys.metrics,
                keys.depths,
                keys.ready_index,
                keys.ready_index_sync,
            ),
            [keys.prefix, _ms(left_behind_after)],
            replies.audit_counts,
        )

    def audit_list(self, name: str, page: int) -> Call[ListPage]:
        """A page (from 0, at the tail) of the ready list ``{priority}:{queue}``."""
        # From the tail: what is taken from the head moves nothing, and what is added is seen twice and never missed.
        last = -1 - page * AUDIT_STEP
        args = [self.keys.prefix, name, last - AUDIT_STEP + 1, last]
        return Call("audit_list", (f"{self.keys.prefix}{name}",), args, replies.list_page)

    def audit_members(self, key: str, state: str, cursor: int) -> Call[MembersStep]:
        """One step over a sorted set of ids, whose operations should be in `state`."""
        return Call("audit_members", (key,), [self.keys.prefix, state, cursor, AUDIT_STEP], replies.members_step)

    def audit_operations(self, ids: Sequence[str]) -> Call[list[OperationFacts]]:
        """What is kept of at most `AUDIT_STEP` operations, in one instant."""
        keys = self.keys
        return Call(
            "audit_operations",
            (keys.leases, keys.delayed, keys.failures, keys.system_errors),
            [keys.prefix, *map(to_id, ids)],
            lambda reply: replies.operation_facts(reply, ids),
        )

    def audit_keys(self, names: Sequence[str]) -> Call[list[KeyFacts]]:
        """What at most `AUDIT_STEP` other keys are, given without the prefix."""
        args = [self.keys.prefix, *map(to_id, names)]
        return Call("audit_keys", (self.keys.registry,), args, lambda reply: replies.key_facts(reply, names))

    def audit_twice(self, name: str, operation_id: str, places: tuple[int, int]) -> Call[bool]:
        """Whether an id is twice in a ready list, about there; places are counted from the tail, from 1."""
        args = [self.keys.prefix, to_id(operation_id), *places, AUDIT_WINDOW]
        return Call("audit_twice", (f"{self.keys.prefix}{name}",), args, bool)

    def scan(self, cursor: int, *, key_type: str | None = None) -> Call[tuple[int, list[str]]]:
        """One step over the keys of this prefix: (next cursor, 0 at the end; keys)."""
        pattern = re.sub(r"([*?\[\]\\^])", r"\\\1", self.keys.prefix) + "*"
        args: list[Any] = [cursor, "MATCH", pattern, "COUNT", AUDIT_STEP]
        return Call("SCAN", (), args + (["TYPE", key_type] if key_type else []), replies.scanned, plain=True)

    def heartbeat(self, worker: str, *, expiry: float, fields: dict[str, str]) -> Call[float]:
        """A worker says that it lives for `expiry` seconds more (0: it leaves); the reply is Redis's clock."""
        args: list[Any] = [self.keys.prefix, worker, _ms(expiry)]
        for name, value in fields.items():
            args += (name, value)
        return Call("heartbeat", (self.keys.workers, self.keys.guard), args, lambda reply: int(reply) / 1000)

    def add_to_metric(self, name: str, value: float) -> Call[float]:
        """Increase a field of the metrics hash."""
        command = "HINCRBY" if isinstance(value, int) else "HINCRBYFLOAT"
        return Call(command, (), [self.keys.metrics, name, value], float, idempotent=False, plain=True)

    def set_metric(self, name: str, value: str) -> Call[None]:
        """Set a field of the metrics hash."""
        return Call("HSET", (), [self.keys.metrics, name, value], lambda _: None, plain=True)

    def wait(self, *, for_sync: bool, for_async: bool, timeout: float, worker: str = "") -> Call[str | None]:
        """Block until there may be work for a free slot, at most `timeout` seconds; needs a connection of its own.

        The reply is the side that the marker was for, ``async`` or ``sync``, or None when the time was over or (see
        `ring`) the `worker` was rung.
        """
        sides = {self.keys.wake: ("async", for_async), self.keys.wake_sync: ("sync", for_sync)}
        markers = [key for key, (_, wanted) in sides.items() if wanted]
        own = [self.keys.ring(worker)] if worker else []

        def side(reply: Any) -> str | None:
            return None if reply is None else sides.get(replies.text(reply[0]), (None, False))[0]

        # Redis 6.2 rounds 0.001 down to 0, which means forever.
        args = [*markers, *own, f"{max(timeout, 0.002):.3f}"]
        return Call("BZPOPMIN", (), args, side, idempotent=False, plain=True)

    def ring(self, worker: str) -> Call[bool]:
        """End a worker's blocking read."""
        keys = self.keys
        return Call("ring", (keys.ring(worker), keys.guard), [keys.prefix, _ms(_RING_STAYS)], bool)


def _became(ids: Sequence[str], reply: Any) -> list[tuple[Accepted, str]]:
    """What became of each new operation."""
    return [
        (_QUEUED, own) if code == b"q" else replies.accepted(code, own) for code, own in zip(reply, ids, strict=True)
    ]


def _became_one(own: str, reply: Any) -> list[tuple[Accepted, str]]:
    return [(_QUEUED, own)] if reply == _ONE_QUEUED else _became((own,), reply)


def _callback_args(callback: Callback | None) -> tuple[Any, ...]:
    if callback is None:
        return ("", "", "")
    return (callback.operation_id, f"{callback.priority}:{callback.queue}", callback.body)


def _ms(seconds: float) -> int:
    return max(0, round(seconds * 1000))
