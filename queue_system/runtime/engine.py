"""What a worker consists of, how it starts, and the one place where the order of its stopping is written."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from queue_system.broker.aio import AsyncBroker
from queue_system.broker.commands import Commands
from queue_system.broker.messages import KIND_ASYNC, KIND_MIXED, KIND_SYNC, Delivery
from queue_system.errors import BrokerUnavailableError, QueueError
from queue_system.events import (
    MAX_MEMORY,
    MAX_OPERATIONS,
    TASKS_ABANDONED,
    THREADS_ABANDONED,
    BrokerBack,
    BrokerError,
    Health,
    LeaseLost,
    WorkerStats,
    WorkerTaskFailed,
)
from queue_system.hooks import Hooks
from queue_system.operation import Operation
from queue_system.runtime.attempts import Attempt, Attempts
from queue_system.runtime.calling import cancel_late
from queue_system.runtime.contact import Contact
from queue_system.runtime.deadlines import Deadlines
from queue_system.runtime.fetch import MAX_TURNS, Fetcher
from queue_system.runtime.finish import Outbox
from queue_system.runtime.health import Signs, judge
from queue_system.runtime.incident import describe_refusal
from queue_system.runtime.intake import Claim, Intake
from queue_system.runtime.isolation import Isolation
from queue_system.runtime.lease import Broker, LeaseKeeper
from queue_system.runtime.loops import SupervisedLoop
from queue_system.runtime.pool import ABANDON_AFTER, ThreadPool
from queue_system.runtime.progress import Progress
from queue_system.runtime.reaper import Reaper
from queue_system.runtime.recycle import Recycling
from queue_system.runtime.unheeded import HEED_LIMIT, RECYCLE_AFTER, Unheeded
from queue_system.runtime.waiting import MAX_BLOCK, Slots
from queue_system.signing import UNSIGNED, Signer
from queue_system.utils import CircuitBreaker

BEAT_INTERVAL: Final = 0.5
CANCEL_GRACE: Final = 1.0
"""Seconds for cancelled processors to clean up, after the grace of a stop is over."""

CALLBACK_THREADS: Final = 4
RELEARN_AFTER: Final = 60.0  # a queue that was forgotten meanwhile comes back with an unknown kind
MAX_LEARNED: Final = 10_000

SHUTDOWN: Final = "shutdown"
LEASE_LOST: Final = "lease_lost"
CLAIMED_LATE: Final = "claimed_late"


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """The numbers of a worker; see `QueueWorker`. Times in seconds."""

    worker_id: str
    max_workers: int
    thread_pool_size: int
    lease: float
    max_crashes: int
    stall_limit: float
    done_ttl: float
    retention: float
    max_bytes: int
    max_depth: int
    queues: frozenset[str] | None = None
    abandon_after: float = ABANDON_AFTER
    max_abandoned: int | None = None
    signer: Signer = UNSIGNED

    @property
    def worth_a_turn(self) -> int:
        """So many outcomes are written while others are processed: those of half the slots, but of 5 at least."""
        return max(self.max_workers // 2, min(self.max_workers, 5))

    @property
    def reap_interval(self) -> float:
        """A fifth of the lease, from 1 to 5 s: a crash is noticed soon, and an idle worker asks little."""
        return min(max(self.lease / 5, 1.0), 5.0)


class Engine:
    """Composes a worker's parts. Made on the event loop that will run it.

    Args:
        settings: its numbers.
        commands: builds calls.
        hooks: told what happens.
        breaker: opens while Redis is away.
        new_broker: makes a broker for asyncio whose commands take at most so many seconds.
        new_sync_broker: makes the lease thread's broker.
        worker_loop: the loop of one worker task, given its number. The last number is that of the dispatcher, which
            hands sync operations to the pool.
        on_quarantine: given each operation over which too many workers have died.
        on_unheeded: decides an attempt whose processor has not heeded its cancellation; runs in the attempt's context.
        recycling: when the worker has done enough.
        on_enough: told, perhaps again and again, why the worker should drain and end.
    """

    def __init__(
        self,
        settings: EngineSettings,
        *,
        recycling: Recycling,
        on_enough: Callable[[str], None],
        commands: Commands,
        hooks: Hooks,
        breaker: CircuitBreaker,
        new_broker: Callable[[float], AsyncBroker],
        new_sync_broker: Callable[[], Broker],
        command_timeout: float,
        worker_loop: Callable[[int], Awaitable[None]],
        on_quarantine: Callable[[Claim], None],
        on_unheeded: Callable[[Attempt], Coroutine[Any, Any, None]],
    ) -> None:
        self.settings = settings
        self._worth_a_turn = settings.worth_a_turn
        self._hooks = hooks
        self._on_quarantine = on_quarantine
        self._on_unheeded = on_unheeded
        self.unheeded = Unheeded()
        self._recycling = recycling
        self._on_enough = on_enough
        self._loop = asyncio.get_running_loop()
        self._broker = new_broker(command_timeout)
        self._waiter = new_broker(MAX_BLOCK + command_timeout)
        self.pool = ThreadPool(
            settings.thread_pool_size, abandon_after=settings.abandon_after, on_capacity=self.changed
        )
        isolation = Isolation(self._changed_later, patience=settings.lease)
        self.intake = Intake(
            settings.max_workers,
            lambda: self.pool.limit,
            self.changed,
            isolation,
            self._others_wait,
        )
        self.callback_pool = ThreadPool(
            CALLBACK_THREADS, abandon_after=settings.abandon_after, name="queue-system-callbacks"
        )
        self._drained = asyncio.Event()
        self._stopping = self._leaves_hung = False
        self.ending = False
        """Its loops are being stopped: what runs in them does not go on."""
        self._last_account = (0.0, 0.0)
        self._utilization = self._lag = 0.0
        self._commands = commands
        self._learned: dict[tuple[str, str, str], float] = {}  # when
        self._teaching: set[asyncio.Task[None]] = set()
        self._breaker = breaker
        contact = Contact(breaker, lambda seconds: self._on_loop(hooks.on_event, BrokerBack(seconds)))
        self.leases = LeaseKeeper(
            new_sync_broker,
            commands,
            lease=settings.lease,
            worker_id=settings.worker_id,
            describe=self._describe,
            on_lost=lambda operation_id, token: self._on_loop(self._lease_lost, operation_id, token),
            on_error=lambda error: self._on_loop(self._lease_error, error),
            on_contact=contact.made,
            stall_limit=settings.stall_limit,
        )
        self.outbox = Outbox(
            commands,
            hooks,
            done_ttl=settings.done_ttl,
            retention=settings.retention,
            on_settled=self.leases.remove,
            on_refused=lambda error: hooks.on_event(WorkerTaskFailed("outbox", str(error))),
        )
        self.fetcher = Fetcher(
            self._broker,
            self._waiter,
            commands,
            self.outbox,
            free_slots=self.intake.free,
            may_hold_back=lambda: self.intake.waiting > 0 and len(self.outbox) < self._worth_a_turn,
            enough=self._worth_a_turn,
            on_claimed=self._claimed,
            on_late=self._give_back_late,
            isolation=isolation,
            hooks=hooks,
            contact=contact,
            lease=settings.lease,
            retention=settings.retention,
            queues=settings.queues,
            worker_id=settings.worker_id,
        )
        self.progress = Progress(
            self._broker,
            commands,
            self.fetcher.record,
            free_slots=lambda: self.intake.free() if self.fetcher.accepting else Slots(0, 0),
            queues=settings.queues,
        )
        self.attempts = Attempts(
            settings.worker_id,
            hooks,
            self.outbox,
            clock=self.fetcher.server_time,
            max_bytes=settings.max_bytes,
            max_depth=settings.max_depth,
            on_outcome=self.fetcher.notify,
            signer=settings.signer,
        )
        self._reaper = Reaper(
            self._broker,
            commands,
            lease=settings.lease,
            interval=settings.reap_interval,
            max_crashes=settings.max_crashes,
            retention=settings.retention,
            on_quarantine=self._quarantine,
            on_contact=contact.made,
            hooks=hooks,
        )
        self.deadlines: Deadlines[Attempt] = Deadlines(self._time_is_over)
        self._service_loops = self._supervised(
            ("beat", self._beat),
            *((f"fetch-{number}", self.fetcher.run) for number in range(MAX_TURNS)),
            ("wait", self.fetcher.wait_for_work),
            ("reap", self._reaper.run),
            ("progress", self.progress.run),
        )
        self.worker_loops = self._supervised(
            *(
                (f"worker-{number}", functools.partial(worker_loop, number))
                for number in range(settings.max_workers + 1)
            )
        )

    @property
    def dispatcher(self) -> int:
        """The number of the worker task that hands sync operations to the pool."""
        return self.settings.max_workers

    def stats(self, state: str) -> WorkerStats:
        """The worker's figures now; from any thread."""
        busy, _, saturated = self.intake.account.read()
        tasks = self.worker_loops[: self.settings.max_workers]
        return WorkerStats(
            state=state,
            pool=self.pool.stats(),
            utilization=self._utilization,
            tasks=len(tasks),
            tasks_alive=sum(loop.alive for loop in tasks),
            tasks_busy=min(self.intake.async_held, len(tasks)),
            task_busy_seconds=busy,
            tasks_saturated_seconds=saturated,
            loop_lag=max(self._lag, self.leases.stalled_for - BEAT_INTERVAL),
            last_contact=self.leases.last_contact,
            tasks_abandoned=self.unheeded.count(is_async=True),
        )

    def health(self, state: str) -> Health:
        """Whether the worker is alive and ready; from any thread."""
        return judge(self._signs(state))

    def _signs(self, state: str, *, tasks_for: float = 0.0) -> Signs:
        pool, record = self.pool.stats(), self.fetcher.record
        return Signs(
            state=state,
            # The last part of a stop is without these loops, and healthy.
            loop_blocked_for=0.0 if self.ending else self.leases.stalled_for,
            loops_down=self._loops_down(),
            tasks_down=() if self.ending else tuple(loop.name for loop in self.worker_loops if not loop.alive),
            turning_for=max(self.fetcher.turning_for or 0.0, self.leases.turning_for),
            stuck_for=0.0 if self.ending else self.progress.stuck_for,
            claim_accepted=record.accepted,
            claim_overdue_for=record.overdue_for,
            claim_refusal=record.refusal,
            without_contact_for=time.time() - self.leases.last_contact,
            breaker=self._breaker.state,
            threads=pool.size,
            threads_abandoned=pool.abandoned + self.unheeded.count(is_async=False),
            tasks=self.settings.max_workers,
            tasks_abandoned=self.unheeded.count(is_async=True, longer_than=tasks_for),
            abandoned_limit=self.settings.max_abandoned or 0,
            callback_threads_abandoned=self.callback_pool.stats().abandoned >= CALLBACK_THREADS,
        )

    def _loops_down(self) -> tuple[str, ...]:
        if self.ending:
            return ()
        down = tuple(loop.name for loop in self._service_loops if not loop.alive)
        return down if self.leases.alive else (*down, "leases")

    def start(self) -> None:
        """Start everything."""
        self.leases.start()
        for loop in (*self._service_loops, *self.worker_loops):
            loop.start()

    async def stop(self, grace: float, *, leave_hung: bool = False) -> None:
        """Drain for at most `grace` seconds, give back the rest, end everything.

        The order: claim no more; give back what no task has taken; let the rest finish; cancel what has not, and
        give it back; write the last outcomes; only then end renewal, so that no lease runs out on the way.

        Args:
            grace: seconds.
            leave_hung: do not wait for operations whose thread is abandoned, nor for those that have no thread.
        """
        self._stopping, self._leaves_hung = True, leave_hung
        with self._told():
            await self.fetcher.stop_claiming()
        with self._told():
            self._give_back_waiting()
            await self._wait_until_drained(grace)
        self._leaves_hung = False  # from here on each of them is brought to its end
        with self._told():
            self._give_back_waiting()
            await self._cancel_running()
        with self._told():
            await self.fetcher.flush(CANCEL_GRACE)
        self.ending = True
        with self._told():
            await asyncio.gather(*(loop.stop() for loop in (*self.worker_loops, *self._service_loops)))
        with self._told():
            await self._let_go()
        with self._told():
            await self.fetcher.flush(CANCEL_GRACE)
        await asyncio.gather(*self._teaching, return_exceptions=True)
        with self._told():
            await asyncio.to_thread(self.leases.stop)
        for pool in (self.pool, self.callback_pool):
            with self._told():
                pool.shutdown()
        for broker in (self._waiter, self._broker):
            with self._told():
                await broker.close()

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """A part of the stop: when it fails, that is told, and the next one follows."""
        try:
            yield
        except Exception as error:  # noqa: BLE001  no lease, thread or connection must outlive what another one does
            self._loop_failed("stop", error)

    def learn(self, item: Operation, claim: Claim, *, is_async: bool) -> None:
        """The function's kind is known now: let the registry know it, where its queue was said to hold another.

        A queue of unknown kind is claimed only while both a worker task and a thread are free, so this is what keeps
        sync work from waiting behind async work and the other way round.
        """
        kind = KIND_ASYNC if is_async else KIND_SYNC
        if claim.kind in (kind, KIND_MIXED):
            return
        lesson = item["queue"], item["priority"], kind
        now = time.monotonic()
        if now - self._learned.get(lesson, -RELEARN_AFTER) < RELEARN_AFTER:
            return
        if len(self._learned) >= MAX_LEARNED:
            self._learned.clear()
        self._learned[lesson] = now
        self._keep(self._loop.create_task(self._teach(lesson)))

    async def _teach(self, lesson: tuple[str, str, str]) -> None:
        try:
            await self._broker.run(self._commands.learn(*lesson))
        except BrokerUnavailableError:
            self._learned.pop(lesson, None)  # at the next operation of that queue, then
        except BaseException as error:  # noqa: BLE001  a lesson is a help: what hinders it must not hinder the stop
            self._loop_failed("learn", error)

    def done(self, claim: Claim) -> None:
        """A claim's task is through with it: free its slot. Without an outcome its lease is let go, and runs out."""
        self.intake.done(claim)
        if not claim.settled:
            self.leases.remove([claim.key])
        if self._recycling.due_by_operations(self.attempts.made):
            self._on_enough(MAX_OPERATIONS)

    def hand_over(self, attempt: Attempt) -> None:
        """The attempt goes to the pool: its slot is one of the pool's, and `taken_from_pool` frees it."""
        if attempt.claim is not None:
            attempt.claim.handed_over = True
            self.intake.switch(attempt.claim, sync=True)

    def taken_from_pool(self, attempt: Attempt) -> None:
        """The attempt that was handed over is through."""
        self.attempts.close(attempt)
        if attempt.claim is not None:
            self.done(attempt.claim)

    def limit_of(self, attempt: Attempt) -> float:
        """Seconds after which the thread of a sync attempt counts as abandoned: a longer timeout of its own counts."""
        return max(self.settings.abandon_after, attempt.item.get("timeout") or 0.0)

    def came_back(self, attempt: Attempt) -> None:
        """The processor of an abandoned attempt has ended."""
        self.unheeded.discard(attempt)

    def is_abandoned(self, attempt: Attempt) -> bool:
        """Whether a sync attempt has had its thread for longer than its limit."""
        if attempt.on_loop or not attempt.called:
            return False
        return time.monotonic() - attempt.started > self.limit_of(attempt)

    def reroute(self, attempt: Attempt) -> bool:
        """An async operation came on the lane of sync ones: its claim goes to the worker tasks, which start anew."""
        self.attempts.close(attempt)
        if attempt.claim is not None:
            attempt.claim.handed_over = True
            self.intake.switch(attempt.claim, sync=False)
            self.intake.requeue(attempt.claim)
        return True

    def _supervised(self, *loops: tuple[str, Callable[[], Awaitable[None]]]) -> list[SupervisedLoop]:
        return [SupervisedLoop(name, run, self._loop_failed) for name, run in loops]

    def _claimed(self, deliveries: Sequence[tuple[Delivery, str]]) -> None:
        claims = [Claim(delivery, kind == KIND_SYNC, kind) for delivery, kind in deliveries]
        self.leases.add([claim.key for claim in claims])
        self.intake.put(claims)

    def _give_back_late(self, deliveries: Sequence[Delivery]) -> None:
        for delivery in deliveries:
            self.attempts.release(Claim(delivery, sync=False), CLAIMED_LATE)

    def _quarantine(self, delivery: Delivery) -> None:
        claim = Claim(delivery, sync=False)
        self.leases.add([claim.key])
        self._on_quarantine(claim)

    def _others_wait(self) -> bool:
        return len(self.outbox) >= self._worth_a_turn and self.fetcher.is_free

    def changed(self) -> None:
        """A slot may be free now, or a drain be over."""
        if self._stopping and self.intake.held <= self._left_behind():
            self._drained.set()
        self.fetcher.notify()

    def _left_behind(self) -> int:
        """How many of the held operations a drain does not wait for: of some the outcome is decided already."""
        if not self._leaves_hung:
            return len(self.unheeded)
        return len(self.unheeded) + sum(
            self.is_abandoned(attempt) or not (attempt.on_loop or attempt.called) for attempt in self.attempts.all()
        )

    def _changed_later(self, seconds: float) -> None:
        self._loop.call_later(seconds, self.changed)

    async def _wait_until_drained(self, timeout: float) -> None:
        self._drained.clear()
        if self.intake.held > self._left_behind():
            try:
                async with asyncio.timeout(timeout):
                    await self._drained.wait()
            except TimeoutError:
                return

    def _give_back_waiting(self) -> None:
        for claim in self.intake.drain():
            self.attempts.release(claim, SHUTDOWN)
            self.intake.done(claim)

    async def _cancel_running(self) -> None:
        running = self.attempts.all()
        for attempt in running:
            attempt.cancel(attempt.cancelled_for or SHUTDOWN)
        if running:
            await self._wait_until_drained(CANCEL_GRACE)
        for attempt in self.attempts.all():  # neither ended nor heeded its cancellation
            if attempt.claim is not None:
                self.attempts.release(attempt.claim, SHUTDOWN)

    async def _let_go(self) -> None:
        """End the tasks of processors that have heeded nothing: the event loop could not be closed around them."""
        left = [attempt for attempt in (*self.attempts.all(), *self.unheeded) if attempt.awaited is not None]
        for attempt in left:
            attempt.let_go()
        if tasks := [attempt.task for attempt in left if attempt.task is not None]:
            await asyncio.wait(tasks, timeout=CANCEL_GRACE)

    def _time_is_over(self, attempt: Attempt) -> None:
        """Of an attempt on the event loop: cancel it; abandon it when that was some time ago."""
        if attempt.cancelled_for == SHUTDOWN:
            return  # the stop sees to it
        if not attempt.cancelled_for:
            self.deadlines.set(attempt, HEED_LIMIT)
            cancel_late(attempt)
        elif self.attempts.find(*attempt.key) is attempt:
            self._keep(self._loop.create_task(self._on_unheeded(attempt), context=attempt.context))

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._teaching.add(task)
        task.add_done_callback(self._teaching.discard)

    async def _beat(self) -> None:
        while True:
            self.leases.beat()
            self._watch()
            began = time.monotonic()
            await asyncio.sleep(BEAT_INTERVAL)
            self._lag = max(0.0, time.monotonic() - began - BEAT_INTERVAL)

    def _watch(self) -> None:
        """Tell of threads that do not return, and whether there are too many, or the process has grown too large."""
        abandoned = [*self.pool.report_abandoned(), *self.callback_pool.report_abandoned()]
        for event in abandoned:
            self._hooks.on_event(event)
        if abandoned and self._leaves_hung:
            self.changed()
        if self.settings.max_abandoned != 0 and self._signs("").too_many_abandoned:
            self._on_enough(THREADS_ABANDONED)
        elif self.settings.max_abandoned != 0 and self._signs("", tasks_for=RECYCLE_AFTER).too_many_tasks_abandoned:
            self._on_enough(TASKS_ABANDONED)
        elif self._recycling.due_by_memory():
            self._on_enough(MAX_MEMORY)

    def _describe(self) -> dict[str, str]:
        """The heartbeat's fields: whom it serves, and how busy it is; `utilization` is since the last one."""
        stats = self.pool.stats()
        busy, capacity = stats.busy_seconds - self._last_account[0], stats.capacity_seconds - self._last_account[1]
        self._last_account = (stats.busy_seconds, stats.capacity_seconds)
        self._utilization = min(1.0, busy / capacity) if capacity > 0 else 0.0
        return {
            "threads": str(stats.size),
            "threads_active": str(stats.active),
            "utilization": f"{self._utilization:.4f}",
            "tasks": str(self.settings.max_workers),
            "tasks_busy": str(min(self.intake.async_held, self.settings.max_workers)),
            "tasks_abandoned": str(self.unheeded.count(is_async=True)),
            "held": str(self.intake.held),
            "queues": ",".join(sorted(self.settings.queues or ())),
            "claims": str(int(self.fetcher.accepting)),
        }

    def _on_loop(self, function: Callable[..., None], *args: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *args)
        except RuntimeError:
            return  # the loop is closed: there is nothing left to cancel or to tell

    def _lease_lost(self, operation_id: str, token: int) -> None:
        if self.outbox.has(operation_id, token) or not self.leases.keeps(operation_id, token):
            return  # a renewal has crossed its outcome on the way: the answer to that says what it was worth
        self.leases.remove([(operation_id, token)])
        self._hooks.on_event(LeaseLost(operation_id))
        attempt = self.attempts.find(operation_id, token)
        if attempt is not None and attempt.on_loop:
            if attempt.awaited is not None and not attempt.cancelled_for:
                self.deadlines.set(attempt, HEED_LIMIT)
            attempt.cancel(LEASE_LOST)

    def _lease_error(self, error: QueueError) -> None:
        if isinstance(error, BrokerUnavailableError):
            self._reaper.service_failed()  # other owners may be as unable to renew
            self._hooks.on_event(BrokerError("renew", error.kind))
        else:
            self._hooks.on_event(BrokerError("renew", "refused", str(error)))

    def _loop_failed(self, name: str, error: BaseException) -> None:
        told = describe_refusal(error)
        self._hooks.on_event(WorkerTaskFailed(name, f"{told.type}: {told.message}"))
