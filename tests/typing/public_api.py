"""What a type checker makes of the public API. Never run: `test_typing` has mypy read it, in strict mode.

Right uses must pass, and `assert_type` says what they give. Wrong uses carry an ignore comment, and strict mode reports
each such comment that is not needed: so every one of them is an error that mypy finds.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, assert_type

import redis

from queue_system import (
    AsyncQueueManager,
    OperationContext,
    QueueConfig,
    QueueManager,
    QueueRetryConfig,
    QueueWorker,
    processor,
)
from queue_system.events import (
    Event,
)
from queue_system.hooks import Hooks
from queue_system.utils import circuit_breaker, retry_with_backoff, try_catch, with_timeout
from utils import with_timeout as top_level_with_timeout

# --- decorators keep the signature ---


@processor
async def bare(entity: dict[str, Any]) -> int:
    return len(entity)


@processor(queue="mail", priority="high", timeout=5, retry_config=QueueRetryConfig.fixed(1), on_success="app:done")
def with_defaults(entity: dict[str, Any]) -> str:
    return str(entity)


@processor(name="other")
async def with_context(entity: dict[str, Any], context: OperationContext) -> float | None:
    assert_type(context.operation_id, str)
    assert_type(context.attempt, int)
    assert_type(context.deadline, float | None)
    return context.remaining()


async def call_them() -> None:
    assert_type(await bare({}), int)
    assert_type(with_defaults({}), str)
    await bare(5)  # type: ignore[arg-type]
    with_defaults()  # type: ignore[call-arg]


@processor(queu="mail")  # type: ignore[call-overload, untyped-decorator]
def misspelt(entity: dict[str, Any]) -> None: ...


@processor(timeout="5")  # type: ignore[call-overload, untyped-decorator]
def badly_timed(entity: dict[str, Any]) -> None: ...


@circuit_breaker
@retry_with_backoff(max_attempts=5)
@with_timeout(seconds=2.0)
async def fetch(url: str, *, size: int = 1) -> bytes:
    return url.encode() * size


@try_catch(default=None, exceptions=(KeyError,))
async def look_up(name: str) -> bytes:
    return name.encode()


@top_level_with_timeout
@try_catch
def parse(text: str) -> list[str]:
    return text.split()


async def call_those() -> None:
    assert_type(await fetch("x", size=2), bytes)
    assert_type(await look_up("x"), bytes | None)  # what it gives instead of an error
    assert_type(parse("x"), list[str])
    await fetch(1)  # type: ignore[arg-type]
    await fetch("x", sise=2)  # type: ignore[call-arg]
    parse(None)  # type: ignore[arg-type]


retry_with_backoff(max_attempts="5")  # type: ignore[call-overload]


# --- configuration ---


class Listener(Hooks):
    def on_event(self, event: Event) -> None: ...


config = QueueConfig(redis_url="redis://localhost:6379/0", queue_prefix="{q}:", backup_ttl=60, telemetry=[Listener()])
QueueConfig(redis.Redis(), connection_timeout=2.5, max_connection_retries=1, importable_modules=["app"], telemetry=None)
QueueConfig(redis_url=5)  # type: ignore[arg-type]
QueueConfig(redis="redis://localhost")  # type: ignore[call-arg]
QueueConfig(telemetry=[print])  # type: ignore[list-item]
assert_type(config.get_queue_key("mail", "high"), str)
assert_type(config.get_metrics(), dict[str, Any])
with config as entered:
    assert_type(entered, QueueConfig)


# --- enqueuing ---

queue = QueueManager(config)
assert_type(queue.enqueue({"n": 1}, bare), dict[str, Any])
assert_type(
    queue.enqueue(
        entity={"n": 1},
        processor="app.tasks:work",
        queue_name="mail",
        priority="high",
        operation_id="id",
        retry_config=QueueRetryConfig(),
        on_success=with_defaults,
        on_failure="app:failed",
        timeout=5,
        deduplication_key="key",
        custom_serializer=str,
        delay=1,
        deduplicate=True,
        deduplication_window=60,
        durability="wait",
    ),
    dict[str, Any],
)
assert_type(queue.enqueue_batch([{"n": 1}], bare, priority="low"), list[dict[str, Any]])
assert_type(queue.get_queue_status(), dict[str, Any])
assert_type(queue.purge_queue("mail"), int)
queue.enqueue([], bare)  # type: ignore[arg-type]
queue.enqueue({}, 5)  # type: ignore[arg-type]
queue.enqueue({}, bare, priority=1)  # type: ignore[arg-type]
queue.enqueue({}, bare, retry_config={"max_attempts": 3})  # type: ignore[arg-type]
queue.enqueue({}, bare, dealy=5)  # type: ignore[call-arg]
queue.enqueue({}, bare, None, "low", None, None, None, None, 5, "key", str, 5)  # type: ignore[call-arg]
QueueManager("redis://localhost")  # type: ignore[arg-type]


async def produce() -> None:
    async_queue = AsyncQueueManager(config)
    assert_type(await async_queue.enqueue({"n": 1}, bare, delay=5), dict[str, Any])
    assert_type(await async_queue.enqueue_batch([{"n": 1}], bare), list[dict[str, Any]])
    assert_type(await async_queue.get_queue_status(), dict[str, Any])
    assert_type(await async_queue.purge_queue("mail", "low"), int)
    await async_queue.close()
    await async_queue.enqueue("entity", bare)  # type: ignore[arg-type]
    await queue.enqueue({}, bare)  # type: ignore[misc]


# --- retries ---

assert_type(QueueRetryConfig.fixed(delay=30, max_attempts=3, timeout=300), QueueRetryConfig)
assert_type(QueueRetryConfig.exponential(base=2.0, min_delay=1.0, max_delay=60.0), QueueRetryConfig)
assert_type(QueueRetryConfig.custom(delays=[60, 300]), QueueRetryConfig)
assert_type(QueueRetryConfig().get_delay_for_attempt(1), float)
assert_type(QueueRetryConfig().would_exceed_timeout(0, 1), bool)
assert_type(QueueRetryConfig.from_dict(QueueRetryConfig().to_dict()), QueueRetryConfig)
QueueRetryConfig.fixed("30")  # type: ignore[arg-type]
QueueRetryConfig.custom(5)  # type: ignore[arg-type]


# --- worker ---


async def work() -> None:
    worker = QueueWorker(config, max_workers=2, thread_pool_size=20, queues=["mail"], grace=5)
    await worker.start()
    await worker.stop(grace=1)
    QueueWorker(config, max_workers="2")  # type: ignore[arg-type]
    QueueWorker()  # type: ignore[call-arg]


# --- what is public may be passed on under these types ---

callables: Sequence[Callable[..., Any]] = [bare, with_defaults, fetch]
awaited: Callable[[dict[str, Any]], Awaitable[int]] = bare
