"""A database of its own, so that looking at all of a prefix's keys costs little."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from queue_system.embedded import EmbeddedServer

DATABASE = 1


@pytest.fixture(scope="session")
def client(redis_server: EmbeddedServer) -> Iterator[redis.Redis]:
    with redis.Redis(port=redis_server.port, db=DATABASE, socket_timeout=10) as client:
        yield client
