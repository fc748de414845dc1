"""The claim loop: one round trip writes what has ended and claims what comes next.

It claims no more than there are free slots for, so priorities stay strict and nothing waits in a worker that another
one could run. A second round trip may begin while one is on its way, when there are outcomes enough for it: so Redis
has something to do while the worker reads a reply, and the worker while Redis writes one (adr/0012).

While there is nothing to claim, another task blocks on the wake-up markers, on a connection of its own, with a claim of
one operation behind the blocking read (see `waiting`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from queue_system.broker.aio import AsyncBroker
from queue_system.broker.commands import Commands
from queue_system.broker.messages import Call, Claimed, Delivery
from queue_system.errors import BrokerUnavailableError, QueueError
from queue_system.events import (
    BrokerCall,
    BrokerError,
    WorkerTaskFailed,
)
from queue_system.hooks import Hooks
from queue_system.keys import PRIORITIES
from queue_system.runtime.contact import Contact
from queue_system.runtime.finish import Outbox, Settlement
from queue_system.runtime.isolation import Isolation
from queue_system.runtime.progress import ClaimRecord
from queue_system.runtime.waiting import BlockingRead, Slots

FUTILE_PAUSE: Final = 0.05
"""Seconds without claiming after a claim that found work which this worker may not take."""

MAX_PAUSE: Final = 1.0
"""Seconds without a blocking read, at most, after some in a row that failed; meanwhile turns claim."""

MAX_BACKOFF: Final = 2.0

MAX_TURNS: Final = 2
"""Round trips that may be on their way at once, where Redis keeps their order: so many tasks `run`."""


class Fetcher:
    """Claims operations, and writes outcomes.

    Args:
        broker: for claims and outcomes.
        waiter: another broker, for blocking reads.
        commands: builds the calls.
        outbox: what has ended.
        free_slots: asked before each claim.
        may_hold_back: whether a round trip would bring more if it waited; `notify` is called when that has changed.
        enough: so many outcomes are worth a second round trip while one is on its way.
        on_claimed: given the deliveries, each with the kind of its queue.
        on_late: given those that came when half of their lease was over, so that others may run them by now, or when
            there is no slot any more.
        isolation: told of suspects.
        hooks: told of round trips and errors.
        contact: told whether Redis answers.
        lease: seconds.
        retention: seconds for which system errors are kept.
        queues: the names of the only queues to serve, or None for all.
        worker_id: to whom operations are leased.
    """

    def __init__(
        self,
        broker: AsyncBroker,
        waiter: AsyncBroker,
        commands: Commands,
        outbox: Outbox,
        *,
        free_slots: Callable[[], Slots],
        may_hold_back: Callable[[], bool] = lambda: False,
        enough: int = 1,
        on_claimed: Callable[[Sequence[tuple[Delivery, str]]], None],
        on_late: Callable[[Sequence[Delivery]], None],
        isolation: Isolation,
        hooks: Hooks,
        contact: Contact,
        lease: float,
        retention: float,
        queues: frozenset[str] | None = None,
        worker_id: str = "",
    ) -> None:
        self._broker = broker
        self._commands = commands
        self._outbox = outbox
        self._free_slots = free_slots
        self._holds_back = may_hold_back
        self._enough = enough
        self._most_turns = MAX_TURNS if broker.keeps_order else 1
        self._on_claimed = on_claimed
        self._on_late = on_late
        self._isolation = isolation
        self._hooks = hooks
        self._contact = contact
        self._lease = lease
        self._retention = retention
        names = sorted(queues or ())
        self._only = [f"{priority}:{name}" for priority in PRIORITIES for name in names]
        self._worker_id = worker_id
        self._due_timer: asyncio.TimerHandle | None = None
        self._accepting = True
        self._maybe_async = self._maybe_sync = True  # there may be ready operations of this kind
        self._event = asyncio.Event()
        self._may_wait = asyncio.Event()
        self._turns: list[float] = []  # when those began that are on their way
        self._turn_ended = asyncio.Event()
        self._asked: list[Slots] = []  # those of the claims that are on their way, but for that of the blocking read
        self._missed = self._resting = False  # a reason to turn was passed over; Redis was away a moment ago
        self.record = ClaimRecord()
        """How the claims went."""
        self._blocking = BlockingRead(broker, waiter, commands, hooks, worker_id, self._woken)
        self._offset: float | None = None  # what the clock of Redis is ahead of `time.monotonic`

    @property
    def accepting(self) -> bool:
        """Whether it still claims."""
        return self._accepting

    @property
    def is_free(self) -> bool:
        """Whether no round trip is on its way."""
        return not self._turns

    @property
    def turning_for(self) -> float | None:
        """Seconds since the oldest round trip on its way began, or since the blocking read should have been back."""
        began = min(self._turns, default=self._blocking.until)
        return None if began is None else max(0.0, time.monotonic() - began)

    def notify(self) -> None:
        """An outcome was put, or a slot became free."""
        if not self._event.is_set():
            self._event.set()

    async def stop_claiming(self) -> None:
        """From now on outcomes are written and nothing is claimed. Waits for the claims that are on their way."""
        self._accepting = False
        self._may_wait.clear()
        while self._asked:
            await self._end_of_a_turn()
        await self._blocking.end()

    def server_time(self) -> float:
        """The clock of Redis, in seconds, as far as it is known here. It does not go back unless that one has."""
        return time.time() if self._offset is None else time.monotonic() + self._offset

    async def run(self) -> None:
        """Turn until cancelled. `MAX_TURNS` tasks may do so at once."""
        backoff = 0.1
        self._event.set()
        while True:
            await self._event.wait()
            if not self._event.is_set():
                continue  # another task has seen to it
            self._event.clear()
            if self._holds_back():
                continue
            if not self._may_turn():
                self._missed = True
                continue
            try:
                await self.turn()
            except QueueError as error:
                self._tell_refusal("claim", error)
                await self._rest(backoff)
                backoff = min(2 * backoff, MAX_BACKOFF)
            except Exception as error:
                self.record.refuse(f"{type(error).__name__}: {error}")
                raise  # told, and this loop starts again
            else:
                backoff = 0.1

    def _may_turn(self) -> bool:
        """Whether a round trip may begin: the first, or another one with enough outcomes to be worth it."""
        if self._resting:
            return False
        return not self._turns or (len(self._turns) < self._most_turns and len(self._outbox) >= self._enough)

    async def _rest(self, seconds: float) -> None:
        self._resting = True
        try:
            await asyncio.sleep(seconds)
        finally:
            self._resting = False
            self._event.set()

    async def wait_for_work(self) -> None:
        """Block on the wake-up markers whenever there is nothing to claim, and claim then; until cancelled.

        When that fails, in whatever way, a turn looks what there is to claim: it knows best what Redis refuses.
        """
        pause = FUTILE_PAUSE
        while True:
            await self._may_wait.wait()
            self._may_wait.clear()
            slots = self._free()
            if self._accepting and slots and not self._wants(slots):
                # No suspect: by then the worker may hold others. Where one waits, the claim says so.
                one = Slots(min(1, slots.for_async), min(1, slots.for_sync))
                try:
                    await self._blocking.run(one, self._claim_for(one))
                except QueueError as error:
                    self._tell_refusal("wait", error)
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, MAX_PAUSE)
                    self._look_again()
                except BaseException:
                    self._look_again()
                    raise
                else:
                    pause = FUTILE_PAUSE

    async def turn(self) -> None:
        """One round trip: write outcomes, claim what there is a slot for."""
        batch = self._outbox.take()
        try:
            question, slots = self._ask(batch)
            parts = self._outbox.calls(batch)
        except BaseException:
            self._outbox.put_back(batch, ambiguous=False)
            raise
        calls = [call for call, _ in parts] + ([question] if question is not None else [])
        if not calls:
            return
        asked_at = time.monotonic()
        self._turns.append(asked_at)
        try:
            replies = await self._send(calls, batch, slots)
            failed = next((reply for reply in replies if isinstance(reply, BrokerUnavailableError)), None)
            if failed is None:
                self._contact.made()
            else:
                self._failed(failed)
            try:
                self._outbox.settle_all(parts, replies)
            finally:
                if slots is not None:
                    self._claimed(replies[-1], asked_at)
            if failed is not None:
                raise failed
        finally:
            self._turns.remove(asked_at)
            self._turn_ended.set()
            if self._missed or len(self._outbox):
                self._missed = False
                self._event.set()

    async def flush(self, timeout: float) -> None:
        """Write all outcomes, trying for at most `timeout` seconds."""
        deadline = time.monotonic() + timeout
        # A turn that goes on holds outcomes, too: cut off, they would be sent again, and come back as stale.
        while (len(self._outbox) or self._turns) and time.monotonic() < deadline:
            try:
                if len(self._outbox):
                    await self.turn()
                else:
                    async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                        await self._end_of_a_turn()
            except Exception as error:  # noqa: BLE001  whatever it is: what waits may be written the next time
                if not isinstance(error, TimeoutError | BrokerUnavailableError):
                    self._hooks.on_event(WorkerTaskFailed("flush", f"{type(error).__name__}: {error}"))
                await asyncio.sleep(0.1)

    async def _end_of_a_turn(self) -> None:
        self._turn_ended.clear()
        await self._turn_ended.wait()

    def _free(self) -> Slots:
        """The slots that may be claimed for now, without those for which claims are on their way."""
        slots = self._free_slots()
        kept = self._blocking.slots
        taken = self._asked if kept is None else [*self._asked, kept]
        if not taken:
            return slots
        if any(one.suspect for one in taken):  # it may come back with a suspect, beside which nothing is to run
            return Slots(0, 0)
        return Slots(
            max(0, slots.for_async - sum(one.for_async for one in taken)),
            max(0, slots.for_sync - sum(one.for_sync for one in taken)),
            slots.suspect and not self._asked,
        )

    def _ask(self, batch: Sequence[Settlement]) -> tuple[Call[Any] | None, Slots | None]:
        """What to ask of Redis, beside the writing of `batch`: a claim, and for which slots; or to end the blocking
        read. That is done when all slots are kept for it, as its claim says when the next operation is due, and when it
        listens for too little.
        """  # noqa: D205
        if not self._accepting:
            return None, None
        slots = self._free()
        if slots and (batch or self._wants(slots)):
            # A marker that comes while the claim is on its way sets them again: the reply must not wipe that out.
            self._maybe_async = self._maybe_sync = False
            return self._claim_for(slots), slots
        kept = self._blocking.slots
        if kept and (self._is_deaf(slots) or self._wants(kept) or any(one.is_delayed for one in batch)):
            self._maybe_async = self._maybe_sync = False
            return self._blocking.ring(), None
        if not self._asked:
            self._may_wait.set()
        return None, None

    def _is_deaf(self, slots: Slots) -> bool:
        """Whether the blocking read began when there was no slot of a kind for which there is one now."""
        kept = self._blocking.slots or slots
        return (slots.for_async > 0 and not kept.for_async) or (slots.for_sync > 0 and not kept.for_sync)

    def _claim_for(self, slots: Slots) -> Call[Claimed]:
        return self._commands.claim(
            async_slots=slots.for_async,
            sync_slots=slots.for_sync,
            lease=self._lease,
            retention=self._retention,
            worker=self._worker_id,
            suspect=slots.suspect,
            only=self._only,
        )

    def _wants(self, slots: Slots) -> bool:
        """Whether there may be something to claim for a free slot."""
        return (slots.for_async > 0 and self._maybe_async) or (slots.for_sync > 0 and self._maybe_sync)

    async def _send(
        self, calls: Sequence[Call[Any]], batch: Sequence[Settlement], slots: Slots | None
    ) -> list[Any | QueueError]:
        began = time.monotonic()
        if slots is not None:
            self._asked.append(slots)
        try:
            replies = await self._broker.run_many(calls)
        except BrokerUnavailableError as error:
            self._outbox.put_back(batch, ambiguous=error.ambiguous)
            self._failed(error)
            raise
        except BaseException:  # cancelled, or whatever it is: without an answer they must go again
            self._maybe_async = self._maybe_sync = True
            self._outbox.put_back(batch, ambiguous=True)
            raise
        finally:
            if slots is not None:
                self._asked.remove(slots)
        took = time.monotonic() - began
        self._hooks.on_event(BrokerCall("settle" if slots is None else "claim", took))
        return replies

    def _failed(self, error: BrokerUnavailableError) -> None:
        self._maybe_async = self._maybe_sync = True
        self.record.fail()
        self._contact.failed()
        self._hooks.on_event(BrokerError("turn", error.kind))

    def _tell_refusal(self, operation: str, error: QueueError) -> None:
        """Tell what Redis has refused. That it cannot serve is told where that is noticed."""
        if not isinstance(error, BrokerUnavailableError):
            self._hooks.on_event(BrokerError(operation, "refused", str(error)))

    def _woken(self, reply: Claimed | QueueError | None, asked_at: float) -> None:
        """The blocking read is back, with the reply of its claim if that was carried out."""
        self._contact.made()
        if reply is None:
            self._look_again()
        else:
            self._claimed(reply, asked_at)

    def _claimed(self, reply: Claimed | QueueError, asked_at: float) -> None:
        if isinstance(reply, QueueError):
            self._maybe_async = self._maybe_sync = True  # nothing is known of what there is
            if isinstance(reply, BrokerUnavailableError):
                return
            self.record.refuse(str(reply))
            raise reply
        self.record.accept()
        self._set_clock(reply.now, asked_at)
        self._expect(reply.next_due)
        self._take(reply)
        woken = self._maybe_async or self._maybe_sync
        self._maybe_async |= reply.more_async
        self._maybe_sync |= reply.more_sync
        slots = self._free()
        if self._wants(slots):
            if reply.deliveries or woken or (reply.suspect_waits and slots.suspect):
                self._event.set()
            else:
                self._pause()
        elif self._is_deaf(slots):
            self._event.set()
        elif not self._asked:
            self._may_wait.set()

    def _set_clock(self, now: float, asked_at: float) -> None:
        """`now`, cut to milliseconds, was the time of Redis between `asked_at` and this moment. What fits stays."""
        least, most = now - time.monotonic(), now + 0.001 - asked_at
        self._offset = least if self._offset is None else min(max(self._offset, least), most)

    def _take(self, reply: Claimed) -> None:
        self._isolation.met(one_waits=reply.suspect_waits)
        if not reply.deliveries:
            return
        # This process was stopped, or its event loop blocked, when the reply came; or a suspect runs alone by now.
        if self.server_time() - reply.now > self._lease / 2 or not self._free_slots():
            self._on_late(reply.deliveries)
            self._maybe_async = self._maybe_sync = True
            return
        if reply.alone_for:
            self._isolation.took(reply.deliveries[0].token, reply.alone_for)
        else:
            self._isolation.took_others()
        self._on_claimed([(delivery, reply.kinds[delivery.ready_key]) for delivery in reply.deliveries])

    def _expect(self, next_due: float | None) -> None:
        """Look again when the next delayed operation is due: a blocking read that began before knows nothing of it."""
        if self._due_timer is not None:
            self._due_timer.cancel()
        self._due_timer = (
            None if next_due is None else asyncio.get_running_loop().call_later(next_due, self._look_again)
        )

    def _pause(self) -> None:
        """There is work that must not be taken now (its kind has no free slot): look again in a moment."""
        self._maybe_async = self._maybe_sync = False
        self._may_wait.clear()
        asyncio.get_running_loop().call_later(FUTILE_PAUSE, self._look_again)

    def _look_again(self) -> None:
        self._maybe_async = self._maybe_sync = True
        self._event.set()
