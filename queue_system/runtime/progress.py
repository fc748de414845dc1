"""Whether claims are accepted, and whether work waits for this worker that it could claim, and does not.

Liveness means progress: a worker whose loops all run may be as dead as one whose process has ended.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

from queue_system.broker.aio import AsyncBroker
from queue_system.broker.commands import Commands
from queue_system.broker.messages import KIND_ASYNC, KIND_SYNC, ReadyQueue
from queue_system.errors import BrokerUnavailableError, QueueError
from queue_system.runtime.waiting import Slots

PATIENCE: Final = 3.0
"""Seconds without an accepted claim, though one is due, after which Redis is asked whether work is ready. The blocking
read of an idle worker ends with a claim every 2 s, so where claims are accepted, nothing is ever asked.
"""

LOOK_INTERVAL: Final = 1.0
"""Seconds between two looks."""

_AT_ONCE: Final = 1000  # lists that one command asks about


class ClaimRecord:
    """How the claims of a worker went. Written by the event loop's thread, read by any.

    Args:
        clock: monotonic seconds.

    Attributes:
        accepted: whether Redis has ever accepted a claim of this worker, if only to say that nothing is ready.
        refusal: why the latest claim was refused; empty when it was accepted.
        last: when a claim was last accepted, or none was due, on that clock.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.accepted = False
        self.refusal = ""
        self.last = clock()
        self._failed_at: float | None = None

    @property
    def overdue_for(self) -> float:
        """Seconds since a claim was accepted, or since none was due."""
        return max(0.0, self._clock() - self.last)

    @property
    def is_away(self) -> bool:
        """Whether Redis has just said, or shown, that it cannot serve: this is no standstill of the worker."""
        return self._failed_at is not None and self._clock() - self._failed_at < PATIENCE

    def accept(self) -> None:
        """Redis has accepted a claim."""
        self.last = self._clock()
        self._failed_at = None
        self.refusal = ""
        self.accepted = True

    def refuse(self, reason: str) -> None:
        """It has refused one, or its reply could not be understood."""
        self.refusal = reason
        self._failed_at = None

    def fail(self) -> None:
        """Redis could not serve."""
        self._failed_at = self._clock()

    def rest(self) -> None:
        """No claim is due: there is no free slot, or the worker claims no more."""
        self.last = self._clock()


class Progress:
    """Looks, while no claim is accepted, whether work is ready for a free slot of this worker.

    Args:
        broker: asks.
        commands: builds the calls.
        record: of the claims.
        free_slots: how many operations may be claimed now; none while the worker claims no more.
        queues: the names of the only queues that it serves, or None for all.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        broker: AsyncBroker,
        commands: Commands,
        record: ClaimRecord,
        *,
        free_slots: Callable[[], Slots],
        queues: frozenset[str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._broker = broker
        self._commands = commands
        self._record = record
        self._free_slots = free_slots
        self._only = queues
        self._clock = clock
        self._seen: tuple[float, float] | None = None  # since when work waits, and after which claim that was

    @property
    def stuck_for(self) -> float:
        """Seconds since work was first seen that this worker could claim, and has not; from any thread."""
        seen, record = self._seen, self._record
        if seen is None or seen[1] != record.last or record.is_away:
            return 0.0
        return max(0.0, self._clock() - seen[0])

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await asyncio.sleep(LOOK_INTERVAL)
            await self.look()

    async def look(self) -> None:
        """Take notice of the free slots, and ask Redis what is ready if claims are overdue."""
        slots = self._free_slots()
        if not slots:
            self._record.rest()
        if self._record.is_away or self._record.overdue_for < PATIENCE:
            self._seen = None
            return
        try:
            waits = await self._work_waits(slots)
        except BrokerUnavailableError:
            return  # nobody can tell now
        except QueueError:
            waits = True  # neither a claim nor a question is accepted: no work of any kind can be done here
        last = self._record.last
        if not waits:
            self._seen = None
        elif self._seen is None or self._seen[1] != last:
            self._seen = self._clock(), last

    async def _work_waits(self, slots: Slots) -> bool:
        lists = [queue.key for queue in await self._broker.run(self._commands.known()) if self._may_claim(queue, slots)]
        for start in range(0, len(lists), _AT_ONCE):
            if await self._broker.run(self._commands.count_lists(lists[start : start + _AT_ONCE])):
                return True
        return False

    def _may_claim(self, queue: ReadyQueue, slots: Slots) -> bool:
        if self._only is not None and queue.queue not in self._only:
            return False
        return (queue.kind == KIND_SYNC or slots.for_async > 0) and (queue.kind == KIND_ASYNC or slots.for_sync > 0)
