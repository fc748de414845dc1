"""Exchanges commands for replies in one round trip, without asyncio: the twin of `exchange`.

Most of what redis-py's own client does for a command (to check a connection out and in, to look at each argument, to
ask whether somebody traces it) costs more than to write and to read: 35 us of CPU of the 60. How a connection is made,
which error a reply is, and what to do about what the server pushes stay redis-py's, and its pool sees to each
connection again when it is used after `FRESH_FOR` seconds.
"""

from __future__ import annotations

import inspect
import os
import select
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, Protocol, TypeAlias

import hiredis
import redis
import redis.exceptions as rex

from queue_system.broker.messages import Meanwhile, nothing
from queue_system.broker.places import Places
from queue_system.broker.translate import is_misplaced

FRESH_FOR: Final = 1.0
"""Seconds after which redis-py's pool is to look at a connection, and do what it has put off, such as a new login."""

MOST_CONNECTIONS: Final = 32
"""Connections of one client at once. Threads share an interpreter: more of them were no faster."""

_READ_SIZE: Final = 16384
_PUSH: Final[tuple[type, ...]] = (hiredis.PushNotification,) if hasattr(hiredis, "PushNotification") else ()
_NO_REPLY: Final = (rex.ConnectionError, *_PUSH)

Command: TypeAlias = tuple[Any, ...]
_Exchanging: TypeAlias = Callable[[bytes, int, Meanwhile], list[Any]]


class Exchange(Protocol):
    """Gives one reply for each command, in one round trip on one connection. Thread-safe."""

    def __call__(self, commands: Sequence[Command], meanwhile: Meanwhile = nothing) -> list[Any]:
        """Send commands and read their replies. An error of a command is its reply.

        Whoever gets replies has had `meanwhile` called.

        Raises:
            redis.RedisError, OSError: the exchange failed as a whole.
        """
        ...

    def close(self) -> None:
        """Close all connections of the client. What is sent afterwards connects anew."""
        ...


def exchange_of(client: redis.Redis) -> Exchange:
    """How to exchange with this client: directly, unless it is of a class of its own, which may do as it likes."""
    return DirectExchange(client) if type(client) is redis.Redis else PipelinedExchange(client)


class PipelinedExchange:
    """See `Exchange`: by means of the client's own methods."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def __call__(self, commands: Sequence[Command], meanwhile: Meanwhile = nothing) -> list[Any]:
        """See `Exchange`."""
        meanwhile()  # the client sends and reads in one
        replies = self._replies(commands)
        if is_misplaced(replies):  # which of its connections has said so it does not tell
            self._client.connection_pool.disconnect(inuse_connections=False)
        return replies

    def _replies(self, commands: Sequence[Command]) -> list[Any]:
        if len(commands) == 1:
            try:
                return [self._client.execute_command(*commands[0])]
            except rex.ResponseError as error:
                return [error]
        pipeline = self._client.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)
        replies: list[Any] = pipeline.execute(raise_on_error=False)
        return replies

    def close(self) -> None:
        """See `Exchange`."""
        self._client.connection_pool.disconnect()


class DirectExchange:
    """See `Exchange`: on connections that are kept. When all are in use, others wait for their turn. Safe to fork.

    A server that is not, or no longer, the right one says so on one of them. All are dropped then, so that not each of
    them has to fail once.

    Args:
        client: whose pool the connections come from, and whose limit of time holds for the wait, too.
        most: connections at once, fewer if the client's pool allows fewer.
    """

    def __init__(self, client: redis.Redis, most: int = MOST_CONNECTIONS) -> None:
        self._pool: Any = client.connection_pool
        self._get = getter_of(self._pool)
        self._most = min(most, self._pool.max_connections)
        self._timeout: float | None = self._pool.connection_kwargs.get("socket_timeout")
        self._outdated = 0  # how often the server was not the right one
        self._begin()

    def __call__(self, commands: Sequence[Command], meanwhile: Meanwhile = nothing) -> list[Any]:
        """See `Exchange`."""
        packed = _packed(commands)
        kept = self._take()
        try:
            replies = kept.exchange(packed, len(commands), meanwhile)
        except BaseException:  # its next reply would be that of another command
            self._drop(kept)
            raise
        if is_misplaced(replies):
            self._outdated += 1
            self._drop_idle()
        if kept.made_at == self._outdated:
            self._places.put(kept)
        else:
            self._drop(kept)
        return replies

    def close(self) -> None:
        """See `Exchange`."""
        places = self._places.take_all()
        for kept in places:  # the parent's, too: its pool knows what to do with them after a fork
            if kept is not None:
                self._pool.release(kept.connection)
        if self._process == os.getpid():
            for _ in places:
                self._places.put(None)
        self._pool.disconnect()

    def _begin(self) -> None:
        self._places: Places[_Kept] = Places(self._most, self._timeout)
        self._process = os.getpid()

    def _take(self) -> _Kept:
        """A connection that is nobody else's now, and that was not closed meanwhile."""
        if self._process != os.getpid():  # forked: they are the parent's
            self._begin()
        kept = self._places.take()
        if kept is not None and kept.is_fresh():
            return kept
        made_at = self._outdated  # before it is made: what is found out meanwhile is true of it, too
        try:
            if kept is not None:
                self._pool.release(kept.connection)
            return _Kept(self._get(), made_at)
        except BaseException:
            self._places.put(None)
            raise

    def _drop_idle(self) -> None:
        for kept in self._places.take_all():
            if kept is None:
                self._places.put(None)
            else:
                self._drop(kept)

    def _drop(self, kept: _Kept) -> None:
        try:
            kept.connection.disconnect()  # redis-py connects it anew when it is needed
            self._pool.release(kept.connection)
        finally:
            self._places.put(None)


def _packed(commands: Sequence[Command]) -> bytes:
    """All of them in one piece: each piece would wake the server."""
    try:
        if len(commands) == 1:
            packed: bytes = hiredis.pack_command(commands[0])
            return packed
        return b"".join(map(hiredis.pack_command, commands))
    except TypeError as error:
        raise rex.DataError(str(error)) from error


class _Kept:
    """A connection that is checked out of the pool, and what tells whether it may be used without asking the pool."""

    __slots__ = ("_fresh_until", "_poll", "connection", "exchange", "made_at")

    def __init__(self, connection: Any, made_at: int = 0) -> None:
        self.connection = connection
        self.made_at = made_at
        wire = _wire_of(connection)
        self.exchange: _Exchanging = partial(_exchange_by_methods, connection) if wire is None else wire.exchange
        self._poll = _poll_of(connection)
        self._fresh_until = time.monotonic() + FRESH_FOR

    def is_fresh(self) -> bool:
        """Whether the pool has looked at it lately, and there is nothing to read: that may be its end."""
        return self._poll is not None and not self._poll(0) and time.monotonic() < self._fresh_until


def _wire_of(connection: Any) -> _Wire | None:
    """Its socket and reader; None where they are not found, and its methods have to do."""
    reader = getattr(getattr(connection, "_parser", None), "_reader", None)
    if isinstance(reader, hiredis.Reader) and getattr(connection, "_sock", None) is not None:
        return _Wire(connection)
    return None


def _exchange_by_methods(connection: Any, packed: bytes, count: int, meanwhile: Meanwhile) -> list[Any]:
    connection.send_packed_command((packed,), check_health=False)
    meanwhile()
    replies: list[Any] = []
    for _ in range(count):
        try:
            replies.append(connection.read_response())
        except rex.ResponseError as error:
            replies.append(error)
    return replies


class _Wire:
    """The socket of a connection, and the reader that redis-py has made for it.

    Args:
        connection: of redis-py's, connected. Its socket has a time limit of its own, which is Python's to watch, or
            that of gevent or eventlet: they know nothing of one that is set in the kernel.
    """

    __slots__ = ("_feed", "_gets", "_incomplete", "_pushed", "_receive", "_send")

    def __init__(self, connection: Any) -> None:
        sock, parser = connection._sock, connection._parser  # noqa: SLF001  redis-py gives them to nobody
        self._send, self._receive = sock.sendall, sock.recv
        reader = parser._reader  # noqa: SLF001  as above
        self._feed, self._gets = reader.feed, reader.gets
        # Before 5.3, redis-py has none for this reader.
        self._pushed: Callable[[Any], object] = getattr(parser, "handle_push_response", _passed_over)
        self._incomplete = reader.gets()  # which is what it says as long as it has no reply

    def exchange(self, packed: bytes, count: int, meanwhile: Meanwhile) -> list[Any]:
        """Send commands, do something else, and read so many replies. An error of a command is its reply.

        Raises:
            redis.TimeoutError: the server did not answer in time.
            redis.ConnectionError: the connection is lost, or the reply says that it is of no use.
        """
        replies: list[Any] = []
        try:
            self._send(packed)
            meanwhile()
            while len(replies) < count:
                data = self._receive(_READ_SIZE)
                if not data:
                    raise rex.ConnectionError("Connection closed by server.")
                self._feed(data)
                while (reply := self._gets()) is not self._incomplete:
                    if not isinstance(reply, _NO_REPLY):
                        replies.append(reply)
                    elif isinstance(reply, rex.ConnectionError):  # such as LOADING
                        raise reply
                    else:
                        self._pushed(reply)
        except TimeoutError as error:
            raise rex.TimeoutError("Timeout reading from socket") from error
        except OSError as error:
            raise rex.ConnectionError(f"Error while talking to the server: {error}") from error
        return replies


def _passed_over(push: Any) -> None:
    """What to do about a push of the server's where redis-py does nothing."""


def _poll_of(connection: Any) -> Callable[[int], list[Any]] | None:
    """Says what there is to read; None where that cannot be asked, as on Windows."""
    socket = getattr(connection, "_sock", None)
    if socket is None or not hasattr(select, "poll"):
        return None
    poll = select.poll()
    poll.register(socket, select.POLLIN)
    return poll.poll


def getter_of(pool: Any) -> Callable[[], Any]:
    """Checks a connection out of a pool of redis-py's, of either kind."""
    get: Callable[..., Any] = pool.get_connection
    if inspect.signature(get).parameters["command_name"].default is inspect.Parameter.empty:
        return lambda: get("")  # redis-py before 5.3
    return get
