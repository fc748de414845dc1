"""What all tests share: a real Redis for each test process, a key prefix of its own for each test."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from queue_system import QueueConfig, QueueManager
from queue_system.embedded import EmbeddedServer, find_server
from queue_system.errors import ConfigurationError
from queue_system.registry import Registry
from support import missing


@pytest.fixture(scope="session")
def redis_server() -> Iterator[EmbeddedServer]:
    """One server for each test process (pytest-xdist runs several)."""
    try:
        find_server()
    except ConfigurationError:
        missing("a redis-server or valkey-server")
    with EmbeddedServer() as server:
        yield server


@pytest.fixture
def redis_url(redis_server: EmbeddedServer) -> str:
    return redis_server.url


@pytest.fixture
def prefix() -> str:
    return f"t{uuid.uuid4().hex[:12]}:"


@pytest.fixture
def registry() -> Registry:
    """Processors of one test: the process-wide registry stays as it is."""
    return Registry()


@pytest.fixture
def make_config(redis_url: str, prefix: str, registry: Registry) -> Iterator[Callable[..., QueueConfig]]:
    """Makes configurations on the test's own prefix and registry; keyword arguments win."""
    made: list[QueueConfig] = []

    def make(**options: Any) -> QueueConfig:
        if "redis_client" not in options and "client_factory" not in options:
            options.setdefault("redis_url", redis_url)
        config = QueueConfig(**{"queue_prefix": prefix, "registry": registry, **options})
        made.append(config)
        return config

    yield make
    for config in made:
        config.close()


@pytest.fixture
def config(make_config: Callable[..., QueueConfig]) -> QueueConfig:
    return make_config()


@pytest.fixture
def queue(config: QueueConfig) -> QueueManager:
    return QueueManager(config)
