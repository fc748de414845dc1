"""How synchronous calls get at connections: redis-py's of any version, and clients of a class of their own."""

from __future__ import annotations

import redis

from queue_system.broker import exchange_sync
from queue_system.broker.exchange_sync import DirectExchange, PipelinedExchange, exchange_of


class Connection:
    """Answers each command with its number of bytes."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []

    def send_packed_command(self, command, *, check_health):
        assert check_health is False
        self.sent += command

    def read_response(self):
        return len(self.sent)


class Pool:
    """As in redis-py 5.3 and later."""

    def __init__(self) -> None:
        self.out: list[Connection] = []
        self.released: list[Connection] = []

    def get_connection(self, command_name=None, *keys, **options):
        assert (command_name, keys, options) == (None, (), {}), "deprecated"
        return self.hand_out()

    def hand_out(self):
        self.out.append(Connection())
        return self.out[-1]

    def release(self, connection):
        self.released.append(connection)

    def disconnect(self):
        """A client that is forgotten closes its pool."""


class OldPool(Pool):
    """As in redis-py 5.0."""

    def get_connection(self, command_name, *keys, **options):
        return self.hand_out()


def direct(pool: Pool) -> DirectExchange:
    client = redis.Redis()
    client.connection_pool = pool
    exchange = exchange_of(client)
    assert isinstance(exchange, DirectExchange)
    return exchange


def test_pools_of_every_redis_py_are_understood():
    for pool in (Pool(), OldPool()):
        assert direct(pool)([("PING",)]) == [1]


def test_several_commands_go_in_one_piece():
    pool = Pool()
    assert direct(pool)([("PING",), ("ECHO", "a")]) == [1, 1]
    assert pool.out[0].sent == [b"*1\r\n$4\r\nPING\r\n*2\r\n$4\r\nECHO\r\n$1\r\na\r\n"]


def test_a_connection_that_cannot_be_asked_is_left_to_the_pool():
    pool = Pool()  # its connections have no socket
    exchange = direct(pool)
    exchange([("PING",)])
    exchange([("PING",)])
    assert pool.released == pool.out[:1]


def test_without_poll_every_connection_is_left_to_the_pool(monkeypatch):
    monkeypatch.delattr(exchange_sync.select, "poll")
    pool = Pool()
    exchange = direct(pool)
    exchange([("PING",)])
    exchange([("PING",)])
    assert len(pool.released) == 1


class OwnClass(redis.Redis):
    pass


def test_a_client_of_a_class_of_its_own_is_asked_itself():
    assert isinstance(exchange_of(OwnClass()), PipelinedExchange)
