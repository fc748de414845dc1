"""`QueueWorker`: the named steps that an operation takes through a worker.

In the order of an operation's way::

    _worker_loop -> _process_queue_item -> _handle_queue_item
        -> _find_processor, _calculate_effective_timeout
        -> the call: awaited, or _execute_sync_processor
        -> the outcome: success, or decided by one of the _handle_... steps
        -> the outbox: one script applies it

Where a step takes `redis`, it is that outbox: steps decide, and send no commands of their own.
"""

from __future__ import annotations

import asyncio
import functools
import os
import platform
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from typing import Any, Final, Self

from queue_system.broker.messages import Delivery
from queue_system.checks import check_count, check_names, check_seconds
from queue_system.config import QueueConfig
from queue_system.context import OperationContext
from queue_system.errors import (
    BrokerUnavailableError,
    CircuitOpenError,
    DecodeError,
    ImportRefusedError,
    ThreadPoolExhaustedError,
    UnresolvableFunctionError,
    WorkerStateError,
)
from queue_system.events import (
    THREADS_ABANDONED,
    TOLD_TO_STOP,
    Health,
    PoolExhausted,
    PoolStarted,
    PoolUsed,
    TaskAbandoned,
    WorkerChanged,
    WorkerStats,
    WorkerTaskFailed,
)
from queue_system.keys import CALLBACK_QUEUE, check_queue_name
from queue_system.operation import KIND_CALLBACK, NewerSchemaError, Operation, decode_operation
from queue_system.outcome import (
    CANCELLED,
    CRASHED,
    ERROR,
    INTERNAL_ERROR,
    MAX_UNKNOWN_DELIVERIES,
    POOL_EXHAUSTED,
    TIMEOUT,
    TOTAL_TIMEOUT,
    UNKNOWN_DELAY,
    ErrorInfo,
    Failure,
    Outcome,
    Requeue,
    Success,
    decide,
    decide_unknown,
    total_timeout_exceeded,
)
from queue_system.reader import QueueReader
from queue_system.registry import FunctionRef, ImportNeededError, Processor
from queue_system.runtime import contained
from queue_system.runtime.attempts import Attempt
from queue_system.runtime.calling import (
    AttemptAbandonedError,
    AttemptTimeoutError,
    await_processor,
    call_in_thread,
    runs_on_loop,
)
from queue_system.runtime.engine import LEASE_LOST, SHUTDOWN, Engine, EngineSettings
from queue_system.runtime.health import STOPPED
from queue_system.runtime.importing import IMPORT_TIMEOUT, Importer
from queue_system.runtime.incident import describe_error, describe_refusal, stack_of, stack_of_call
from queue_system.runtime.intake import Claim
from queue_system.runtime.lease import STALL_LIMIT
from queue_system.runtime.pool import ABANDON_AFTER
from queue_system.runtime.recycle import Recycling
from queue_system.runtime.returned import Returned
from queue_system.runtime.unheeded import HEED_LIMIT
from queue_system.utils import circuit_breaker, retry_with_backoff, with_timeout

DEFAULT_LEASE: Final = 10.0
DEFAULT_GRACE: Final = 30.0

_callback_context: ContextVar[Callable[[], OperationContext] | None] = ContextVar("queue_system_callback", default=None)


class QueueWorker:
    """Processes queued operations.

    Up to `max_workers` async operations and `thread_pool_size` sync ones run at once; each kind in strict priority.
    ``async with QueueWorker(config):`` starts and stops it.

    Args:
        config: the queue, the same as its producers'.
        max_workers: worker tasks: how many async operations run at once, 5 by default.
        work_timeout: seconds for one attempt of an async processor that has no timeout of its own, 30 by default.
        thread_pool_size: threads: how many sync operations run at once, 20 by default.
        queues: names of the only queues to serve; None for all, an empty list for none. Callbacks are always served.
        lease: seconds after which an operation of a dead worker is taken over, 10 by default. It is renewed as long
            as the worker lives, so it needs not be as long as an operation.
        grace: seconds that `stop` lets running operations finish, 30 by default.
        max_crashes: an operation over which more workers than this have died is given up, 3 by default.
        stall_limit: seconds that the event loop may be blocked before its operations are left to others, 60.
        abandon_after: seconds after which a thread that still runs its operation counts as abandoned, 10 minutes by
            default: more than your longest sync operation takes. One whose own `timeout` is longer may take that.
        max_abandoned: so many abandoned threads are too many: the worker is not ready, drains and stops, since only a
            new process gets rid of them. All of the pool's by default; 0 for never. The same holds for worker tasks
            whose processor has not heeded its cancellation (all of them are always too many to be ready).
        max_operations: the worker drains and stops after so many operations (callbacks included); None for no limit.
        max_memory: and when the process takes so many bytes of memory; None for no limit. Both limits are drawn, for
            each worker, from their last 5 %, so that a fleet does not end at once.
        import_timeout: seconds that importing a module which an operation names may take, in a thread of its own, 30 by
            default. The operation then goes to the system errors, and nothing of that package is imported meanwhile.

    An async processor is awaited in one of the worker's tasks, which run one operation after the other. What it sets in
    its context (`contextvars`) is its own; what a library keeps for `asyncio.current_task()` is not.

    A worker that stops by itself is known by `wait_stopped`. What it gives back burns no attempt, except that an
    operation whose thread is abandoned has timed out.

    Attributes:
        state: ``new``, ``running``, ``draining`` or ``stopped``.
        stop_reason: why it drains or has stopped, one of `queue_system.events.STOP_REASONS`; empty before.
        drained_in: seconds that draining took, once it has stopped.

    Raises:
        ConfigurationError: a number is out of its range, or a queue's name is bad.
    """

    def __init__(
        self,
        config: QueueConfig,
        max_workers: int = 5,
        work_timeout: float = 30.0,
        thread_pool_size: int = 20,
        *,
        queues: Iterable[str] | None = None,
        lease: float = DEFAULT_LEASE,
        grace: float = DEFAULT_GRACE,
        max_crashes: int = 3,
        stall_limit: float = STALL_LIMIT,
        abandon_after: float = ABANDON_AFTER,
        max_abandoned: int | None = None,
        max_operations: int | None = None,
        max_memory: int | None = None,
        import_timeout: float = IMPORT_TIMEOUT,
    ) -> None:
        self.config = config
        self.max_workers = check_count("max_workers", max_workers)
        self.work_timeout = check_seconds("work_timeout", work_timeout)
        self.thread_pool_size = check_count("thread_pool_size", thread_pool_size)
        self.grace = check_seconds("grace", grace, zero=True)
        self.worker_id = f"{platform.node()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self.state = "new"
        self.stop_reason = ""
        self.drained_in = 0.0
        self._recycling = Recycling(
            None if max_operations is None else check_count("max_operations", max_operations),
            None if max_memory is None else check_count("max_memory", max_memory),
        )
        self._settings = EngineSettings(
            worker_id=self.worker_id,
            max_workers=self.max_workers,
            thread_pool_size=self.thread_pool_size,
            lease=check_seconds("lease", lease),
            max_crashes=check_count("max_crashes", max_crashes, least=0),
            stall_limit=check_seconds("stall_limit", stall_limit),
            done_ttl=config.done_ttl,
            retention=config.backup_ttl,
            # A callback carries its parent's entity and its result.
            max_bytes=2 * config.max_operation_bytes,
            max_depth=config.max_depth + 3,
            queues=None if queues is None else _served(queues),
            abandon_after=check_seconds("abandon_after", abandon_after),
            max_abandoned=None
            if max_abandoned is None
            else check_count("max_abandoned", max_abandoned, least=0, most=thread_pool_size),
            signer=config.signer,
        )
        self._hooks = config.hooks
        self._holding: dict[int, Claim] = {}
        self._patient: set[str] = set()
        self._import_timeout = check_seconds("import_timeout", import_timeout)
        self._importer = Importer(self._import_timeout, self._import_hangs)
        self._awaits_returned = asyncio.Semaphore(thread_pool_size)
        self._guardian: asyncio.Task[None] | None = None
        self._own_end: asyncio.Task[None] | None = None
        self._stopping = asyncio.Lock()
        self._stopped = asyncio.Event()

    async def start(self) -> None:
        """Connect, and start to process. Returns at once; the work goes on in tasks of this event loop.

        Raises:
            BrokerUnavailableError: Redis cannot be reached.
            UnsupportedServerError: it is older than 6.2.
            WorkerStateError: this worker was started before.
            ConfigurationError: the process is beyond `max_memory` already.
        """
        if self.state != "new":
            raise WorkerStateError(f"this worker is {self.state}: make a new QueueWorker")
        self._recycling.check()
        await asyncio.to_thread(self.config._ensure_redis_sync)  # noqa: SLF001  a named step of the configuration
        self._engine = Engine(
            self._settings,
            commands=self.config.commands,
            hooks=self._hooks,
            breaker=self.config.breaker,
            new_broker=lambda timeout: self.config.new_async_broker(timeout=timeout),
            new_sync_broker=self.config.new_sync_broker,
            command_timeout=self.config.connection_timeout,
            worker_loop=self._worker_loop,
            on_quarantine=self._quarantine,
            on_unheeded=self._abandon,
            recycling=self._recycling,
            on_enough=self._end_by_itself,
        )
        self._engine.start()
        contained.contain(asyncio.get_running_loop())
        self._reader = QueueReader(self.config)
        self._hooks.attach(self, self._reader)
        self._guardian = asyncio.get_running_loop().create_task(self._guard(), name="queue-system-guardian")
        self._change("running")

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def stop(self, *, grace: float | None = None) -> None:
        """Claim no more, let what runs finish for `grace` seconds, give back the rest, and end everything.

        What is given back burns no attempt. Nothing happens when the worker does not run. A second call waits for
        the first, and finishes what a cancelled one has begun.

        Args:
            grace: seconds; None for the worker's.
        """
        await self._stop(TOLD_TO_STOP, self.grace if grace is None else grace)

    async def wait_stopped(self) -> str:
        """Wait until the worker has stopped, because it was told to or by itself, and return its `stop_reason`.

        After ``threads_abandoned`` or ``tasks_abandoned`` the process should end and be started again: what never
        returned hangs on to what it holds.
        """
        await self._stopped.wait()
        if self._own_end is not None:
            await asyncio.shield(self._own_end)  # raises what kept it from ending in good order
        return self.stop_reason

    async def _stop(self, reason: str, grace: float) -> None:
        async with self._stopping:
            if self.state not in {"running", "draining"}:
                return
            if self.state == "running":
                self.stop_reason = reason
                self._change("draining")
            began = time.monotonic()
            await self._engine.stop(grace, leave_hung=self.stop_reason == THREADS_ABANDONED)
            if self._guardian is not None and self._guardian is not asyncio.current_task():
                self._guardian.cancel()
            contained.release(asyncio.get_running_loop())
            self._hooks.detach(self, self._reader)
            self._reader.close()
            self.drained_in = time.monotonic() - began
            self._change("stopped")
            self._stopped.set()

    def _end_by_itself(self, reason: str) -> None:
        """Drain and stop, once, for a reason of the worker's own."""
        if self.state == "running" and self._own_end is None:
            self._own_end = asyncio.get_running_loop().create_task(self._end(reason), name="queue-system-end")

    async def _end(self, reason: str) -> None:
        try:
            await self._stop(reason, self.grace)
        finally:
            self._stopped.set()

    def stats(self) -> WorkerStats:
        """The worker's figures now: its pool, its tasks, its event loop. May be called from any thread."""
        return self._engine.stats(self.state)

    def health(self) -> Health:
        """Whether it is alive and ready, with the finding of each check. May be called from any thread."""
        return STOPPED if self.state in {"new", "stopped"} else self._engine.health(self.state)

    def served(self) -> list[tuple[str, str]]:
        """Queue and name of each processor that is registered here. May be called from any thread."""
        registry = self.config.registry
        found = [registry.find(*reference) for reference in registry.names()]
        return [(known.default_queue, known.ref.name) for known in found if known is not None]

    @with_timeout(None)  # the loop has no end of its own: each call inside has a limit, and stop() bounds the drain
    async def _worker_loop(self, worker_id: int) -> None:
        """Process items, one after the other, until cancelled. While Redis is away, wait for the breaker."""
        task = asyncio.current_task()
        while not self._is_ended(task):
            try:
                await self._process_queue_item(worker_id)
            except CircuitOpenError as error:
                await asyncio.sleep(max(error.retry_after, 0.05))

    @circuit_breaker(breaker=lambda self: self.config.breaker, exceptions=(BrokerUnavailableError,))
    async def _process_queue_item(self, worker_id: int) -> bool:
        """Take the next claimed item and see it through; true when it ended well, or went to the pool."""
        claim = await self._engine.intake.next(sync=worker_id == self._engine.dispatcher)
        claim.handed_over = False  # by whoever had it before: it is held here now
        self._holding[worker_id] = claim
        try:
            delivery = claim.delivery
            return await self._handle_queue_item(worker_id, delivery.ready_key.encode(), delivery.body)
        finally:
            del self._holding[worker_id]
            if not claim.handed_over:
                self._engine.done(claim)

    async def _handle_queue_item(  # noqa: PLR0911  each is one of the ways that an item may go
        self, worker_id: int, queue: bytes, item_data: bytes
    ) -> bool:
        """Understand an item, find its processor, and dispatch it to the event loop or to the thread pool."""
        claim, redis = self._holding[worker_id], self._engine.outbox
        item: Operation | None = None
        attempt: Attempt | None = None
        try:
            item = self._decode(claim.delivery, queue, item_data)
            try:
                function = self._function_for(item)
            except ImportNeededError:
                return self._import_first(item, claim)
            attempt = self._engine.attempts.open(item, claim, is_async=self._runs_on_loop(item, function))
            if function is None:
                return self._finish(attempt, decide_unknown(item, _unknown(item)))
            if total_timeout_exceeded(item, attempt.retry, attempt.started_at):
                return await self._handle_timeout_exceeded(item, item["entity"], item["operation_id"], redis)
            return await self._dispatch(attempt, function, queue, worker_id)
        except NewerSchemaError as error:
            return self._put_back_newer(claim, error)
        except (DecodeError, ImportRefusedError) as error:
            if item is not None:  # it was understood, so its callback is known
                self._engine.attempts.reject(claim, describe_refusal(error), item=item)
            operation_id = claim.delivery.operation_id
            return await self._handle_processing_exception(
                error, None, None, operation_id, worker_id, queue, redis, item_data
            )
        except (asyncio.CancelledError, GeneratorExit):
            raise
        except BaseException as error:  # noqa: BLE001  a step of ours: without an outcome its lease would run out
            return self._fail_internally(claim, item, error)
        finally:
            if attempt is not None and not claim.handed_over:
                self._engine.attempts.close(attempt)

    def _fail_internally(self, claim: Claim, item: Operation | None, error: BaseException) -> bool:
        """A step of the worker itself raised: told, and the attempt's failure, by the operation's own schedule. What
        was not even decoded goes to the system errors. In no case is its lease left to run out.
        """  # noqa: D205
        found = describe_error(error)
        self._hooks.on_event(WorkerTaskFailed("worker", f"{found.type}: {found.message}"))
        told = ErrorInfo("WorkerInternalError", f"{found.type}: {found.message}", found.traceback)
        try:
            if item is not None and not claim.settled:
                self._decide_internal(claim, item, told)
        except (Exception, SystemExit, KeyboardInterrupt) as again:  # noqa: BLE001  that is what is broken
            told = describe_error(again)
        self._engine.attempts.reject(claim, told, INTERNAL_ERROR)  # unless it is settled
        return False

    def _decide_internal(self, claim: Claim, item: Operation, error: ErrorInfo) -> None:
        attempts = self._engine.attempts
        attempt = attempts.find(*claim.key) or attempts.open(item, claim, is_async=not claim.sync)
        try:
            now = self._engine.fetcher.server_time()
            self._finish(attempt, decide(item, attempt.retry, INTERNAL_ERROR, error, now))
        finally:
            attempts.close(attempt)

    def _import_first(self, item: Operation, claim: Claim) -> bool:
        """Import the module that an operation names, and do not wait for that here."""
        attempt = self._engine.attempts.open(item, claim, is_async=not claim.sync)
        claim.handed_over = attempt.on_loop = True
        attempt.task = asyncio.get_running_loop().create_task(self._import_for(attempt, claim))
        return True

    async def _import_for(self, attempt: Attempt, claim: Claim) -> None:
        """See to the import. After it, the operation starts anew; without its function, it has its outcome."""
        item, attempts = attempt.item, self._engine.attempts
        found = None
        try:
            found = await self._importer.run(item["processor_module"] or "", functools.partial(self._imported, item))
            if found is None:
                self._finish(attempt, decide_unknown(item, _unknown(item)))
        except ImportRefusedError as error:
            attempts.reject(claim, describe_refusal(error), item=item)
        except asyncio.CancelledError:
            if attempt.cancelled_for != LEASE_LOST:
                attempts.release(claim, SHUTDOWN)
        except BaseException as error:  # noqa: BLE001  a step of ours: without an outcome its lease would run out
            self._fail_internally(claim, item, error)
        finally:
            attempts.close(attempt)
            if found is None:
                self._engine.done(claim)
            else:
                self._engine.intake.requeue(claim)

    def _imported(self, item: Operation) -> Processor | None:
        """In a thread of its own: the function that an operation names."""
        find = self.config.find_callback if item.get("kind") == KIND_CALLBACK else self.config.find_processor
        return find(item["processor"], item["processor_module"])

    def _import_hangs(self, module: str, stack: str) -> None:
        reason = f"importing {module} has not ended within {self._import_timeout:g} s; its thread is in\n{stack}"
        self._hooks.on_event(WorkerTaskFailed("import", reason))

    def _find_processor(self, processor_name: str, processor_module: str | None = None) -> Callable[..., Any] | None:
        """The processor of that name: registered, or imported before. None when unknown here.

        Raises:
            ImportNeededError: its module has to be imported first, if the import policy lets it in.
        """
        found = self.config.find_processor(processor_name, processor_module, imports=False)
        return None if found is None else found.function

    def _calculate_effective_timeout(self, item: Operation) -> float:
        """Seconds for an attempt: the operation's own or `work_timeout`, but no more than its total time leaves.

        The total time runs from the first call of the processor.
        """
        own = item.get("timeout")
        timeout = self.work_timeout if own is None else own
        total: float | None = (item.get("retry_config") or {}).get("timeout")
        if not total:  # 0 is that of an older producer, see `QueueRetryConfig.from_dict`
            return timeout
        now = self._engine.fetcher.server_time()
        return max(0.001, min(timeout, item.get("first_attempt_time", now) + total - now))

    async def _execute_sync_processor(
        self, processor: Callable[[dict[str, Any]], Any], entity: dict[str, Any], operation_id: str
    ) -> Any:
        """Run a sync processor in the pool.

        Raises:
            ThreadPoolExhaustedError: no thread became free in time; the processor was not called.
        """
        start_time = time.monotonic()
        call = functools.partial(processor, entity)
        future = self._engine.pool.submit(call, patient=operation_id in self._patient)
        try:
            return await future
        finally:
            self._update_thread_metrics(start_time)

    def _update_thread_metrics(self, start_time: float) -> None:
        """Tell how long the pool had an operation (`start_time` is `time.monotonic` at its hand-over)."""
        pool = self._engine.pool
        self._hooks.on_event(PoolUsed(time.monotonic() - start_time, pool.active, pool.size))

    async def _handle_pool_exhaustion(
        self,
        item: Operation,
        entity: dict[str, Any],
        operation_id: str,
        queue: bytes,
        redis: Any,
        worker_id: int,
    ) -> bool:
        """No thread in time: the attempt counts, and the next follows with exponential backoff, or failures."""
        attempt = self._engine.attempts.of(item)
        self._hooks.on_event(PoolExhausted(attempt.info, time.monotonic() - attempt.submitted))
        error = ErrorInfo("ThreadPoolExhaustedError", f"no free thread of {self.thread_pool_size} in time")
        return await self._decide(attempt, POOL_EXHAUSTED, error, redis)

    async def _handle_timeout_exceeded(
        self, item: Operation, entity: dict[str, Any], operation_id: str, redis: Any
    ) -> bool:
        """The total time was over before this attempt: to the failures, without calling the processor."""
        attempt = self._engine.attempts.of(item)
        error = ErrorInfo("TimeoutError", f"the total time of {attempt.retry.timeout} s is over")
        return self._finish(attempt, Failure(TOTAL_TIMEOUT, error, TOTAL_TIMEOUT, attempted=False))

    async def _handle_execution_timeout(
        self,
        item: Operation,
        entity: dict[str, Any],
        operation_id: str,
        effective_timeout: float,
        queue: bytes,
        redis: Any,
        worker_id: int,
    ) -> bool:
        """An async processor was cancelled after its time: retried by its schedule, or to the failures."""
        attempt = self._engine.attempts.of(item)
        message = f"cancelled after {effective_timeout:g} s"
        error = ErrorInfo("TimeoutError", message, attempt.error.traceback)
        return await self._decide(attempt, TIMEOUT, error, redis)

    async def _handle_would_exceed_timeout(
        self, item: Operation, entity: dict[str, Any], operation_id: str, redis: Any
    ) -> bool:
        """The next retry would start beyond the total time: to the failures now."""
        attempt = self._engine.attempts.of(item)
        return self._finish(attempt, Failure(TOTAL_TIMEOUT, attempt.error, attempt.cause))

    async def _handle_processing_exception(
        self,
        exception: Exception,
        item: Operation | None,
        entity: dict[str, Any] | None,
        operation_id: str,
        worker_id: int,
        queue: bytes,
        redis: Any,
        item_data: bytes | None = None,
    ) -> bool:
        """A processor raised: retried by its schedule, or to the failures. Without an item: to the system errors."""
        if item is None:
            self._engine.attempts.reject(self._holding[worker_id], describe_refusal(exception))
            return False
        return await self._decide(self._engine.attempts.of(item), ERROR, describe_error(exception), redis)

    async def _call_callback(
        self, name: str, module: str | None, data: dict[str, Any], context: Callable[[], OperationContext]
    ) -> Any:
        _callback_context.set(context)  # within the context of this call alone
        return await self._execute_callback(name, module, data)

    # Only for want of a thread, when it was not called: an attempt calls it once, as its record says.
    @retry_with_backoff(max_attempts=2, base_delay=0.05, exceptions=(ThreadPoolExhaustedError,))
    async def _execute_callback(self, callback_name: str, callback_module: str | None, data: dict[str, Any]) -> Any:
        """Call a callback with its data: an async one here, a sync one in a thread of its own small pool.

        One that takes ``(data, context)`` is given its context, as a processor is.

        Raises:
            UnresolvableFunctionError: no function of that name is known here.
            ImportRefusedError: the import policy refuses it.
        """
        callback = self.config.find_callback(callback_name, callback_module)
        if callback is None:
            raise UnresolvableFunctionError(f"no callback {FunctionRef(callback_name, callback_module)} is known here")
        context = _callback_context.get() if callback.takes_context else None
        arguments = (data,) if context is None else (data, context())
        if callback.is_async:
            return await callback.function(*arguments)
        return await self._engine.callback_pool.submit(functools.partial(callback.function, *arguments), patient=True)

    async def _dispatch(self, attempt: Attempt, function: Callable[..., Any], queue: bytes, worker_id: int) -> bool:
        """Run an async operation here, hand a sync one to the pool."""
        if attempt.claim is not None and attempt.info.kind != KIND_CALLBACK:
            self._engine.learn(attempt.item, attempt.claim, is_async=attempt.info.is_async)
        if not attempt.info.is_async:
            return self._start_sync(attempt, function, queue, worker_id)
        if worker_id == self._engine.dispatcher:  # it must not wait for an operation: the pool would starve
            return self._engine.reroute(attempt)
        return await self._run_async(attempt, function, queue, worker_id)

    async def _run_async(self, attempt: Attempt, function: Callable[..., Any], queue: bytes, worker_id: int) -> bool:
        """Await a processor, and see to how it ends."""
        item, redis = attempt.item, self._engine.outbox
        entity, operation_id = item["entity"], item["operation_id"]
        timeout = self._calculate_effective_timeout(item)
        with attempt.within(self._hooks):
            attempt.call()
            self._hooks.on_event(attempt.started_event)
            try:
                result = await await_processor(function, attempt, timeout, self.config.logger, self._engine.deadlines)
            except AttemptAbandonedError:
                self._engine.came_back(attempt)
                return False
            except AttemptTimeoutError as error:
                attempt.error = describe_error(error)
                return await self._handle_execution_timeout(
                    item, entity, operation_id, timeout, queue, redis, worker_id
                )
            except asyncio.CancelledError:
                return await self._handle_cancellation(attempt, redis)
            except Exception as error:  # noqa: BLE001  whatever a processor raises is its outcome
                return await self._handle_processing_exception(
                    error, item, entity, operation_id, worker_id, queue, redis
                )
            return self._finish(attempt, Success(result))

    def _start_sync(self, attempt: Attempt, function: Callable[..., Any], queue: bytes, worker_id: int) -> bool:
        """Hand an operation over to the pool, and do not wait for it here."""
        self._engine.hand_over(attempt)
        attempt.task = asyncio.get_running_loop().create_task(self._run_sync(attempt, function, queue, worker_id))
        return True

    async def _run_sync(self, attempt: Attempt, function: Callable[..., Any], queue: bytes, worker_id: int) -> None:
        """See a sync operation through the pool, and to how it ends."""
        item, redis = attempt.item, self._engine.outbox
        entity, operation_id = item["entity"], item["operation_id"]
        call = functools.partial(self._call_in_thread, attempt, function)
        try:
            self._note_patience(attempt)
            with attempt.within(self._hooks):
                try:
                    result = await self._execute_sync_processor(call, entity, operation_id)
                    if isinstance(result, Returned):
                        result = await self._await_returned(attempt, result)
                except AttemptAbandonedError:
                    self._engine.came_back(attempt)
                except AttemptTimeoutError as error:
                    attempt.error = describe_error(error)
                    await self._handle_execution_timeout(
                        item, entity, operation_id, error.seconds, queue, redis, worker_id
                    )
                except ThreadPoolExhaustedError:
                    await self._handle_pool_exhaustion(item, entity, operation_id, queue, redis, worker_id)
                except asyncio.CancelledError:
                    await self._handle_cancellation(attempt, redis)
                except Exception as error:  # noqa: BLE001  whatever a processor raises is its outcome
                    await self._handle_processing_exception(error, item, entity, operation_id, worker_id, queue, redis)
                else:
                    self._finish(attempt, Success(result))
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError | GeneratorExit) or attempt.claim is None:
                raise
            self._fail_internally(attempt.claim, item, error)
        finally:
            self._patient.discard(operation_id)
            self._engine.taken_from_pool(attempt)

    def _call_in_thread(self, attempt: Attempt, function: Callable[..., Any], _: dict[str, Any]) -> Any:
        attempt.thread = threading.get_ident()
        self._engine.pool.expect(self._engine.limit_of(attempt))
        attempt.begin(self._engine.fetcher.server_time())
        attempt.call()
        self._hooks.on_event(PoolStarted(attempt.started - attempt.submitted))
        self._hooks.on_event(attempt.started_event)
        return call_in_thread(function, attempt, self.config.logger)

    async def _await_returned(self, attempt: Attempt, returned: Returned) -> Any:
        """A sync processor has returned an awaitable: await it here, as an async one, with its time limit. As many are
        awaited at once as the pool has threads.
        """  # noqa: D205
        attempt.on_loop = True
        try:
            async with self._awaits_returned:
                timeout = self._calculate_effective_timeout(attempt.item)
                return await await_processor(returned, attempt, timeout, self.config.logger, self._engine.deadlines)
        finally:
            returned.close()

    def _note_patience(self, attempt: Attempt) -> None:
        """A mere backlog takes one of an operation's attempts at most, and never the last: after that it is patient,
        and waits for its thread.
        """  # noqa: D205
        if attempt.item.get("exhaustions", 0) > 0 or attempt.number >= attempt.retry.max_attempts:
            self._patient.add(attempt.item["operation_id"])

    async def _handle_cancellation(self, attempt: Attempt, redis: Any) -> bool:
        """Cancelled by a stop or with the loop: given back. After a lost lease: dropped. By itself: an attempt."""
        ended = attempt.cancelled_from_outside() and self._is_ended(attempt.task)
        if attempt.cancelled_for == LEASE_LOST:
            self._engine.attempts.drop(attempt)
        elif attempt.cancelled_for == SHUTDOWN or ended:
            await self._leave(attempt, redis)
        if attempt.cancelled_for or ended:
            return False
        error = ErrorInfo("CancelledError", "the processor was cancelled, but not by the worker")
        return await self._decide(attempt, CANCELLED, error, redis)

    async def _abandon(self, attempt: Attempt) -> None:
        """Its processor was cancelled, and does not end: decide without it, once. Its slot stays taken."""
        attempts = self._engine.attempts
        if attempts.find(*attempt.key) is not attempt or attempt.abandoned:
            return  # it has ended since
        self._engine.unheeded.add(attempt)
        stack, seconds = stack_of_call(attempt.awaited), time.monotonic() - attempt.started
        task = "" if attempt.task is None else attempt.task.get_name()
        try:
            self._hooks.on_event(TaskAbandoned(attempt.info, task, seconds, attempt.cancelled_for, stack))
            if attempt.cancelled_for == LEASE_LOST:
                attempts.drop(attempt)
            else:
                message = f"cancelled, but had not ended {HEED_LIMIT:g} s later: it does not heed its cancellation"
                await self._decide(attempt, TIMEOUT, ErrorInfo("TimeoutError", message, stack), self._engine.outbox)
        except Exception as error:  # noqa: BLE001  a step of ours
            if attempt.claim is not None:
                self._fail_internally(attempt.claim, attempt.item, error)
        finally:
            if attempt.claim is not None:
                attempt.claim.settled = True
            attempts.close(attempt)
            self._engine.changed()

    def _is_ended(self, task: asyncio.Task[Any] | None) -> bool:
        """Whether a task is cancelled because the worker ends, or its event loop (as by Ctrl-C in `asyncio.run`). What
        a processor has brought upon itself is taken back: the task has others to process.
        """  # noqa: D205
        if task is None or not task.cancelling():
            return False
        if self._engine.ending or (self._guardian is not None and self._guardian.cancelling()):
            return True
        while task.uncancel():
            continue
        return False

    async def _leave(self, attempt: Attempt, redis: Any) -> bool:
        """The worker ends: the operation is given back. One whose thread is abandoned has timed out: given back, it
        would take a thread from worker after worker, for ever.
        """  # noqa: D205
        if not self._engine.is_abandoned(attempt):
            return self._finish(attempt, Requeue(reason=SHUTDOWN))
        message = f"its thread had not returned after {time.monotonic() - attempt.started:.0f} s"
        return await self._decide(attempt, TIMEOUT, ErrorInfo("TimeoutError", message, stack_of(attempt.thread)), redis)

    async def _decide(self, attempt: Attempt, cause: str, error: ErrorInfo, redis: Any) -> bool:
        """Retry or failure, by the operation's schedule."""
        attempt.cause, attempt.error = cause, error
        item = attempt.item
        outcome = decide(item, attempt.retry, cause, error, self._engine.fetcher.server_time())
        if isinstance(outcome, Failure) and outcome.reason == TOTAL_TIMEOUT:
            return await self._handle_would_exceed_timeout(item, item["entity"], item["operation_id"], redis)
        return self._finish(attempt, outcome)

    def _finish(self, attempt: Attempt, outcome: Outcome) -> bool:
        return self._engine.attempts.finish(attempt, outcome)

    def _decode(self, delivery: Delivery, queue: bytes, item_data: bytes) -> Operation:
        """The operation, with what its claim says. Where the body contradicts the claim, the claim is right."""
        limit = self._settings.max_bytes
        name, priority, own_name = _queue_of(queue, self.config.keys.prefix)
        body = self.config.signer.open(delivery.operation_id, name, item_data, max_bytes=limit)
        item = decode_operation(body, max_bytes=limit, max_depth=self._settings.max_depth)
        if queue:
            item["priority"], item["queue"] = priority, own_name
        item["operation_id"] = delivery.operation_id
        item["token"] = delivery.token
        item["delivery"] = delivery.deliveries
        item["attempts"] = delivery.attempts
        item["crashes"] = delivery.crashes
        item["exhaustions"] = delivery.exhaustions
        item["claimed_at"] = delivery.claimed_at
        item["ready_at"] = delivery.ready_at
        item["accepted_at"] = delivery.accepted_at
        item["previous_trace"] = delivery.previous_trace
        if delivery.first_attempt_time > 0:
            item["first_attempt_time"] = delivery.first_attempt_time
        return item

    def _function_for(self, item: Operation) -> Callable[..., Any] | None:
        name, module = item["processor"], item["processor_module"]
        if item.get("kind") != KIND_CALLBACK:
            return self._find_processor(name, module)
        if self.config.find_callback(name, module, imports=False) is None:
            return None
        return functools.partial(self._call_callback, name, module)

    @staticmethod
    def _runs_on_loop(item: Operation, function: Callable[..., Any] | None) -> bool:
        return function is None or item.get("kind") == KIND_CALLBACK or runs_on_loop(function)

    def _put_back_newer(self, claim: Claim, error: NewerSchemaError) -> bool:
        """For a newer worker: put back with a delay, up to a limit."""
        if claim.delivery.deliveries >= MAX_UNKNOWN_DELIVERIES:
            self._engine.attempts.reject(claim, describe_error(error))
        else:
            self._engine.attempts.release(claim, "newer_schema", delay=UNKNOWN_DELAY)
        return False

    def _quarantine(self, claim: Claim) -> None:
        """An operation over which too many workers have died: to the failures."""
        delivery = claim.delivery
        item: Operation | None = None
        try:
            item = self._decode(delivery, b"", delivery.body)
            attempt = self._engine.attempts.open(item, claim, is_async=True)
            crashed = ErrorInfo("WorkerCrashed", f"{delivery.crashes} workers died while they ran this operation")
            self._finish(attempt, Failure(CRASHED, crashed, CRASHED, attempted=False))
            self._engine.attempts.close(attempt)
        except DecodeError as error:
            self._engine.attempts.reject(claim, describe_error(error))
        except BaseException as error:  # noqa: BLE001  without an outcome its lease would be renewed for ever
            self._fail_internally(claim, item, error)

    async def _guard(self) -> None:
        """When the event loop is being torn down around a running worker, still give back what it holds."""
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            await self.stop(grace=0.0)
            raise

    def _change(self, state: str) -> None:
        self.state = state
        self._hooks.on_event(WorkerChanged(self.worker_id, state, self.stop_reason))


@functools.lru_cache(maxsize=4096)
def _queue_of(ready_key: bytes, prefix: str) -> tuple[str, str, str]:
    """``{priority}:{queue}``, the priority, the queue."""
    name = ready_key.decode().removeprefix(prefix)
    priority, _, queue = name.partition(":")
    return name, priority, queue


def _unknown(item: Operation) -> ErrorInfo:
    name = FunctionRef(item["processor"], item["processor_module"])
    return ErrorInfo("UnknownProcessor", f"no worker knows {name}: does its module import, is it spelt right?")


def _served(queues: Iterable[str]) -> frozenset[str]:
    """The names of the queues that a worker serves."""
    return frozenset({*map(check_queue_name, check_names("queues", queues, "names of queues")), CALLBACK_QUEUE})
