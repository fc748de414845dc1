"""What the broker's scripts are to do, written down without Redis, without Lua and without a clock.

Time is a matter of two values: a delay or a lease either lies far ahead or has been forced into the past, in which case
it has a rank that orders what is due.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Final

PRIORITIES: Final = ("high", "normal", "low")
LIVE: Final = frozenset({"ready", "delayed", "leased"})
GIVEN_UP: Final = frozenset({"failed", "system_error"})


@dataclass(slots=True)
class Operation:
    """The hash of one operation. `life` tells apart operations that had the same id one after the other."""

    id: str
    life: int
    state: str
    queue: str = ""
    body: str = ""
    kind: str = "o"
    digest: str = ""
    token: int = 0
    deliveries: int = 0
    attempts: int = 0
    crashes: int = 0
    exhaustions: int = 0

    def fields(self) -> tuple[object, ...]:
        """What is compared with Redis."""
        return (self.state, self.queue, self.kind, self.digest, self.deliveries, self.attempts, self.crashes,
                self.exhaustions, self.body)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Held:
    """A claim as its worker remembers it, for as long as it likes."""

    id: str
    token: int
    life: int
    kind: str = "o"
    quarantined: bool = False


@dataclass(frozen=True, slots=True)
class New:
    """An operation to enqueue."""

    id: str
    body: str
    delayed: bool = False
    digest: str = ""


class Model:
    """Predicts each reply and the whole state after it."""

    def __init__(self, max_crashes: int) -> None:
        self.max_crashes = max_crashes
        self.operations: dict[str, Operation] = {}
        self.ready: dict[str, list[str]] = {}
        self.delayed: dict[str, int | None] = {}  # rank of what is due, None while it lies ahead
        self.leases: dict[str, int | None] = {}  # the same for expired leases
        self.given_up: dict[str, dict[str, bool]] = {"failed": {}, "system_error": {}}  # True: past its retention
        self.dedup: dict[str, str] = {}
        self.registry: dict[str, str] = {}
        self.version = 0
        self.metrics: Counter[str] = Counter()
        self.woken: set[str] = set()
        self.outage = self.grace = False
        self.suspect_waits = self.took_suspect = False  # what the last claim met
        self.accepted: set[int] = set()  # lives, each of which is to end once
        self.discarded: set[int] = set()  # those that were purged
        self._lives = count(1)

    # -- what producers do

    def enqueue(self, queue: str, kind: str, new: Sequence[New]) -> list[tuple[str, str]]:
        kind = self._register(queue, kind)
        replies = [self._accept(queue, one) for one in new]
        if any(reply in {"queued", "scheduled"} for reply, _ in replies):
            self._wake(kind)
        return replies

    def _accept(self, queue: str, new: New) -> tuple[str, str]:
        taken = new.id in self.operations
        if taken or new.digest in self.dedup:
            self.metrics["deduplicated"] += 1
            return ("duplicate_id", new.id) if taken else ("duplicate_key", self.dedup[new.digest])
        if new.digest:
            self.dedup[new.digest] = new.id
        self.metrics["enqueued"] += 1
        self._born(Operation(new.id, 0, "", queue, new.body, digest=new.digest), delayed=new.delayed)
        return ("scheduled" if new.delayed else "queued"), new.id

    def purge_ready(self, queue: str) -> int:
        ids, self.ready[queue] = self.ready.get(queue, []), []
        for operation_id in ids:
            self._discard(operation_id)
        return len(ids)

    def purge_delayed(self, queue: str) -> int:
        ids = [operation_id for operation_id in self.delayed if self.operations[operation_id].queue == queue]
        for operation_id in ids:
            del self.delayed[operation_id]
            self._discard(operation_id)
        return len(ids)

    def requeue(self, operation_id: str, state: str) -> bool:
        operation = self.operations.get(operation_id)
        if operation is None or operation.state != state or not operation.body:
            return False
        del self.given_up[state][operation_id]
        self.metrics["callbacks_requeued" if operation.kind == "c" else "requeued"] += 1
        operation.attempts = operation.crashes = operation.exhaustions = 0
        if operation.digest:
            self.dedup.setdefault(operation.digest, operation.id)
        self._born(operation, delayed=False)
        self._wake(self.registry[operation.queue])
        return True

    def purge_given_up(self, state: str, ids: Sequence[str]) -> int:
        entries = self.given_up[state]
        found = [operation_id for operation_id in dict.fromkeys(ids or entries) if operation_id in entries]
        for operation_id in found:
            del entries[operation_id]
            if self._is(operation_id, state):
                del self.operations[operation_id]
        return len(found)

    # -- what workers do

    def claim(
        self, queues: Sequence[tuple[str, str]], slots: dict[str, int], *, suspect: bool
    ) -> list[tuple[str, Operation]]:
        """Lease what the slots allow, in the order of the queues; each is given as (queue, kind).

        A suspect is leased when the worker may take one, and then alone; else it stops the claim.
        """
        self.suspect_waits = self.took_suspect = False
        self._promote()
        free, leased = dict(slots), []
        for queue, kind in queues:
            needs = {"a": "a", "s": "s", "m": "as"}[kind]
            ready = self.ready.get(queue, [])
            while ready and all(free[side] > 0 for side in needs):
                if self.took_suspect or self.suspect_waits:
                    break
                if self._is_suspect(ready[0]):
                    self.took_suspect = suspect and not leased
                    self.suspect_waits = not self.took_suspect
                if self.suspect_waits:
                    break
                operation_id = ready.pop(0)
                if self._lease(operation_id, queue):
                    leased.append((queue, self.operations[operation_id]))
                    for side in needs:
                        free[side] -= 1
        for side in self.left_over(queues):
            self.woken.add(side)
        return leased

    def left_over(self, queues: Sequence[tuple[str, str]]) -> set[str]:
        """The sides for which something is still ready."""
        return {_side(kind) for queue, kind in queues if self.ready.get(queue)}

    def holds(self, held: Held) -> bool:
        """I3: only the latest claim of this very life may do anything."""
        operation = self.operations.get(held.id)
        return (
            operation is not None
            and operation.state == "leased"
            and (operation.life, operation.token) == (held.life, held.token)
        )

    def complete(self, held: Held, kept: bool, callback: Operation | None, again: bool) -> bool:
        if not self._let_go(held, again):
            return False
        self.metrics["callbacks_processed" if held.kind == "c" else "processed"] += 1
        if kept:
            self.operations[held.id].state = "done"
        else:
            del self.operations[held.id]
        self._spawn(callback)
        return True

    def retry(self, held: Held, exhausted: bool, counters: Sequence[str], again: bool) -> bool:
        """The delay lies ahead; the test moves it when it was 0."""
        if not self._let_go(held, again):
            return False
        operation = self.operations[held.id]
        operation.state, operation.attempts = "delayed", operation.attempts + 1
        operation.exhaustions += exhausted
        self.delayed[held.id] = None
        self.metrics.update(counters)
        return True

    def fail(
        self, held: Held, state: str, attempted: bool, counters: Sequence[str], callback: Operation | None, again: bool
    ) -> bool:
        if not self._let_go(held, again):
            return False
        operation = self.operations[held.id]
        operation.state, operation.attempts = state, operation.attempts + attempted
        self.given_up[state][held.id] = False
        self._release_dedup(operation)
        self.metrics.update(counters)
        self._spawn(callback)
        return True

    def release(self, held: Held, delayed: bool) -> bool:
        if not self._let_go(held, again=True):  # what is released too late is not counted
            return False
        operation = self.operations[held.id]
        if delayed:
            operation.state, self.delayed[held.id] = "delayed", None
        else:
            self._to_head(operation)
        return True

    def renew(self, helds: Sequence[Held]) -> list[tuple[str, int]]:
        lost = []
        for held in helds:
            if self.holds(held):
                self.leases[held.id] = None
            else:
                lost.append((held.id, held.token))
        return lost

    def reap(self) -> tuple[int, bool, list[Operation]]:
        self.grace |= self.outage
        self.outage = False
        for state, entries in self.given_up.items():
            self.given_up[state] = {operation_id: old for operation_id, old in entries.items() if not old}
        if self.grace:
            return 0, True, []
        expired = [self.operations[operation_id] for operation_id in _in_order(self.leases)]
        quarantined = [operation for operation in expired if not self._take_back(operation)]
        self.metrics["reclaimed"] += len(expired)
        return len(expired) - len(quarantined), False, quarantined

    # -- what a foreign hand does

    def stray(self, operation_id: str, queue: str) -> None:
        """An id was pushed to a queue's head, whatever its state."""
        self.ready.setdefault(queue, []).insert(0, operation_id)

    def written_by_hand(self, operation_id: str, queue: str, body: str) -> None:
        self.operations[operation_id] = Operation(operation_id, next(self._lives), "ready", queue, body)
        self.stray(operation_id, queue)

    def is_ready_or_due(self, operation_id: str) -> bool:
        """Whether the next claim may take it."""
        return self._is(operation_id, "ready") or self.delayed.get(operation_id) is not None

    def has_live(self) -> bool:
        """Whether anything is still to be done."""
        return any(self.ready.values()) or bool(self.delayed or self.leases)

    # -- steps

    def _born(self, operation: Operation, *, delayed: bool) -> None:
        operation.life = next(self._lives)
        self.accepted.add(operation.life)
        self.operations[operation.id] = operation
        if delayed:
            operation.state, self.delayed[operation.id] = "delayed", None
        else:
            operation.state = "ready"
            self.ready.setdefault(operation.queue, []).append(operation.id)

    def _spawn(self, callback: Operation | None) -> None:
        if callback is not None:
            self._register(callback.queue, "a")
            self.metrics["callbacks_enqueued"] += 1
            self._born(callback, delayed=False)
            self._wake("a")

    def _register(self, queue: str, kind: str) -> str:
        known = self.registry.get(queue)
        wanted = kind if known in {None, kind} else "m"
        if wanted != known:
            self.registry[queue] = wanted
            self.version += 1
        return wanted

    def _promote(self) -> None:
        for operation_id in _in_order(self.delayed):
            del self.delayed[operation_id]
            operation = self.operations[operation_id]
            operation.state = "ready"
            self.ready.setdefault(operation.queue, []).append(operation_id)
            self._wake(self.registry[operation.queue])

    def _lease(self, operation_id: str, queue: str) -> bool:
        operation = self.operations.get(operation_id)
        if operation is None or not operation.body:
            self._reject(operation_id)
            return False
        if operation.state != "ready":
            self.metrics["skipped"] += 1
            return False
        if operation.life not in self.accepted:
            self.accepted.add(operation.life)
            self.metrics["enqueued"] += 1
        operation.state = "leased"
        operation.deliveries += 1
        self.leases[operation_id] = None
        return True

    def _is_suspect(self, operation_id: str) -> bool:
        operation = self.operations.get(operation_id)
        if operation is None or operation.state != "ready" or not operation.body:
            return False
        return operation.crashes >= max(1, self.max_crashes - 1)

    def _reject(self, operation_id: str) -> None:
        self.operations[operation_id] = Operation(operation_id, next(self._lives), "system_error")
        self.given_up["system_error"][operation_id] = False
        self.metrics["system_errors"] += 1

    def _let_go(self, held: Held, again: bool) -> bool:
        if self.holds(held):
            del self.leases[held.id]
            return True
        self.metrics["stale_acks"] += not again
        return False

    def _take_back(self, operation: Operation) -> bool:
        operation.crashes += 1
        if operation.crashes > self.max_crashes:
            operation.deliveries += 1
            self.leases[operation.id] = None
            return False
        del self.leases[operation.id]
        self._to_head(operation)
        return True

    def _to_head(self, operation: Operation) -> None:
        operation.state = "ready"
        self.ready.setdefault(operation.queue, []).insert(0, operation.id)
        self._wake(self.registry.get(operation.queue, "m"))

    def _discard(self, operation_id: str) -> None:
        operation = self.operations.pop(operation_id)
        self._release_dedup(operation)
        self.discarded.add(operation.life)
        self.metrics["callbacks_discarded" if operation.kind == "c" else "discarded"] += 1

    def _release_dedup(self, operation: Operation) -> None:
        if self.dedup.get(operation.digest) == operation.id:
            del self.dedup[operation.digest]

    def _wake(self, kind: str) -> None:
        self.woken.add(_side(kind))

    def _is(self, operation_id: str, state: str) -> bool:
        return operation_id in self.operations and self.operations[operation_id].state == state


def _side(kind: str) -> str:
    return "s" if kind == "s" else "a"


def _in_order(ranks: dict[str, int | None]) -> Iterator[str]:
    due = [(rank, operation_id) for operation_id, rank in ranks.items() if rank is not None]
    return iter([operation_id for _, operation_id in sorted(due)])
