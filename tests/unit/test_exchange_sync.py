"""How synchronous calls get at connections: redis-py's of any version, and clients of a class of their own."""

from __future__ import annotations

import socket
import threading
from types import SimpleNamespace

import hiredis
import pytest
import redis
import redis.exceptions as rex
from redis._parsers import BaseParser

from queue_system.broker import exchange_sync
from queue_system.broker.exchange_sync import DirectExchange, PipelinedExchange, exchange_of


class Connection:
    """Answers each command with its number of bytes."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []

    disconnected = 0

    def disconnect(self):
        self.disconnected += 1

    def send_packed_command(self, command, *, check_health):
        assert check_health is False
        self.sent += command

    def read_response(self):
        return len(self.sent)


class Pool:
    """As in redis-py 5.3 and later."""

    max_connections = 3

    def __init__(self) -> None:
        self.connection_kwargs = {"socket_timeout": 0.05}
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


class Askable(Connection):
    """Has a socket that can be asked, so that it is kept; answers as it is told."""

    def __init__(self, pool: Pool) -> None:
        super().__init__()
        self._sock, self._other = socket.socketpair()
        self.pool = pool

    def read_response(self):
        answer = self.pool.answers.pop(0)
        if callable(answer):
            answer = answer()
        if isinstance(answer, Exception):
            raise answer
        return answer


class AskablePool(Pool):
    def __init__(self, *answers) -> None:
        super().__init__()
        self.answers = list(answers)

    def hand_out(self):
        self.out.append(Askable(self))
        return self.out[-1]

    @property
    def dropped(self):
        return [connection.disconnected for connection in self.out]


READ_ONLY = rex.ReadOnlyError("You can't write against a read only replica.")


def test_a_server_that_is_no_more_the_right_one_is_connected_to_anew_on_all_connections():
    pool = AskablePool()
    exchange = direct(pool)
    # The second is made while the first waits for its reply, then both are kept.
    pool.answers = [lambda: exchange([("B",)])[0], 1, READ_ONLY, 5]
    assert exchange([("A",)]) == [1]
    assert (len(pool.out), pool.dropped, pool.released) == (2, [0, 0], [])
    assert exchange([("C",)]) == [READ_ONLY]
    assert pool.dropped == [1, 1]
    assert set(pool.released) == set(pool.out)
    assert exchange([("D",)]) == [5]
    assert (len(pool.out), pool.dropped[2]) == (3, 0)


def test_one_in_use_by_then_is_dropped_after_its_reply():
    pool = AskablePool()
    exchange = direct(pool)
    pool.answers = [lambda: exchange([("B",)]) and 1, READ_ONLY]
    assert exchange([("A",)]) == [1]
    assert pool.dropped == [1, 1]
    pool.answers = [2, 3]
    exchange([("C",)])
    exchange([("D",)])
    assert pool.dropped == [1, 1, 0]  # and those made since are kept


@pytest.mark.parametrize("error", [rex.OutOfMemoryError("full"), rex.ResponseError("BUSY a script")])
def test_a_refusal_keeps_the_connection(error):
    pool = AskablePool(error, 1)
    exchange = direct(pool)
    assert exchange([("A",)]) == [error]
    assert exchange([("B",)]) == [1]
    assert (pool.dropped, pool.released) == ([0], [])


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


class Server:
    """The other end of a connection that is redis-py's as far as an exchange looks at it."""

    def __init__(self) -> None:
        own, self.socket = socket.socketpair()
        own.settimeout(0.05)
        self.pushed: list[object] = []
        reader = hiredis.Reader(replyError=BaseParser.parse_error, notEnoughData=object())
        self.connection = SimpleNamespace(
            _sock=own, _parser=SimpleNamespace(_reader=reader, handle_push_response=self.pushed.append)
        )
        self.kept = exchange_sync._Kept(self.connection)
        self.exchange = self.kept.exchange
        self.arrived: list[bytes] = []

    def look(self) -> None:
        """Note what has arrived."""
        self.arrived.append(self.socket.recv(100))

    def ask(self, *answers: bytes, count: int = 1) -> list[object]:
        """What is read when it answers so."""
        for answer in answers:
            self.socket.sendall(answer)
        return self.exchange(b"?", count, self.look)


@pytest.fixture
def server():
    server = Server()
    yield server
    server.socket.close()
    server.connection._sock.close()


def test_what_is_sent_arrives_and_replies_come_in_order(server):
    assert server.ask(b"+OK\r\n:1\r\n", b"*1\r\n$1\r\nq\r\n", count=3) == [b"OK", 1, [b"q"]]


def test_what_is_to_be_done_meanwhile_is_done_after_the_sending(server):
    server.ask(b"+OK\r\n")
    assert server.arrived == [b"?"]


def test_a_reply_may_come_in_parts(server):
    later = threading.Timer(0.01, server.socket.sendall, [b"lo\r\n"])
    later.start()
    assert server.ask(b"$5\r\nhel") == [b"hello"]
    later.join()


def test_a_refusal_is_a_reply_and_the_next_one_is_read(server):
    refused, answer = server.ask(b"-ERR no\r\n", b":2\r\n", count=2)
    assert (type(refused), str(refused), answer) == (rex.ResponseError, "no", 2)


def test_what_the_server_pushes_is_no_reply_and_handed_on(server):
    assert server.ask(b">1\r\n+news\r\n", b"+OK\r\n") == [b"OK"]
    assert server.pushed == [[b"news"]]


def test_a_server_that_is_not_ready_is_told_as_by_redis_py(server):
    with pytest.raises(rex.BusyLoadingError):
        server.ask(b"-LOADING the data\r\n")


def test_no_answer_in_time_is_told_as_by_redis_py(server):
    with pytest.raises(rex.TimeoutError):
        server.ask()


def test_the_time_limit_is_left_to_the_socket(server):
    """gevent and eventlet have sockets of their own, on which a limit that is set in the kernel has no effect."""
    own = server.connection._sock
    assert own.gettimeout() == 0.05
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        assert own.getsockopt(socket.SOL_SOCKET, option, 16) == bytes(16)


def test_the_end_of_a_connection_is_told_as_by_redis_py(server):
    server.socket.shutdown(socket.SHUT_WR)
    with pytest.raises(rex.ConnectionError, match="closed by server"):
        server.ask()
    server.socket.close()
    with pytest.raises(rex.ConnectionError, match="talking to the server"):
        server.exchange(b"?", 1, lambda: None)


def test_a_push_is_passed_over_where_redis_py_has_nothing_for_it(server):
    del server.connection._parser.handle_push_response
    server.exchange = exchange_sync._Kept(server.connection).exchange
    assert server.ask(b">1\r\n+news\r\n", b"+OK\r\n") == [b"OK"]
