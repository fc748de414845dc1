"""`QueueConfig`: what producers and workers of one queue share."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from typing import Any, Final, Self

import redis

from queue_system.broker.aio import AsyncBroker
from queue_system.broker.clients import ClientFactory, SettingsClients, UrlClients, check_prefix, check_server
from queue_system.broker.commands import DEFAULT_MAX_FAILURE_BYTES, DEFAULT_MAX_FAILURES, Commands
from queue_system.broker.grouping import CONNECTIONS
from queue_system.broker.lanes import answer_memory
from queue_system.broker.producing import AsyncProducer
from queue_system.broker.sync import SyncBroker
from queue_system.broker.translate import CLIENT_ERRORS, LASTING, translate
from queue_system.checks import check_count, check_durability, check_seconds
from queue_system.errors import BrokerUnavailableError, ConfigurationError
from queue_system.events import (
    BreakerChanged,
)
from queue_system.hooks import HookChain, Hooks
from queue_system.imports import ImportPolicy
from queue_system.keys import Keys, check_priority, check_queue_name
from queue_system.log import get_logger
from queue_system.operation import DEFAULT_MAX_BYTES, DEFAULT_MAX_DEPTH
from queue_system.registry import FunctionRef, Processor, Registry, Resolver, default_registry, reference_of
from queue_system.signing import Signer, SigningKey
from queue_system.summary import metrics_summary
from queue_system.utils import CircuitBreaker, circuit_breaker, retry_with_backoff

DEFAULT_REDIS_URL: Final = "redis://localhost:6379/0"
DEFAULT_DEDUPLICATION_WINDOW: Final = 3600.0
DEFAULT_DURABILITY_TIMEOUT: Final = 1.0

_TROUBLE: Final = frozenset({"failed", "timeouts", "thread_pool_exhaustion", "system_errors", "worker_task_failures"})


def default_telemetry(config: QueueConfig) -> Sequence[Hooks]:
    """The listeners of a plain `QueueConfig(...)`. The one place where the core looks at telemetry, and lazily."""
    from telemetry import default_listeners  # noqa: PLC0415  the seam: nothing is imported where telemetry is off

    return default_listeners(config.logger)


class QueueConfig:
    """Connection, names, limits and registries of one queue.

    Args:
        redis_client: a `redis.Redis` whose connection settings are used (TLS, ACL user, database).
        redis_url: ``redis://``, ``rediss://``, ``valkey://``, ``valkeys://``, ``unix://`` or ``embedded://[PATH]``;
            without either argument ``redis://localhost:6379/0``. ``embedded://`` starts a real server of its own, for
            trying and testing.
        queue_prefix: in front of every key. With a hash tag (``{queue}:``) all keys share one slot of a cluster.
        backup_ttl: seconds for which failures and system errors are kept, 7 days by default. It starts when an
            operation is given up: no live operation carries an expiry.
            A queue that was empty and unused for so long is forgotten.
        logger: a standard or structlog logger; None for ``logging.getLogger("queue_system")``.
        connection_timeout: seconds for connecting and for each command, 5 by default.
        max_connection_retries: tries for a connection or an idempotent command, 3 by default, with backoff.
        done_ttl: seconds for which a finished operation's id stays taken; 0 (default) frees it at once.
        deduplication_window: seconds, counted from the due time, for which a deduplication key is held; 1 hour.
        durability: ``primary`` (default): an operation counts as accepted when the primary has it. ``wait``: when
            replicas have said that they have it, too (`WAIT` of Redis); if not, `NotDurableError`. It makes the loss by
            a failover unlikely, not impossible: Redis may promote a replica that has not confirmed.
        durability_replicas: how many must have said so, 1 by default.
        durability_timeout: seconds to wait for that, below `connection_timeout`; by default 1 second, or half of
            `connection_timeout` if that is less. Without a replica it always takes that long.
        max_operation_bytes: limit of an encoded operation, without its signature, 256 KiB by default.
        max_failures: so many failures, and so many system errors, are kept, 100,000 by default; the oldest go first.
        max_failure_bytes: limit of the bodies, errors and histories of both together, 512 MiB by default. What goes
            because of these limits is counted as ``failures_evicted`` in the metrics hash.
        max_depth: limit of an entity's nesting, 100 by default.
        importable_modules: prefixes of modules that workers may import by name; None (default) for those of the
            program that runs, an empty list for none. Or an `imports.ImportPolicy`, which see.
        signing_keys: ``ID:SECRET`` each; none by default. Bodies are signed with the first, and each of them verifies:
            workers run nothing that was not signed for its id and queue. See docs/security.md for the roll-out.
        require_signature: False lets workers with keys take unsigned bodies, too, while signing is rolled out.
        registry: where processors are registered; the process-wide one by default.
        telemetry: None for no telemetry, or a list of `Hooks` of your own; by default metrics, spans and logs.
        listeners: `Hooks` of your own, besides those of `telemetry`.
        client_factory: where Redis clients come from, for tests (`queue_system.testing`).

    Raises:
        ConfigurationError: an argument is out of its range. Nothing is connected yet.
    """

    def __init__(
        self,
        redis_client: redis.Redis | None = None,
        redis_url: str | None = None,
        queue_prefix: str = "queue:",
        backup_ttl: float = 86400 * 7,
        logger: Any = None,
        connection_timeout: float = 5.0,
        max_connection_retries: int = 3,
        *,
        done_ttl: float = 0.0,
        deduplication_window: float = DEFAULT_DEDUPLICATION_WINDOW,
        durability: str = "primary",
        durability_replicas: int = 1,
        durability_timeout: float | None = None,
        max_operation_bytes: int = DEFAULT_MAX_BYTES,
        max_depth: int = DEFAULT_MAX_DEPTH,
        max_failures: int = DEFAULT_MAX_FAILURES,
        max_failure_bytes: int = DEFAULT_MAX_FAILURE_BYTES,
        importable_modules: Sequence[str] | ImportPolicy | None = None,
        signing_keys: Sequence[str | SigningKey] = (),
        require_signature: bool = True,
        registry: Registry = default_registry,
        telemetry: Sequence[Hooks] | str | None = "default",
        listeners: Sequence[Hooks] = (),
        client_factory: ClientFactory | None = None,
    ) -> None:
        if redis_client is not None and redis_url is not None:
            raise ConfigurationError("give redis_client or redis_url, not both")
        self.queue_prefix = queue_prefix
        self.backup_ttl = check_seconds("backup_ttl", backup_ttl)
        self.connection_timeout = check_seconds("connection_timeout", connection_timeout)
        self.max_connection_retries = check_count("max_connection_retries", max_connection_retries)
        self.done_ttl = check_seconds("done_ttl", done_ttl, zero=True)
        self.deduplication_window = check_seconds("deduplication_window", deduplication_window)
        self.durability = check_durability(durability)
        self.durability_replicas = check_count("durability_replicas", durability_replicas)
        self.durability_timeout = self._check_durability_timeout(durability_timeout)
        self.max_operation_bytes = check_count("max_operation_bytes", max_operation_bytes)
        self.max_depth = check_count("max_depth", max_depth)
        self.max_failures = check_count("max_failures", max_failures)
        self.max_failure_bytes = check_count("max_failure_bytes", max_failure_bytes)
        self.logger = get_logger(logger)
        self.clients = client_factory or _make_clients(redis_client, redis_url)
        self.registry = registry
        self.callbacks = Registry()
        policy = (
            importable_modules if isinstance(importable_modules, ImportPolicy) else ImportPolicy(importable_modules)
        )
        self._resolver = Resolver(registry, policy)
        self._callback_resolver = Resolver(self.callbacks, policy)
        self._redis: redis.Redis | None = None
        self._broker: SyncBroker | None = None
        self._connecting = threading.Lock()
        self._define_queue_keys()
        self.signer = Signer(signing_keys, scope=self.queue_prefix, required=require_signature)
        self.hooks: Hooks = HookChain((*self._listeners(telemetry), *listeners))
        self.breaker = CircuitBreaker(
            "redis", failure_threshold=5, recovery_timeout=2.0, on_change=self._breaker_changed
        )

    def get_queue_key(self, queue_name: str, priority: str = "normal") -> str:
        """The Redis key of a queue: ``queue:{priority}:{queue_name}``.

        Raises:
            ConfigurationError: a bad queue name or an unknown priority.
        """
        return self.keys.ready(check_queue_name(queue_name), check_priority(priority))

    def get_registry_key(self) -> str:
        """The Redis key of the hash of known queues and their kinds."""
        return self.keys.registry

    def get_callback_key(self, callback_name: str, callback_module: str | None = None) -> str:
        """The name of a callback in the registry: ``module:name``, or ``name`` without a module."""
        return callback_name if callback_module is None else f"{callback_module}:{callback_name}"

    def register_callback(
        self, callback: Callable[..., Any], name: str | None = None, module: str | None = None
    ) -> None:
        """Make a callback findable in this process under its own name, or the given one.

        `QueueManager.enqueue` does this for callbacks that are given as functions. A worker in another process
        imports them by name, or registers them itself.

        Raises:
            UnresolvableFunctionError: a lambda or local function without a `name`.
            ConfigurationError: another function has this name already.
        """
        if name is None and self.callbacks.by_function(callback) is not None:
            return
        reference = reference_of(callback) if name is None else FunctionRef(name, module or callback.__module__)
        known = self.callbacks.find(reference.name, reference.module)
        if known is None or known.function is not callback:
            self.callbacks.register(callback, name=reference.name, module=reference.module)

    def find_processor(self, name: str, module: str | None, *, imports: bool = True) -> Processor | None:
        """The registered processor of that name, or one that the import policy allows; None when unknown.

        Args:
            name: of the function.
            module: of the function.
            imports: whether its module may be imported, which may take any time.

        Raises:
            ImportRefusedError: the policy refuses this name.
            ImportNeededError: its module would have to be imported first, and `imports` is false.
        """
        return self._resolver.resolve(name, module, imports=imports)

    def find_callback(self, name: str, module: str | None, *, imports: bool = True) -> Processor | None:
        """The same for callbacks. A registered processor may serve as callback, too."""
        return self.callbacks.find(name, module) or self._resolver.registered(name, module) or (
            self._callback_resolver.resolve(name, module, imports=imports)
        )  # fmt: skip

    def update_metric(self, metric_name: str, value: Any = 1, force_log: bool = False) -> None:
        """Add a number to a counter of the metrics hash, or set a text.

        Logged are: each change of a metric of trouble, the first, tenth, hundredth... count of others, each new
        text, and everything with `force_log`. Counts of operations are not made here but in the script that moves
        the operation, where they cannot be lost.

        Raises:
            BrokerUnavailableError: Redis cannot serve now.
        """
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.broker.run(self.commands.set_metric(metric_name, str(value)))
            self.logger.info("metric_set", metric=metric_name, value=str(value))
            return
        total = self.broker.run(self.commands.add_to_metric(metric_name, value))
        if force_log or metric_name in _TROUBLE or _crosses_power_of_ten(total - value, total):
            self.logger.info("metric_changed", metric=metric_name, added=value, total=total)

    def get_metrics(self) -> dict[str, Any]:
        """The fleet's counters with success rate and thread pool figures; see `summary.metrics_summary`.

        Raises:
            BrokerUnavailableError: Redis cannot serve now.
        """
        return metrics_summary(self.broker.run(self.commands.status()))

    @property
    def broker(self) -> SyncBroker:
        """Carries out calls, on a connection made at first use."""
        if self._broker is None:
            self._ensure_redis_sync()
        assert self._broker is not None  # noqa: S101  set beside _redis
        return self._broker

    def new_sync_broker(self, *, timeout: float | None = None) -> SyncBroker:
        """A broker on connections of its own, for a thread of its own."""
        client = self.clients.sync(timeout=timeout or self.connection_timeout)
        return SyncBroker(client, self.clients.address)

    def new_async_broker(
        self, *, timeout: float | None = None, tries: int = 1, connections: int | None = None
    ) -> AsyncBroker:
        """A broker for asyncio on connections of its own; for blocking reads give a `timeout` above theirs.

        Args:
            timeout: seconds, by default `connection_timeout`.
            tries: of an idempotent call.
            connections: at once, or None for as many as are needed.
        """
        client = self.clients.aio(timeout=timeout or self.connection_timeout)
        return AsyncBroker(client, self.clients.address, tries=tries, connections=connections)

    def new_async_producer(self) -> AsyncProducer:
        """What an asynchronous manager has in the event loop that runs."""
        tries = self.max_connection_retries
        return AsyncProducer(
            self.new_async_broker(tries=tries, connections=CONNECTIONS),
            self.commands,
            self.clients.address,
            confirm=self.commands.confirm(self.durability_replicas, self.durability_timeout),
            tries=tries,
            patience=tries * self.connection_timeout,
        )

    def close(self) -> None:
        """Close the connections of this configuration. It may be used again: it then connects anew."""
        if self._broker is not None:
            self._broker.close()
        self._broker = self._redis = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"QueueConfig(redis={self.clients.address!r}, queue_prefix={self.queue_prefix!r})"

    def _define_queue_keys(self) -> None:
        """Build the keys and the calls of this prefix."""
        self.keys = Keys(self.queue_prefix)
        memory = answer_memory(self.max_connection_retries, self.connection_timeout)
        self.commands = Commands(
            self.keys,
            answer_memory=memory,
            retention=self.backup_ttl,
            max_failures=self.max_failures,
            max_failure_bytes=self.max_failure_bytes,
        )

    def _check_durability_timeout(self, given: float | None) -> float:
        if given is None:
            return min(DEFAULT_DURABILITY_TIMEOUT, self.connection_timeout / 2)
        if check_seconds("durability_timeout", given) >= self.connection_timeout:
            raise ConfigurationError(
                f"durability_timeout must be below connection_timeout ({self.connection_timeout:g} s), got {given!r}"
            )
        return float(given)

    @circuit_breaker(breaker=lambda self: self.breaker, exceptions=(BrokerUnavailableError,))
    @retry_with_backoff(
        attempts=lambda self, retry_count=None: retry_count or self.max_connection_retries,
        retry_if=lambda error: isinstance(error, BrokerUnavailableError) and error.kind not in LASTING,
    )
    def _ensure_redis_sync(self, retry_count: int | None = None) -> redis.Redis:  # noqa: ARG002  read by the decorator
        """The connected client, made at first use.

        Args:
            retry_count: tries; None for `max_connection_retries`.

        Raises:
            BrokerUnavailableError: it cannot be reached.
            UnsupportedServerError: it is older than Redis 6.2.
        """
        client = self._redis
        if client is None:
            # One thread connects for all. After a fork, a thread that is no more may have it: then this one goes on.
            is_first = self._connecting.acquire(timeout=self.connection_timeout)
            try:
                client = self._redis or self._connect()
            finally:
                if is_first:
                    self._connecting.release()
        return client

    def _connect(self) -> redis.Redis:
        client = self.clients.sync(timeout=self.connection_timeout)
        broker = SyncBroker(client, self.clients.address, tries=self.max_connection_retries)
        try:
            client.ping()
        except CLIENT_ERRORS as error:
            raise translate(error, self.clients.address) from error
        check_server(broker.server_version(), self.clients.address)
        check_prefix(self.queue_prefix, self.clients.address, is_cluster=broker.is_cluster)
        self._broker = broker
        self._redis = client  # last: whoever finds it finds the broker, too
        return client

    def _listeners(self, telemetry: Sequence[Hooks] | str | None) -> Sequence[Hooks]:
        if telemetry is None:
            return ()
        if telemetry == "default":
            return default_telemetry(self)
        if isinstance(telemetry, str) or not all(isinstance(listener, Hooks) for listener in telemetry):
            raise ConfigurationError('telemetry is "default", None or a list of queue_system.hooks.Hooks')
        return telemetry

    def _breaker_changed(self, name: str, _: str, state: str) -> None:
        self.hooks.on_event(BreakerChanged(name, state))


def _make_clients(redis_client: redis.Redis | None, redis_url: str | None) -> ClientFactory:
    if redis_client is not None:
        return SettingsClients(redis_client)
    return UrlClients(DEFAULT_REDIS_URL if redis_url is None else redis_url)


def _crosses_power_of_ten(before: float, after: float) -> bool:
    if after <= 0:
        return False
    return before <= 0 or math.floor(math.log10(before)) != math.floor(math.log10(after))
