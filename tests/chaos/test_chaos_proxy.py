"""The proxy does what it says: seen from both of its sides, with plain sockets."""

from __future__ import annotations

import socket
import socketserver
import threading
import time

import pytest

from chaos.proxy import Proxy

LIMIT = 5.0


class Echo(socketserver.ThreadingTCPServer):
    """Answers each piece with itself, and keeps what it got."""

    allow_reuse_address = daemon_threads = True

    def __init__(self):
        self.got: list[bytes] = []
        self.closed = threading.Event()

        class Handler(socketserver.BaseRequestHandler):
            def handle(handler):  # noqa: N805  `self` is the server
                try:
                    while data := handler.request.recv(1024):
                        self.got.append(data)
                        handler.request.sendall(data)
                except OSError:
                    pass
                self.closed.set()

        super().__init__(("127.0.0.1", 0), Handler)


@pytest.fixture
def echo():
    with Echo() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def proxy(echo):
    with Proxy(echo.server_address[1], seed=3) as proxy:
        yield proxy


def connect(proxy):
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=LIMIT)


def ask(connection, data=b"hello"):
    connection.sendall(data)
    return connection.recv(1024)


def is_cut(connection):
    try:
        return connection.recv(1024) == b""
    except ConnectionResetError:
        return True


def test_it_passes_both_ways(proxy):
    with connect(proxy) as client:
        assert [ask(client), ask(client, b"again")] == [b"hello", b"again"]
    assert (proxy.did["connections"], proxy.did["requests"], proxy.did["replies"]) == (1, 2, 2)


def test_a_dropped_reply_belongs_to_a_request_that_went_through(proxy, echo):
    with connect(proxy) as client:
        assert ask(client) == b"hello"
        proxy.drop_replies = 1.0
        client.sendall(b"lost")
        assert is_cut(client)
    assert echo.got == [b"hello", b"lost"]
    assert (proxy.did["replies"], proxy.did["replies_dropped"]) == (2, 1)


def test_the_dice_follow_the_seed(echo):
    def falls(seed):
        with Proxy(echo.server_address[1], seed=seed) as proxy:
            return [proxy.rolls(0.5) for _ in range(64)]

    assert falls(1) == falls(1) != falls(2)
    assert 16 < sum(falls(1)) < 48


def test_half_open_connections_swallow_everything_and_new_ones_pass(proxy, echo):
    with connect(proxy) as client:
        assert ask(client) == b"hello"
        assert proxy.half_open() == 1
        client.sendall(b"vanishes")
        client.settimeout(0.2)
        with pytest.raises(TimeoutError):
            client.recv(1024)
        with connect(proxy) as other:
            assert ask(other) == b"hello"
    assert echo.got == [b"hello", b"hello"]
    assert proxy.did["swallowed_bytes"] == len(b"vanishes")


def test_the_end_of_a_half_open_connection_is_swallowed_too(proxy, echo):
    with connect(proxy) as client:
        assert ask(client) == b"hello"
        proxy.half_open()
    assert not echo.closed.wait(0.2)
    proxy.cut()
    assert echo.closed.wait(LIMIT)


def test_a_partition_takes_new_connections_as_well_until_it_is_over(proxy):
    proxy.partition()
    with connect(proxy) as client:
        client.settimeout(0.2)
        with pytest.raises(TimeoutError):
            ask(client)
    proxy.accept()
    with connect(proxy) as client:
        assert ask(client) == b"hello"


def test_it_refuses_and_accepts_again_on_the_same_port(proxy):
    port = proxy.port
    with connect(proxy) as client:
        assert ask(client) == b"hello"
        proxy.refuse()
        assert is_cut(client)
    with pytest.raises(ConnectionRefusedError):
        connect(proxy)
    proxy.accept()
    assert proxy.port == port
    with connect(proxy) as client:
        assert ask(client) == b"hello"


def test_a_delay_holds_replies_back(proxy):
    proxy.delay = 0.1
    with connect(proxy) as client:
        began = time.monotonic()
        assert ask(client) == b"hello"
        assert time.monotonic() - began >= 0.1


def test_a_dead_target_is_a_cut_connection(proxy):
    proxy.target = 1  # nobody listens there
    with connect(proxy) as client:
        assert is_cut(client)
    assert proxy.did["refused"] == 1
