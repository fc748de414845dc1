"""Exchanges commands for replies in one round trip, without asyncio: the twin of `exchange`.

Most of what redis-py's own client does for a command (to check a connection out and in, to look at each argument, to
ask whether somebody traces it) costs more than to write and to read: 25 us of CPU of the 60. How a connection is made
and read stays redis-py's, and its pool sees to each of them again when it is used after `FRESH_FOR` seconds.
"""

from __future__ import annotations

import inspect
import os
import select
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol, TypeAlias

import hiredis
import redis
from redis.exceptions import DataError, ResponseError

FRESH_FOR: Final = 1.0
"""Seconds after which redis-py's pool is to look at a connection, and do what it has put off, such as a new login."""

Command: TypeAlias = tuple[Any, ...]


class Exchange(Protocol):
    """Gives one reply for each command, in one round trip on one connection. Thread-safe."""

    def __call__(self, commands: Sequence[Command]) -> list[Any]:
        """Send commands and read their replies. An error of a command is its reply.

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

    def __call__(self, commands: Sequence[Command]) -> list[Any]:
        """See `Exchange`."""
        if len(commands) == 1:
            try:
                return [self._client.execute_command(*commands[0])]
            except ResponseError as error:
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
    """See `Exchange`: on connections that are kept, as many as there were exchanges at once. Safe to fork.

    No lock is needed: `list.pop` and `list.append` are atomic.
    """

    def __init__(self, client: redis.Redis) -> None:
        self._pool: Any = client.connection_pool
        self._get = _getter(self._pool)
        self._idle: list[_Kept] = []
        self._process = os.getpid()

    def __call__(self, commands: Sequence[Command]) -> list[Any]:
        """See `Exchange`."""
        packed = _packed(commands)
        kept = self._take()
        connection, replies = kept.connection, []
        try:
            connection.send_packed_command((packed,), check_health=False)
            for _ in commands:
                try:
                    replies.append(connection.read_response())
                except ResponseError as error:
                    replies.append(error)
        except BaseException:  # its next reply would be that of another command
            connection.disconnect()
            self._pool.release(connection)
            raise
        self._idle.append(kept)
        return replies

    def close(self) -> None:
        """See `Exchange`."""
        kept, self._idle = self._idle, []
        for each in kept:  # the parent's, too: its pool knows what to do with them after a fork
            self._pool.release(each.connection)
        self._pool.disconnect()

    def _take(self) -> _Kept:
        """A connection that is nobody else's now, and that was not closed meanwhile."""
        if self._process != os.getpid():  # forked: they are the parent's
            self._idle, self._process = [], os.getpid()
        try:
            kept = self._idle.pop()
        except IndexError:
            return _Kept(self._get())
        if kept.is_fresh():
            return kept
        self._pool.release(kept.connection)
        return _Kept(self._get())


def _packed(commands: Sequence[Command]) -> bytes:
    """All of them in one piece: each piece would wake the server."""
    try:
        return b"".join(map(hiredis.pack_command, commands))
    except TypeError as error:
        raise DataError(str(error)) from error


class _Kept:
    """A connection that is checked out of the pool, and what tells whether it may be used without asking the pool."""

    __slots__ = ("_fresh_until", "_poll", "connection")

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self._poll = _poll_of(connection)
        self._fresh_until = time.monotonic() + FRESH_FOR

    def is_fresh(self) -> bool:
        """Whether the pool has looked at it lately, and there is nothing to read: that may be its end."""
        return self._poll is not None and not self._poll(0) and time.monotonic() < self._fresh_until


def _poll_of(connection: Any) -> Callable[[int], list[Any]] | None:
    """Says what there is to read; None where that cannot be asked, as on Windows."""
    socket = getattr(connection, "_sock", None)
    if socket is None or not hasattr(select, "poll"):
        return None
    poll = select.poll()
    poll.register(socket, select.POLLIN)
    return poll.poll


def _getter(pool: Any) -> Callable[[], Any]:
    get: Callable[..., Any] = pool.get_connection
    if inspect.signature(get).parameters["command_name"].default is inspect.Parameter.empty:
        return lambda: get("")  # redis-py before 5.3
    return get
