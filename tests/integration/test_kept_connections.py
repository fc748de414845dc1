"""The connections that synchronous callers keep: never another's reply, never a closed one, never the parent's."""

from __future__ import annotations

import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis
from redis.exceptions import DataError, NoScriptError, ResponseError

from queue_system.broker import exchange_sync
from queue_system.broker.clients import SettingsClients, UrlClients
from queue_system.broker.exchange_sync import DirectExchange, exchange_of
from queue_system.embedded import EmbeddedServer
from support import until


@pytest.fixture(params=["", "?protocol=2", "?protocol=3"], ids=["default", "resp2", "resp3"])
def client(request, redis_server):
    client = UrlClients(redis_server.url + request.param).sync(timeout=5.0)
    yield client
    client.close()


@pytest.fixture
def exchange(client):
    exchange = exchange_of(client)
    assert isinstance(exchange, DirectExchange)
    yield exchange
    exchange.close()


@pytest.fixture
def admin(redis_server):
    with redis.Redis.from_url(redis_server.url) as admin:
        yield admin


def own_id(exchange) -> int:
    return exchange([("CLIENT", "ID")])[0]


def test_replies_come_in_order_and_errors_in_their_place(exchange, prefix):
    replies = exchange([("SET", prefix, "text"), ("LPUSH", prefix, 1), ("EVALSHA", "0" * 40, 0), ("GET", prefix)])
    assert [replies[0], replies[3]] == [b"OK", b"text"]
    assert (type(replies[1]), type(replies[2])) == (ResponseError, NoScriptError)


def test_a_connection_is_kept_after_replies_and_refusals(exchange):
    first = own_id(exchange)
    assert isinstance(exchange([("NOSUCHCOMMAND",)])[0], ResponseError)
    assert own_id(exchange) == first


def test_one_that_the_server_has_closed_is_not_used(exchange, admin):
    for _ in range(3):
        number = own_id(exchange)
        admin.client_kill_filter(_id=number)
        assert own_id(exchange) != number


def test_the_pool_sees_to_it_now_and_then(exchange, client, monkeypatch):
    seen = []
    monkeypatch.setattr(client.connection_pool, "release", seen.append)
    own_id(exchange)
    own_id(exchange)
    assert seen == []
    monkeypatch.setattr(exchange_sync.time, "monotonic", lambda: float("inf"))
    own_id(exchange)
    assert len(seen) == 1


def test_what_cannot_be_sent_is_told_and_costs_no_connection(exchange):
    first = own_id(exchange)
    with pytest.raises(DataError):
        exchange([("SET", object(), 1)])
    assert own_id(exchange) == first


def test_a_reply_that_comes_too_late_is_nobody_elses(redis_server, prefix):
    exchange = exchange_of(UrlClients(redis_server.url).sync(timeout=0.1))
    first = own_id(exchange)
    with pytest.raises(redis.TimeoutError):
        exchange([("BLPOP", prefix, 0)])
    assert exchange([("ECHO", "mine")]) == [b"mine"]
    assert own_id(exchange) != first
    exchange.close()


def test_a_reply_that_was_interrupted_is_nobody_elses(exchange, prefix, admin):
    first = own_id(exchange)

    def interrupt() -> None:
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    timer = threading.Timer(0.1, interrupt)
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        exchange([("BLPOP", prefix, 0)])
    timer.join()
    admin.rpush(prefix, "for nobody")
    assert exchange([("ECHO", "mine")]) == [b"mine"]
    assert own_id(exchange) != first


def test_threads_have_connections_of_their_own_and_replies_too(exchange, client):
    def talk(name: int) -> None:
        for number in range(200):
            text = b"%d-%d" % (name, number)
            assert exchange([("ECHO", text)]) == [text]

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(talk, range(8)))
    assert len(client.connection_pool._in_use_connections) <= 8


def test_a_child_connects_for_itself(exchange):
    parents = own_id(exchange)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writing, b"%d" % own_id(exchange))
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        assert int(pipe.read()) != parents
    assert own_id(exchange) == parents, "the child has not closed it"


async def test_what_is_closed_is_given_back_and_connects_anew(exchange, client, admin):
    number = own_id(exchange)
    exchange.close()
    await until(lambda: all(int(each["id"]) != number for each in admin.client_list()))
    assert len(client.connection_pool._in_use_connections) == 0
    assert own_id(exchange) != number


def test_an_unreachable_server_is_told_and_found_again(redis_server):
    client = UrlClients("redis://127.0.0.1:1/0").sync(timeout=0.2)
    exchange = exchange_of(client)
    for _ in range(3):
        with pytest.raises(redis.ConnectionError):
            exchange([("PING",)])
    client.connection_pool.connection_kwargs["port"] = redis_server.port
    client.connection_pool.reset()
    assert exchange([("PING",)]) == [b"PONG"]
    exchange.close()


def test_a_unix_socket_will_do(tmp_path):
    path = tmp_path / "redis.sock"
    with EmbeddedServer(extra=("--unixsocket", str(path))):
        exchange = exchange_of(SettingsClients(redis.Redis(unix_socket_path=str(path))).sync(timeout=5.0))
        assert isinstance(exchange, DirectExchange)
        assert own_id(exchange) == own_id(exchange)
        exchange.close()
