"""The bounded thread pool for sync processors, with a waiting room and an honest account of its threads.

Python's own executor takes any number of jobs, cannot tell a started one from a waiting one, and holds up the exit of
the process until the last thread has ended; none of that is right for a worker.

Jobs beyond the threads wait in a room of `ROOM_FACTOR` places a thread, which keeps the threads fed between two
claims. A job that has waited there for `wait_limit` is *exhausted*: its future raises `ThreadPoolExhaustedError`, and
the room stays closed for a moment, so that only as much is claimed as there are free threads. A *patient* job (one
that must not lose another attempt to a mere backlog) waits as long as the pool still finishes jobs; it is exhausted
only when none has ended for `patience` seconds. While every thread has been busy with one job for that long, the room
is closed as well: what is claimed then would only wait, and lose attempts by it.

Python cannot end a thread. One whose job has run beyond its limit is *abandoned*: its place stays taken until the job
returns, and it is reported once, with what it stands in.

All methods but `stats` and `expect` are called on the event loop's thread.
"""

from __future__ import annotations

import asyncio
import contextvars
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import msgspec

from queue_system.errors import ThreadPoolExhaustedError
from queue_system.events import (
    PoolStats,
    ThreadAbandoned,
    current_operation,
)
from queue_system.runtime import forked
from queue_system.runtime.account import BusyAccount
from queue_system.runtime.incident import ProcessorRaisedError, stack_of

ROOM_FACTOR: Final = 3
"""Waiting places for each thread: at 4 threads' worth of work in the pool, jobs of 25 ms and more can overstay."""

LOOK_AFTER: Final = 0.001
"""Seconds that a result may wait for others while its thread goes on with the next job."""

WAIT_LIMIT: Final = 0.1
ROOM_CLOSED_FOR: Final = 0.5
PATIENCE: Final = 30.0
ABANDON_AFTER: Final = 600.0


class _Job(msgspec.Struct, eq=False, gc=False):
    """What a thread is to do: once it does, since `start`, and for `limit` seconds before it counts as abandoned.

    `ticket` is one byte, for whoever takes the job. A list would do as well, but the garbage collector counts lists.
    """

    function: Callable[[], Any]
    future: asyncio.Future[Any]
    context: contextvars.Context
    queued_at: float
    ticket: bytearray
    start: float = 0.0
    limit: float = 0.0
    reported: bool = False

    def take(self) -> bool:
        """True for exactly one caller: the thread that runs the job, or who withdraws it."""
        try:
            self.ticket.pop()  # atomic
        except IndexError:
            return False
        return True


class ThreadPool:
    """Threads for sync processors.

    Args:
        size: threads at most; each is started when it is first needed.
        wait_limit: seconds that a job may wait for a thread, 0.1 by default.
        patience: seconds that a patient job waits while no job ends, 30 by default.
        abandon_after: seconds after which a running job counts as abandoned, 10 minutes by default.
        name: prefix of the threads' names.
        on_capacity: called when more may be submitted than before.
    """

    def __init__(
        self,
        size: int,
        *,
        wait_limit: float = WAIT_LIMIT,
        patience: float = PATIENCE,
        abandon_after: float = ABANDON_AFTER,
        name: str = "queue-system-pool",
        on_capacity: Callable[[], None] = lambda: None,
    ) -> None:
        self.size = size
        self._wait_limit = wait_limit
        self._patience = patience
        self._abandon_after = abandon_after
        self._name = name
        self._on_capacity = on_capacity
        self._loop: asyncio.AbstractEventLoop | None = None
        self._jobs: deque[_Job] = deque()
        self._bell: queue.SimpleQueue[None] = queue.SimpleQueue()  # wakes one thread
        self._rung = self._closed = self._looks_soon = False
        self._done: deque[tuple[_Job, Any, BaseException | None]] = deque()
        self._notified = False
        self._threads: list[threading.Thread] = []
        self._running: dict[int, _Job] = {}
        self._waiting: deque[_Job] = deque()  # those with a limit, in the order of their limits
        self._patient: dict[_Job, None] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._in_pool = 0
        self._room_opens_at = 0.0
        self._last_end = time.monotonic()
        self._account = BusyAccount(size)
        self._portion = max(1, size * (1 + ROOM_FACTOR) // 2)
        self.submissions = 0
        self.exhaustions = 0

    @property
    def limit(self) -> int:
        """How many jobs may be in the pool now, running and waiting."""
        now = time.monotonic()
        closed = now < self._room_opens_at or self._stands_still(now)
        return self.size if closed else self.size * (1 + ROOM_FACTOR)

    @property
    def active(self) -> int:
        """Threads that are busy with a job."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Jobs that have no thread yet."""
        return max(0, self._in_pool - self.size)

    def submit(self, function: Callable[[], Any], *, patient: bool = False) -> asyncio.Future[Any]:
        """Run `function` in a thread, in a copy of the current context.

        Returns:
            A future of its result. It raises what the function raises, or `ThreadPoolExhaustedError` when no thread
            became free in time: then the function was not called.
        """
        self._loop = asyncio.get_running_loop()
        future = self._loop.create_future()
        job = _Job(function, future, contextvars.copy_context(), time.monotonic(), ticket=bytearray(1))
        self.submissions += 1
        self._in_pool += 1
        self._account.change(self._in_pool)
        if self._in_pool > len(self._threads) < self.size:
            self._start_thread(needed=not self._threads)
        if self._in_pool > self.size:
            self._limit_waiting(job, patient=patient)
        self._jobs.append(job)
        self._ring()
        self._look_soon()
        return future

    def stats(self) -> PoolStats:
        """How the pool is doing. May be called from any thread."""
        now = time.monotonic()
        runs = list(self._running.values())
        busy, capacity, saturated = self._account.read()
        return PoolStats(
            size=self.size,
            active=len(runs),
            waiting=self.waiting,
            abandoned=sum(now - run.start > run.limit for run in runs),
            submissions=self.submissions,
            exhaustions=self.exhaustions,
            busy_seconds=busy,
            capacity_seconds=capacity,
            saturated_seconds=saturated,
            longest_running=max((now - run.start for run in runs), default=0.0),
        )

    def expect(self, limit: float) -> None:
        """The job that calls this, in its thread, may run for `limit` seconds before it counts as abandoned."""
        self._running[threading.get_ident()].limit = limit

    def report_abandoned(self) -> list[ThreadAbandoned]:
        """The threads that have been abandoned since it was asked last: each is told once for a job."""
        now = time.monotonic()
        found = [(me, run) for me, run in list(self._running.items()) if now - run.start > run.limit]
        told = [(self._report(me, run, now), me, run) for me, run in found if not run.reported]
        return [event for event, me, run in told if self._running.get(me) is run]  # it may have returned just now

    def shutdown(self) -> None:
        """End idle threads now and busy ones after their job; waits for none. Their results are dropped."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._closed = True
        for _ in self._threads:
            self._bell.put(None)

    def _stands_still(self, now: float) -> bool:
        """Whether every thread has been busy with one job for longer than a patient job would wait."""
        if self._in_pool < self.size or now - self._last_end < self._patience:
            return False
        starts = [run.start for run in list(self._running.values())]
        return len(starts) == self.size and now - max(starts) >= self._patience

    def _report(self, ident: int, run: _Job, now: float) -> ThreadAbandoned:
        run.reported = True
        names = {thread.ident: thread.name for thread in self._threads}
        return ThreadAbandoned(
            run.context.get(current_operation), names.get(ident, ""), now - run.start, stack_of(ident)
        )

    def _start_thread(self, *, needed: bool) -> None:
        # Daemons: a processor that never returns must not keep the process from ending.
        thread = threading.Thread(target=self._work, name=f"{self._name}-{len(self._threads)}", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # the system has no more: those that there are go on
            if needed:
                self._left()
                self.exhaustions += 1
                raise ThreadPoolExhaustedError(f"no thread could be started: {error}") from error
        else:
            self._threads.append(thread)

    def _work(self) -> None:
        me, forks = threading.get_ident(), forked.forks
        while (job := self._next_job()) is not None:
            if not job.take():
                continue
            job.start, job.limit = time.monotonic(), self._abandon_after
            self._running[me] = job
            result, error = None, None
            try:
                if not job.future.cancelled():
                    result = job.context.run(job.function)
            except BaseException as caught:  # noqa: BLE001  SystemExit too: it is the job's, not the thread's
                error = caught
            if forked.forks != forks:
                forked.end(error)
            self._running.pop(me, None)
            self._done.append((job, result, error))
            del job, result, error  # a waiting thread must not keep the last entity alive
            self._notify()

    def _next_job(self) -> _Job | None:
        """Wait for a job; None when there will be none any more."""
        while True:
            try:
                job = self._jobs.popleft()
            except IndexError:
                if self._closed:
                    return None
                self._bell.get()
                self._rung = False
                continue
            if self._jobs:
                self._ring()
            return job

    def _ring(self) -> None:
        """Wake one thread, unless one is on its way: it wakes the next one if it leaves something. Jobs that never wait
        are all done by one thread then, and none is woken, and waits for the interpreter, for nothing.
        """  # noqa: D205
        if not self._rung:
            self._rung = True
            self._bell.put(None)

    def _look_soon(self) -> None:
        """Let the event loop look for results in a moment, so that not each of many short jobs has to wake it."""
        if not self._looks_soon and self._loop is not None:
            self._looks_soon = True
            self._loop.call_later(LOOK_AFTER, self._look)

    def _look(self) -> None:
        self._looks_soon = False
        if self._done:
            self._settle()

    def _notify(self) -> None:
        """Wake the event loop for a result, unless it will look soon and this thread has more to do until then."""
        if self._notified or (self._looks_soon and self._jobs):
            return
        self._notified = True
        try:
            self._loop.call_soon_threadsafe(self._settle)  # type: ignore[union-attr]  # set by submit
        except RuntimeError:  # the loop is closed: nobody waits for this result any more
            self._done.clear()

    def _settle(self) -> None:
        """Hand over many results at once, with one wake-up of the loop, but at most half of what the pool holds: their
        outcomes can be written while the others are dealt with.
        """  # noqa: D205
        self._notified = False
        settled = min(len(self._done), self._portion)
        self._left(settled)
        for _ in range(settled):
            job, result, error = self._done.popleft()
            if self._patient:
                self._patient.pop(job, None)
            if job.future.done():
                continue
            if error is None:
                job.future.set_result(result)
            else:
                job.future.set_exception(_settable(error))
        self._last_end = time.monotonic()
        self._on_capacity()
        if self._done and self._loop is not None and not self._notified:
            self._notified = True
            self._loop.call_soon(self._settle)

    def _left(self, jobs: int = 1) -> None:
        self._in_pool -= jobs
        self._account.change(self._in_pool)

    def _limit_waiting(self, job: _Job, *, patient: bool) -> None:
        if patient:
            self._patient[job] = None
        else:
            self._waiting.append(job)
        self._arm()

    def _arm(self) -> None:
        if self._timer is None and self._loop is not None:
            while self._waiting and not self._waiting[0].ticket:
                self._waiting.popleft()
            if self._waiting:
                wait = self._waiting[0].queued_at + self._wait_limit - time.monotonic()
            elif self._patient:
                wait = min(1.0, self._patience)
            else:
                return
            self._timer = self._loop.call_later(max(0.0, wait), self._check_limits)

    def _check_limits(self) -> None:
        self._timer = None
        now = time.monotonic()
        while self._waiting and (not self._waiting[0].ticket or now - self._waiting[0].queued_at >= self._wait_limit):
            self._exhaust(self._waiting.popleft(), now)
        for job in list(self._patient):
            if not job.ticket:
                del self._patient[job]
            elif now - max(self._last_end, job.queued_at) >= self._patience:
                del self._patient[job]
                self._exhaust(job, now)
        self._arm()

    def _exhaust(self, job: _Job, now: float) -> None:
        if not job.take():
            return
        self._left()
        self.exhaustions += 1
        self._room_opens_at = now + ROOM_CLOSED_FOR
        self._loop.call_later(ROOM_CLOSED_FOR, self._on_capacity)  # type: ignore[union-attr]  # set by submit
        if not job.future.done():
            waited = now - job.queued_at
            job.future.set_exception(ThreadPoolExhaustedError(f"no free thread of {self.size} within {waited:.3f} s"))


def _settable(error: BaseException) -> BaseException:
    """What may be set on a future and raised in a task without ending the loop."""
    if isinstance(error, Exception) and not isinstance(error, StopIteration):
        return error
    wrapped = ProcessorRaisedError(error)
    wrapped.__cause__ = error
    return wrapped
