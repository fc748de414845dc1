"""What your own tests need: the queue in memory, and a worker that runs until nothing is left to do.

Install ``queue-system[testing]``. The back end runs the very scripts that run in Redis, so it behaves like it; there is
no server to start, and each configuration starts empty::

    from queue_system import QueueManager
    from queue_system.testing import memory_config, process_all

    from shop.mail import send_receipt  # async def send_receipt(entity): ...

    def test_a_receipt_is_sent(outbox):
        config = memory_config(telemetry=None)
        QueueManager(config).enqueue({"order": 7}, send_receipt)
        metrics = process_all(config)  # in an async test: await drain(config)
        assert (metrics["processed"], metrics["failed"]) == (1, 0)
        assert outbox == ["receipt for order 7"]

Nothing is mocked: operations are encoded, leased, retried and called back as in production, so a retry's delay passes
in real time. Give processors under test short ones, e.g. ``QueueRetryConfig.fixed(delay=0.01)``.

`drain` and `process_all` work on a real Redis as well. To share one back end between configurations, pass
``memory_config(server=first.clients.server)``; to try an outage, set ``config.clients.server.connected = False``.

Memory has no replicas: with ``durability="wait"`` as many confirm as are asked for, so that what you test works as with
them. To try what it does when they do not confirm, set ``config.clients.replicas = 0``.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib
import time
from collections.abc import AsyncIterator, Iterable
from typing import TYPE_CHECKING, Any, Final

import redis
import redis.asyncio as aioredis

from queue_system.broker.aio import AsyncBroker
from queue_system.broker.messages import Call, Claimed, Status
from queue_system.checks import check_names
from queue_system.config import QueueConfig
from queue_system.errors import ConfigurationError, QueueError, WorkerStateError
from queue_system.keys import CALLBACK_QUEUE
from queue_system.summary import metrics_summary
from queue_system.worker import QueueWorker

if TYPE_CHECKING:
    from fakeredis import FakeServer

__all__ = ["MemoryClients", "NotDrainedError", "drain", "memory_config", "process_all"]

_MAX_BLOCK: Final = 0.1
_POLL_INTERVAL: Final = 0.01
_CLIENT_SETTINGS: Final = ("redis_client", "redis_url", "client_factory")


class NotDrainedError(QueueError, TimeoutError):
    """There was still work when the time of `drain` was over. `status` has all counts of that moment."""

    def __init__(self, message: str, status: Status) -> None:
        super().__init__(message)
        self.status = status


class MemoryClients:
    """The `client_factory` of an in-memory back end: clients of one server within this process. Thread-safe.

    Args:
        server: a `fakeredis.FakeServer` to share; None for a new, empty one.

    Attributes:
        server: that server. While its ``connected`` is false, every command fails as when Redis is away.
        replicas: how many confirm an operation with ``durability="wait"``; None (default) for all that are asked for.

    Raises:
        ConfigurationError: fakeredis or lupa is not installed.
    """

    def __init__(self, server: FakeServer | None = None) -> None:
        self._make_server, self._sync_class, self._async_class = _memory_classes()
        self.server: FakeServer = self._make_server() if server is None else server
        self.address = "memory://"
        self.replicas: int | None = None

    def sync(self, *, timeout: float) -> redis.Redis:  # noqa: ARG002  memory answers at once
        """See `ClientFactory`."""
        client: redis.Redis = self._sync_class(self, server=self.server)
        return client

    def aio(self, *, timeout: float) -> aioredis.Redis:  # noqa: ARG002  memory answers at once
        """See `ClientFactory`."""
        client: aioredis.Redis = self._async_class(self, server=self.server)
        return client


def memory_config(*, server: FakeServer | None = None, **options: Any) -> QueueConfig:
    """A `QueueConfig` on an in-memory back end, empty unless a `server` is given to share.

    Args:
        server: ``clients.server`` of another configuration.
        **options: those of `QueueConfig`, but for `redis_client`, `redis_url` and `client_factory`.

    Raises:
        ConfigurationError: fakeredis or lupa is not installed, or an option is out of its range.
    """
    unusable = [name for name in _CLIENT_SETTINGS if name in options]
    if unusable:
        raise ConfigurationError(f"a configuration in memory takes no {unusable[0]}: use QueueConfig for a real Redis")
    return QueueConfig(client_factory=MemoryClients(server), **options)


def process_all(
    config: QueueConfig, *, timeout: float = 10.0, queues: Iterable[str] | None = None, **worker_options: Any
) -> dict[str, Any]:
    """`drain` for tests that are not async: the same arguments, result and errors, in an event loop of its own.

    Raises:
        WorkerStateError: an event loop runs in this thread: await `drain` instead.
    """
    if _in_event_loop():
        raise WorkerStateError("process_all() cannot run inside an event loop: await drain(config) instead")
    return asyncio.run(drain(config, timeout=timeout, queues=queues, **worker_options))


async def drain(
    config: QueueConfig, *, timeout: float = 10.0, queues: Iterable[str] | None = None, **worker_options: Any
) -> dict[str, Any]:
    """Run a worker until nothing is ready, in flight, or delayed and due within the time left; then stop it.

    Args:
        config: the queue, in memory or on a real Redis.
        timeout: seconds that all of it may take, 10 by default. What is due later stays delayed.
        queues: names of the only queues to drain, besides the callbacks; None for all.
        **worker_options: the others of `QueueWorker`.

    Returns:
        The metrics as `QueueConfig.get_metrics` returns them.

    Raises:
        NotDrainedError: there was still work after `timeout` seconds; the worker is stopped, the rest given back.
        QueueError: as `QueueWorker` and its `start`.
    """
    deadline = time.monotonic() + timeout
    served = None if queues is None else frozenset(check_names("queues", queues, "names of queues"))
    worker = QueueWorker(config, queues=served, **worker_options)
    async with _broker_of(config) as broker, _running(worker):
        watch = _Watch(broker, config, served)
        while not await watch.idle(deadline - time.monotonic()):
            if time.monotonic() >= deadline:
                raise NotDrainedError(f"not drained within {timeout:g} s: {watch.left()}", watch.status)
            await asyncio.sleep(_POLL_INTERVAL)
        await worker.stop(grace=max(deadline - time.monotonic(), 0.0))
        return metrics_summary(await broker.run(config.commands.status()))


class _Watch:
    """Tells when nothing is left to do for a worker of the given queues (None: all)."""

    status: Status

    def __init__(self, broker: AsyncBroker, config: QueueConfig, queues: frozenset[str] | None) -> None:
        self._broker = broker
        self._config = config
        self._served = None if queues is None else queues | {CALLBACK_QUEUE}

    async def idle(self, seconds_left: float) -> bool:
        """Whether nothing is ready or in flight, and nothing due within the given time."""
        before = await self._look()
        if self._ready() or before.leased:
            return False
        if before.delayed == 0:
            return True
        next_due = (await self._broker.run(self._peek())).next_due
        after = await self._look()
        # Equal counters: no operation has moved between the two looks, so what was said in between holds for both.
        unmoved = (before.delayed, before.metrics) == (after.delayed, after.metrics)
        return unmoved and next_due is not None and next_due > seconds_left

    def left(self) -> str:
        """The work that is left, in words."""
        return f"{self._ready()} ready, {self.status.delayed} delayed, {self.status.leased} in flight"

    async def _look(self) -> Status:
        self.status = await self._broker.run(self._config.commands.status())
        return self.status

    def _ready(self) -> int:
        served, queues = self._served, self.status.queues.items()
        return sum(length for name, length in queues if served is None or name.partition(":")[2] in served)

    def _peek(self) -> Call[Claimed]:
        """A claim without slots takes nothing, and says when the next operation is due."""
        retention = self._config.backup_ttl
        return self._config.commands.claim(async_slots=0, sync_slots=0, lease=1.0, retention=retention)


def _in_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


@contextlib.asynccontextmanager
async def _broker_of(config: QueueConfig) -> AsyncIterator[AsyncBroker]:
    broker = config.new_async_broker()
    try:
        yield broker
    finally:
        await broker.close()


@contextlib.asynccontextmanager
async def _running(worker: QueueWorker) -> AsyncIterator[None]:
    await worker.start()
    try:
        yield
    finally:
        await worker.stop(grace=0.0)


@functools.cache
def _memory_classes() -> tuple[Any, Any, Any]:
    """The class of the server, and those of its synchronous and asynchronous clients."""
    try:
        importlib.import_module("lupa")  # first: without it fakeredis would come up without scripts, and stay so
        fakeredis: Any = importlib.import_module("fakeredis")
    except ImportError as error:
        raise ConfigurationError(
            f"the queue in memory needs {error.name}: pip install 'queue-system[testing]'"
        ) from error

    class MemoryRedis(fakeredis.FakeRedis):  # type: ignore[misc]  # imported only where it is used
        def __init__(self, clients: MemoryClients, **options: Any) -> None:
            super().__init__(**options)
            self._clients = clients

        def pipeline(self, *args: Any, **options: Any) -> Any:
            """One that knows WAIT, a command that fakeredis does not know."""
            return _confirming(super().pipeline(*args, **options), self._clients)

        def info(self, *_: Any, **__: Any) -> dict[str, Any]:
            """What the queue asks of INFO, a command that fakeredis does not know."""
            return _info(self)

    class MemoryAsyncRedis(fakeredis.FakeAsyncRedis):  # type: ignore[misc]  # imported only where it is used
        def __init__(self, clients: MemoryClients, **options: Any) -> None:
            super().__init__(**options)
            self._clients = clients

        def pipeline(self, *args: Any, **options: Any) -> Any:
            """As above."""
            return _confirming(super().pipeline(*args, **options), self._clients)

        async def execute_command(self, *args: Any, **options: Any) -> Any:
            """Blocks for a moment only: a blocking read that was cancelled goes on in fakeredis, and takes a marker."""
            if args[0] == "BZPOPMIN":
                args = (*args[:-1], min(float(args[-1]), _MAX_BLOCK))
            return await super().execute_command(*args, **options)

        async def info(self, *_: Any, **__: Any) -> dict[str, Any]:
            """As above."""
            return _info(self)

    return fakeredis.FakeServer, MemoryRedis, MemoryAsyncRedis


def _confirming(pipeline: Any, clients: MemoryClients) -> Any:
    """The pipeline, in which WAIT is answered with the number of replicas that confirm."""
    stage = pipeline.execute_command

    def execute_command(*args: Any, **options: Any) -> Any:
        if args[0] == "WAIT":
            args = ("ECHO", args[1] if clients.replicas is None else clients.replicas)
        return stage(*args, **options)

    pipeline.execute_command = execute_command
    return pipeline


def _info(client: Any) -> dict[str, Any]:
    version = client.connection_pool.connection_kwargs["server"].version
    return {"redis_version": ".".join(map(str, (*version, 0, 0)[:3]))}
