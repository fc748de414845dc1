"""Commands packed by hiredis are those that redis-py packs."""

import pytest
import redis.asyncio.connection as aio

from queue_system.broker.packing import with_hiredis


class Pool:
    connection_class = aio.Connection


@pytest.fixture
def connection():
    pool = Pool()
    with_hiredis(pool)
    return pool.connection_class()


COMMANDS = [
    ("EVALSHA", "a" * 40, 2, "key", b"\xff\x00", 7, 1.5, "ü", ""),
    ("SCRIPT LOAD", "return 1"),
    ("BZPOPMIN", "wake", "0.002"),
]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_packed_as_redis_py_packs_it(connection, command):
    assert b"".join(connection.pack_command(*command)) == b"".join(aio.Connection().pack_command(*command))


def test_several_commands_are_packed_in_their_order(connection):
    assert b"".join(connection.pack_commands(COMMANDS)) == b"".join(aio.Connection().pack_commands(COMMANDS))


def test_the_class_is_made_once_for_each_kind_of_connection(connection):
    first, second, other = Pool(), Pool(), Pool()
    other.connection_class = aio.SSLConnection
    for pool in (first, second, other):
        with_hiredis(pool)
    assert first.connection_class is second.connection_class
    assert issubclass(other.connection_class, aio.SSLConnection)
