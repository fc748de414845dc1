"""An address at which something other than Redis answers, or a Redis that wants a password."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest
import redis

from queue_system import AsyncQueueManager, BrokerUnavailableError, QueueManager
from queue_system.embedded import EmbeddedServer

TRIES = 3


class WebServer:
    """Answers everything with an error of HTTP, and leaves the connection open."""

    def __init__(self) -> None:
        self.connections: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}/0"
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.connections.append(connection)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10.0)
        for connection in self.connections:
            connection.close()


@pytest.fixture
def web_server() -> Iterator[WebServer]:
    server = WebServer()
    yield server
    server.close()


@pytest.mark.parametrize("manager", [QueueManager, AsyncQueueManager])
async def test_a_web_server_is_told_at_once(web_server, make_config, manager):
    queue = manager(make_config(redis_url=web_server.url, max_connection_retries=TRIES))
    with pytest.raises(BrokerUnavailableError, match="what answers there is not Redis") as caught:
        await queue.enqueue({}, "tests:work")
    assert caught.value.kind == "protocol"
    assert len(web_server.connections) < TRIES, "it is not tried again: it would answer the same"


@pytest.mark.parametrize("manager", [QueueManager, AsyncQueueManager])
async def test_a_redis_that_wants_a_password_says_where_to_give_it(make_config, manager):
    with EmbeddedServer() as server, redis.Redis(port=server.port) as admin:
        admin.config_set("requirepass", "secret")
        for url, advice in (
            (server.url, "give it in redis_url, as redis://:PASSWORD@host"),
            (f"redis://:wrong@127.0.0.1:{server.port}/0", "check the user name and password in redis_url"),
        ):
            queue = manager(make_config(redis_url=url, max_connection_retries=1))
            with pytest.raises(BrokerUnavailableError) as caught:
                await queue.enqueue({}, "tests:work")
            assert caught.value.kind == "auth"
            assert advice in str(caught.value)
            assert "wrong" not in str(caught.value)
        admin.config_set("requirepass", "")
