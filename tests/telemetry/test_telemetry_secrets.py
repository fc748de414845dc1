"""Passwords and payloads are found nowhere: not in logs, spans, metrics, representations, or errors."""

from __future__ import annotations

import asyncio
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

import pytest
from log_stream import LogStream, log_stream
from otlp_receiver import HttpReceiver
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics

from queue_system import AsyncQueueManager, QueueConfig, QueueManager, QueueWorker
from queue_system.errors import BrokerUnavailableError, QueueError, SerializationError
from queue_system.failures import FailureStore
from queue_system.log import get_logger
from queue_system.retry import QueueRetryConfig
from support import running, until, until_metrics
from telemetry import (
    LogListener,
    MetricsListener,
    SidecarServer,
    SpanPipeline,
    TracingListener,
    default_listeners,
    otlp_exporter,
)
from telemetry.tracing import exemplar

PASSWORD = "pa55/w0rd?&x"
ENTITY_SECRET = "4929-card-1234"
FORGED = "2026-01-01T00:00:00Z [error] forged"
SIGNING_SECRET = "s1gn-with-32-characters-or-some-more"
SECRETS = ("pa55", "w0rd", ENTITY_SECRET, SIGNING_SECRET)


class Refuses:
    """A value without a JSON form, whose representation is secret."""

    def __repr__(self) -> str:
        return ENTITY_SECRET


@pytest.fixture(params=["json", "console"])
def logs(request: pytest.FixtureRequest) -> Iterator[LogStream]:
    with log_stream() as stream:
        stream.start(request.param)
        yield stream


@pytest.fixture
def url(redis_url: str, prefix: str, config: QueueConfig) -> Iterator[str]:
    """A URL with a password that the server asks for."""
    user, redis = prefix.rstrip(":"), config._ensure_redis_sync()
    redis.acl_setuser(user, enabled=True, passwords=[f"+{PASSWORD}"], keys="*", channels="*", commands=["+@all"])
    yield redis_url.replace("://", f"://{user}:{quote(PASSWORD, safe='')}@")
    redis.acl_deluser(user)


@pytest.fixture
def receiver() -> Iterator[HttpReceiver]:
    receiver = HttpReceiver()
    yield receiver
    receiver.stop()


def no_secret(where: str, text: str) -> None:
    for secret in (*SECRETS, quote(PASSWORD, safe="")):
        assert secret not in text, where


async def test_secrets_are_found_nowhere(
    logs: LogStream, url: str, receiver: HttpReceiver, make_config: Callable[..., QueueConfig]
) -> None:
    registry = CollectorRegistry()
    pipeline = SpanPipeline(otlp_exporter(receiver.endpoint))
    logger = make_config().logger
    listeners = [TracingListener(pipeline.provider), MetricsListener(registry, exemplar), LogListener(logger)]
    config = make_config(redis_url=url, telemetry=listeners, signing_keys=[f"k1:{SIGNING_SECRET}"])
    message = f"bad card {ENTITY_SECRET}\n{FORGED}\x1b[2J"

    async def fail(entity: Any) -> None:
        raise ValueError(message)

    def fail_sync(entity: Any) -> None:
        raise ValueError(message) from KeyError(entity["card"])

    def exits(entity: Any) -> None:
        raise SystemExit(message)

    async def hang(entity: Any) -> None:
        await asyncio.sleep(60)

    async def regret(data: Any) -> None:
        assert ENTITY_SECRET in data["entity"]["card"]
        raise OSError(data["error"]["message"])

    for function in (fail, fail_sync, exits, hang):
        config.registry.register(function, name=function.__name__, module="tests")
    config.register_callback(regret, name="regret", module="tests")
    queue = QueueManager(config)
    entity = {"card": ENTITY_SECRET, "password": ENTITY_SECRET, "deep": [{"x": ENTITY_SECRET}]}
    errors: list[BaseException] = []
    with pytest.raises(SerializationError) as refused:
        queue.enqueue({"card": Refuses()}, "tests:fail")
    errors.append(refused.value)
    for name, more in (("fail", {}), ("fail_sync", {}), ("exits", {}), ("hang", {"timeout": 0.05})):
        queue.enqueue(
            entity,
            f"tests:{name}",
            on_failure="tests:regret",
            retry_config=QueueRetryConfig(max_attempts=2, delays=[0.01]),
            deduplication_key=ENTITY_SECRET + name,
            **more,
        )
    unsigned = QueueManager(make_config(redis_url=url)).enqueue(entity, "tests:fail", queue_name="fail")["operation_id"]
    worker: QueueWorker
    async with running(config) as worker:
        await until_metrics(config, system_errors=1)
        await until_metrics(config, retried=4, failed=4, callbacks_enqueued=4)
        await until(lambda: config.get_metrics().get("callbacks_retried", 0) >= 4)  # they go on being retried
        shown = [repr(thing) for thing in (config, worker, queue, AsyncQueueManager(config), worker.stats())]
        shown += [repr(worker.health()), str(config.clients.address), repr(vars(config))]
        with pytest.raises(QueueError) as bad_key:
            make_config(signing_keys=[f"k 1:{SIGNING_SECRET}"])
        errors.append(bad_key.value)
    assert pipeline.shutdown(10)

    no_secret("logs", logs.text)
    no_secret("metrics", generate_latest(registry).decode() + generate_openmetrics(registry).decode())
    no_secret("spans", b"".join(receiver.received.raw).decode("latin-1"))
    no_secret("representations", "\n".join(shown))
    no_secret("errors", "\n".join(f"{error} {error!r}" for error in errors))
    assert "\x1b" not in logs.text
    assert not [line for line in logs.text.splitlines() if line.startswith(FORGED)]
    assert "operation_failed" in logs.text
    assert unsigned in logs.text
    assert "BadSignatureError" in logs.text
    assert len(receiver.received.spans) >= 4 + 8
    # The failures have it: that is where to look, with access to Redis.
    assert ENTITY_SECRET in "".join(entry.error_message for entry in FailureStore(config).list(limit=10))


async def test_a_password_is_in_no_error_of_a_connection(
    logs: LogStream, url: str, make_config: Callable[..., QueueConfig]
) -> None:
    wrong = url.replace("@", "wrong@")
    unreachable = "redis://u:" + quote(PASSWORD, safe="") + "@127.0.0.1:1/0"
    texts: list[str] = []
    for bad in (wrong, unreachable, f"{unreachable}?password={quote(PASSWORD, safe='')}"):
        config = make_config(redis_url=bad, max_connection_retries=1, telemetry="default")
        for attempt in (
            lambda config=config: QueueManager(config).enqueue({}, "tests:x"),
            lambda config=config: config.get_metrics(),
        ):
            with pytest.raises(BrokerUnavailableError) as caught:
                attempt()
            texts.append(f"{caught.value} {caught.value!r}")
        with pytest.raises(BrokerUnavailableError) as caught:
            await QueueWorker(config).start()
        texts += [f"{caught.value} {caught.value!r}", repr(config)]
    for bad in (f"redis://u:{PASSWORD}@h/0", f"reddis://u:{PASSWORD}@h", f"redis://u:{PASSWORD}@h:port"):
        with pytest.raises(QueueError) as refused:
            make_config(redis_url=bad)
        texts.append(f"{refused.value} {refused.value!r}")
    no_secret("errors", "\n".join(texts))
    no_secret("logs", logs.text)


async def test_a_worker_that_loses_redis_does_not_tell_its_password(
    logs: LogStream, url: str, make_config: Callable[..., QueueConfig], prefix: str
) -> None:
    admin = make_config()._ensure_redis_sync()
    config = make_config(redis_url=url)
    async with running(config):
        admin.acl_setuser(prefix.rstrip(":"), enabled=False, reset_passwords=True)
        admin.execute_command("CLIENT", "KILL", "USER", prefix.rstrip(":"))
        await until(lambda: "redis_error" in logs.text)
    no_secret("logs", logs.text)


async def test_the_endpoints_of_a_worker_tell_no_secret(
    url: str, make_config: Callable[..., QueueConfig], prefix: str
) -> None:
    """Neither when all is well nor when Redis refuses the password."""
    admin = make_config()._ensure_redis_sync()
    registry = CollectorRegistry()
    listeners = default_listeners(get_logger(), registry)
    config = make_config(redis_url=url, telemetry=listeners, signing_keys=[f"k1:{SIGNING_SECRET}"])
    paths = ("/", "/livez", "/readyz", "/metrics", "/nothing", f"/{ENTITY_SECRET}")
    async with running(config) as worker:
        server = SidecarServer(worker.health, port=0, registry=registry)
        server.start()
        try:
            answers = [await asyncio.to_thread(fetch, f"{server.url}{path}") for path in paths]
            assert [status for status, _ in answers] == [200, 200, 200, 200, 404, 404]
            admin.acl_setuser(prefix.rstrip(":"), enabled=False, reset_passwords=True)
            admin.execute_command("CLIENT", "KILL", "USER", prefix.rstrip(":"))
            await until(lambda: fetch(f"{server.url}/readyz")[0] == 503)
            answers += [await asyncio.to_thread(fetch, f"{server.url}{path}") for path in paths]
        finally:
            server.stop()
    for _, body in answers:
        no_secret("endpoints", body)


def fetch(address: str) -> tuple[int, str]:
    """Status and body of a GET."""
    try:
        with urllib.request.urlopen(address, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()
