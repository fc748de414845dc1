"""Commands for replies, on connections that are kept: when one is used again, and when never."""

import asyncio
import socket
from types import SimpleNamespace

import hiredis
import pytest
import redis.asyncio as aioredis
import redis.exceptions as rex
from redis.asyncio.connection import Connection as RealConnection

from queue_system.broker.exchange import DirectExchange, PipelinedExchange, exchange_of
from queue_system.broker.places import CrowdedError
from queue_system.broker.translate import ClosedConnectionError
from support import until


class Former(asyncio.Protocol):
    """The protocol of redis-py's stream."""

    def __init__(self):
        self.lost = []

    def connection_lost(self, exc):
        self.lost.append(exc)


class Transport:
    """Answers each write, a moment later, with the next of the pool's answers: bytes as they come from the server."""

    def __init__(self, pool):
        self.pool = pool
        self.written = []
        self.aborted = False
        self.protocol = self.former = Former()

    def get_protocol(self):
        return self.protocol

    def set_protocol(self, protocol):
        self.protocol = protocol

    def abort(self):
        self.aborted = True

    def write(self, data):
        self.written.append(data)
        for answer in self.pool.answers.pop(0) if self.pool.answers else ():
            asyncio.get_running_loop().call_soon(self.arrive, answer)

    def arrive(self, answer):
        if answer is None:
            self.protocol.connection_lost(None)
        else:
            self.protocol.data_received(answer)


class Connection:
    def __init__(self, pool):
        self._parser = SimpleNamespace(parse_error=RealConnection(host="nowhere")._parser.parse_error)
        self.pool = pool
        self.connect()

    def connect(self):
        self._writer = SimpleNamespace(transport=Transport(self.pool))
        self.connected = True

    @property
    def written(self):
        return self._writer.transport.written

    async def disconnect(self, *, nowait):
        assert nowait
        self.connected = False

    @property
    def aborted(self):
        return self._writer.transport.aborted


class Pool:
    """Hands out the connection that was released last, as redis-py does."""

    def __init__(self, answers, timeout=60.0):
        self.answers = list(answers)
        self.connection_kwargs = {"socket_timeout": timeout}
        self.made, self.free = [], []
        self.checked_out = 0

    async def get_connection(self, command_name=None):
        assert command_name is None
        self.checked_out += 1
        if self.free:
            self.free[-1].connect()
        else:
            self.made.append(Connection(self))
            self.free.append(self.made[-1])
        return self.free.pop()

    async def release(self, connection):
        assert connection not in self.free
        self.free.append(connection)


def direct(*answers, **options):
    pool = Pool(answers, **options)
    return DirectExchange(SimpleNamespace(connection_pool=pool)), pool


async def test_commands_go_together_and_each_has_its_reply_however_they_come():
    exchange, pool = direct([b"$1\r\n1\r\n*2\r", b"\n:1\r\n", b"$1\r\nx\r\n"])
    assert await exchange([("GET", "a"), ("EVALSHA", "sha", 1, b"key", 2)]) == [b"1", [1, b"x"]]
    packed = hiredis.pack_command(("GET", "a")) + hiredis.pack_command(("EVALSHA", "sha", 1, b"key", 2))
    assert [connection.written for connection in pool.made] == [[packed]]


async def test_an_error_of_a_command_is_its_reply_and_harms_nothing_else():
    exchange, pool = direct([b":1\r\n-NOSCRIPT no such\r\n:3\r\n"], [b":4\r\n"])
    first, error, third = await exchange([("A",), ("B",), ("C",)])
    assert (first, type(error), third) == (1, rex.NoScriptError, 3)
    assert await exchange([("D",)]) == [4]
    assert len(pool.made) == pool.checked_out == 1


@pytest.mark.skipif(not hasattr(hiredis, "PushNotification"), reason="this hiredis has no RESP3")
async def test_what_the_server_pushes_is_no_reply():
    exchange, _ = direct([b">2\r\n+moving\r\n:1\r\n:7\r\n"])
    assert await exchange([("A",)]) == [7]


async def test_those_at_the_same_time_have_a_connection_each_and_keep_it():
    exchange, pool = direct(*[[b":1\r\n"]] * 4)
    for _ in range(2):
        await asyncio.gather(exchange([("A",)]), exchange([("B",)]))
    assert len(pool.made) == pool.checked_out == 2


async def test_one_that_the_server_has_closed_meanwhile_is_not_used():
    exchange, pool = direct([b":1\r\n"], [b":2\r\n"])
    await exchange([("A",)])
    transport = pool.made[0]._writer.transport
    transport.arrive(None)
    assert transport.former.lost == [None]  # redis-py may wait for that
    assert await exchange([("B",)]) == [2]
    assert (pool.checked_out, len(pool.made)) == (2, 1)


@pytest.mark.parametrize(
    ("answer", "error"),
    [(None, rex.ConnectionError), (b"-LOADING Redis is\r\n", rex.BusyLoadingError), (b"?\r\n", rex.InvalidResponse)],
)
async def test_after_a_failure_no_reply_of_before_can_come(answer, error):
    exchange, pool = direct([b":1\r\n", answer])
    with pytest.raises(error):
        await exchange([("A",), ("B",)])
    (connection,) = pool.made
    assert connection.aborted
    pool.answers = [[b":7\r\n"]]
    assert await exchange([("C",)]) == [7]  # connected anew
    assert (pool.made, pool.checked_out) == ([connection], 2)


READONLY = b"-READONLY You can't write against a read only replica.\r\n"


async def test_a_server_that_is_no_more_the_right_one_is_connected_to_anew_on_all_connections():
    exchange, pool = direct([b":1\r\n"], [b":1\r\n"], [READONLY], [b":2\r\n"], [b":3\r\n"])
    await asyncio.gather(exchange([("A",)]), exchange([("B",)]))
    first, second = (connection._writer.transport for connection in pool.made)
    (error,) = await exchange([("C",)])
    assert isinstance(error, rex.ReadOnlyError)
    assert (first.aborted, second.aborted) == (True, True)
    assert await asyncio.gather(exchange([("D",)]), exchange([("E",)])) == [[2], [3]]
    assert {first, second}.isdisjoint(connection._writer.transport for connection in pool.made)


async def test_those_in_use_by_then_have_their_replies_first():
    exchange, pool = direct([], [b":1\r\n" + READONLY], [b":5\r\n"])
    waiting = await exchange.begin([("BLPOP", "a", 0)])
    assert [type(reply) for reply in await exchange([("A",), ("B",)])] == [int, rex.ReadOnlyError]
    blocked, other = pool.made
    assert (blocked.aborted, other.aborted) == (False, True)
    blocked._writer.transport.arrive(b":4\r\n")
    assert await waiting == [4]
    await until(lambda: blocked.aborted)
    assert await exchange([("C",)]) == [5]
    assert pool.checked_out == 3


async def test_those_in_order_keep_it_on_a_connection_that_is_about_to_be_dropped():
    exchange, pool = direct([], [], [b":3\r\n"])
    first = asyncio.ensure_future(exchange.in_order([("A",)]))
    second = asyncio.ensure_future(exchange.in_order([("B",)]))
    await until(lambda: pool.made and len(pool.made[0].written) == 2)
    transport = pool.made[0]._writer.transport
    transport.arrive(READONLY)
    assert isinstance((await first)[0], rex.ReadOnlyError)
    assert not transport.aborted
    transport.arrive(b":2\r\n")
    assert await second == [2]
    await until(lambda: transport.aborted)
    assert await exchange.in_order([("C",)]) == [3]
    assert pool.checked_out == 2


@pytest.mark.parametrize("answer", [b"-OOM full\r\n", b"-ERR no\r\n", b"-BUSY a script\r\n"])
async def test_a_refusal_keeps_the_connection(answer):
    exchange, pool = direct([answer], [b":1\r\n"])
    await exchange([("A",)])
    assert await exchange([("B",)]) == [1]
    assert pool.checked_out == 1


async def test_no_answer_in_time():
    exchange, pool = direct([], timeout=0.01)
    assert pool.connection_kwargs["socket_timeout"] is None  # each exchange as a whole has the limit
    with pytest.raises(rex.TimeoutError, match="Timeout reading"):
        await exchange([("A",)])
    assert [connection.aborted for connection in pool.made] == [True]


async def test_no_connection_in_time_means_that_nothing_was_sent():
    exchange, pool = direct(timeout=0.01)
    never = asyncio.get_running_loop().create_future()
    exchange._get = lambda: never
    with pytest.raises(rex.TimeoutError, match="connecting to"):
        await exchange([("A",)])
    assert pool.made == []


async def test_cut_off_in_the_middle_it_is_not_used_again():
    exchange, pool = direct([], [b":2\r\n"])
    running = asyncio.create_task(exchange([("A",)]))
    await until(lambda: pool.made and pool.made[0].written)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await until(lambda: pool.made[0].aborted)
    assert await exchange([("B",)]) == [2]


async def test_one_that_was_begun_goes_on_without_whoever_waits_for_it():
    exchange, pool = direct([], [b":2\r\n"])
    pending = await exchange.begin([("A",)])
    waiting = asyncio.create_task(asyncio.wait([pending]))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    assert not pool.made[0].aborted
    pool.made[0]._writer.transport.arrive(b":1\r\n")
    assert await pending == [1]
    await until(lambda: exchange._idle)
    assert await exchange([("B",)]) == [2]
    assert len(pool.made) == 1


async def test_those_in_order_share_a_connection_and_each_has_its_own_replies():
    exchange, pool = direct([], [])
    first = asyncio.create_task(exchange.in_order([("A",), ("B",)]))
    second = asyncio.create_task(exchange.in_order([("C",)]))
    await until(lambda: pool.made and len(pool.made[0].written) == 2)
    for data in (b":1\r\n:2\r", b"\n:3\r\n"):
        pool.made[0]._writer.transport.arrive(data)
    assert [await first, await second] == [[1, 2], [3]]
    pool.answers = [[b":4\r\n"]]
    assert await exchange([("D",)]) == [4]
    assert len(pool.made) == 1


async def test_while_those_in_order_are_on_their_way_others_have_another_connection():
    exchange, pool = direct([], [b":2\r\n"])
    first = asyncio.create_task(exchange.in_order([("A",)]))
    await until(lambda: pool.made and pool.made[0].written)
    assert await exchange([("B",)]) == [2]
    assert len(pool.made) == 2
    pool.made[0]._writer.transport.arrive(b":1\r\n")
    assert await first == [1]


@pytest.mark.parametrize(
    ("answer", "error"),
    [(None, rex.ConnectionError), (b"-LOADING Redis is\r\n", rex.BusyLoadingError), (b"?\r\n", rex.InvalidResponse)],
)
async def test_what_is_behind_a_failure_fails_with_it_and_the_connection_is_given_back_once(answer, error):
    exchange, pool = direct([], [])
    first = asyncio.create_task(exchange.in_order([("A",)]))
    second = asyncio.create_task(exchange.in_order([("B",)]))
    await until(lambda: pool.made and len(pool.made[0].written) == 2)
    pool.made[0]._writer.transport.arrive(answer)
    with pytest.raises(error):
        await first
    with pytest.raises(rex.ConnectionError, match="before this one has failed"):
        await second
    assert pool.made[0].aborted
    assert len(exchange._idle) == 1
    assert exchange._in_use == set()
    pool.answers = [[b":7\r\n"]]
    assert await exchange.in_order([("C",)]) == [7]  # connected anew
    assert pool.checked_out == 2


async def test_no_reply_of_one_that_was_cut_off_is_that_of_the_one_behind_it():
    exchange, pool = direct([], [])
    first = asyncio.create_task(exchange.in_order([("A",)]))
    second = asyncio.create_task(exchange.in_order([("B",)]))
    await until(lambda: pool.made and len(pool.made[0].written) == 2)
    transport = pool.made[0]._writer.transport
    first.cancel()
    transport.arrive(b":1\r\n")  # before the connection is closed for it
    with pytest.raises(asyncio.CancelledError):
        await first
    await until(lambda: transport.aborted)
    transport.arrive(None)
    with pytest.raises(rex.ConnectionError):
        await second
    assert len(exchange._idle) == 1
    assert exchange._in_use == set()


async def test_older_clients_want_the_name_of_a_command():
    pool = Pool([[b":1\r\n"]])

    async def get_connection(command_name, *keys, **options):
        return Connection(pool)

    pool.get_connection = get_connection
    assert await DirectExchange(SimpleNamespace(connection_pool=pool))([("A",)]) == [1]


def test_a_client_of_another_class_does_it_its_own_way():
    class Mine(aioredis.Redis):
        pass

    assert isinstance(exchange_of(Mine()), PipelinedExchange)
    assert isinstance(exchange_of(aioredis.Redis()), DirectExchange)


def bounded(most, *answers, **options):
    pool = Pool(answers, **options)
    return DirectExchange(SimpleNamespace(connection_pool=pool), most), pool


async def test_of_a_few_connections_others_wait_for_one_in_their_turn():
    exchange, pool = bounded(2)
    running = [asyncio.create_task(exchange([("ECHO", n)])) for n in range(5)]
    await until(lambda: len(pool.made) == 2 and all(connection.written for connection in pool.made))
    order = []
    for n, task in enumerate(running):
        task.add_done_callback(lambda _, n=n: order.append(n))
        pool.made[n % 2]._writer.transport.arrive(b":%d\r\n" % n)
        assert await task == [n]
    assert order == [0, 1, 2, 3, 4]
    assert len(pool.made) == pool.checked_out == 2


async def test_without_a_free_connection_in_time_nothing_was_sent():
    exchange, pool = bounded(1, timeout=0.02)
    exchange._timeout = None
    running = asyncio.create_task(exchange([("A",)]))
    await until(lambda: pool.made and pool.made[0].written)
    exchange._timeout = 0.01
    with pytest.raises(CrowdedError, match="none of 1 connections"):
        await exchange([("B",)])
    pool.made[0]._writer.transport.arrive(b":1\r\n")
    assert await running == [1]
    pool.answers = [[b":2\r\n"]]
    assert await exchange([("C",)]) == [2]


async def test_a_connection_that_could_not_be_made_leaves_its_place_to_others():
    exchange, pool = bounded(1, [b":1\r\n"])
    get, failing = exchange._get, [rex.ConnectionError("refused"), asyncio.CancelledError()]

    async def fails():
        if failing:
            raise failing.pop(0)
        return await get()

    exchange._get = fails
    with pytest.raises(rex.ConnectionError):
        await exchange([("A",)])
    with pytest.raises(asyncio.CancelledError):
        await exchange([("A",)])
    assert await exchange([("A",)]) == [1]
    assert len(pool.made) == 1


async def test_one_that_is_cut_off_or_fails_leaves_its_place_to_others():
    exchange, pool = bounded(1, [], [None], [b":3\r\n"])
    first = asyncio.create_task(exchange([("A",)]))
    await until(lambda: pool.made and pool.made[0].written)
    behind = asyncio.create_task(exchange([("B",)]))
    await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(rex.ConnectionError):
        await behind
    assert await exchange([("C",)]) == [3]
    assert len(pool.made) == 1


async def test_what_is_on_its_way_or_waits_is_told_of_the_end_and_nothing_is_sent_any_more():
    exchange, pool = bounded(1)
    sent = asyncio.create_task(exchange([("A",)]))
    await until(lambda: pool.made and pool.made[0].written)
    waiting = asyncio.create_task(exchange([("B",)]))
    await asyncio.sleep(0)
    exchange.close()
    errors = await asyncio.gather(sent, waiting, exchange([("C",)]), return_exceptions=True)
    assert [(type(error), error.was_sent) for error in errors] == [
        (ClosedConnectionError, True),
        (ClosedConnectionError, False),
        (ClosedConnectionError, False),
    ]
    assert pool.made[0].aborted
    assert len(pool.made[0].written) == 1


async def test_a_connection_that_is_made_too_late_is_closed():
    exchange, pool = bounded(1)
    get = exchange._get

    async def closed_meanwhile():
        exchange.close()
        return await get()

    exchange._get = closed_meanwhile
    with pytest.raises(ClosedConnectionError):
        await exchange([("A",)])
    assert pool.made[0].aborted
    assert pool.made[0].written == []


async def test_of_a_closed_event_loop_the_sockets_are_shut_down():
    exchange, pool = bounded(1, [b":1\r\n"])
    await exchange([("A",)])
    own, other = socket.socketpair()
    with own, other:
        pool.made[0]._writer.transport.get_extra_info = {"socket": own}.get
        exchange.abandon()
        assert other.recv(1) == b""
        exchange.abandon()  # to be told twice is no harm
    with pytest.raises(ClosedConnectionError):
        await exchange([("B",)])
