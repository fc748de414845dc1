"""A connection of redis-py's for asyncio, taken over once it is made, to exchange bytes for replies with little ado.

How a connection is made (TLS, user, database) and which error a reply is stay redis-py's. What its streams, time limits
and tasks cost for each command is saved: of 170 us for two commands at once, 140.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import deque
from typing import Any, Final

import hiredis
import redis.exceptions as rex

from queue_system.eager import EagerFuture

_INCOMPLETE: Final = object()
_PUSH: Final[tuple[type, ...]] = (hiredis.PushNotification,) if hasattr(hiredis, "PushNotification") else ()


class _Exchange:
    """What is still to come of one, and by when."""

    __slots__ = ("missing", "pending", "replies", "too_late_at")

    def __init__(self, pending: EagerFuture[list[Any]], missing: int, too_late_at: float | None) -> None:
        self.pending = pending
        self.missing = missing
        self.too_late_at = too_late_at
        self.replies: list[Any] = []


class Wire(asyncio.Protocol):
    """One exchange after the other; the next one may be sent before the replies of the last are here.

    Args:
        connection: of a pool of redis-py's, connected.
    """

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.closed = False
        self.outdated = False  # it is to be closed once no reply is to come
        self._loop = asyncio.get_running_loop()
        self._reader: Any = hiredis.Reader(
            protocolError=rex.InvalidResponse,
            replyError=connection._parser.parse_error,  # noqa: SLF001  the class of an error is redis-py's affair
            notEnoughData=_INCOMPLETE,
        )
        self._exchanges: deque[_Exchange] = deque()  # whose replies are not all here, in their order
        self._timer: asyncio.TimerHandle | None = None  # one for many exchanges: it looks at the time of the first
        self._transport: Any = connection._writer.transport  # noqa: SLF001  redis-py gives it to nobody
        self._former: asyncio.BaseProtocol = self._transport.get_protocol()
        self._transport.set_protocol(self)

    @property
    def busy(self) -> bool:
        """Whether replies are still to come."""
        return bool(self._exchanges)

    def send(self, packed: bytes, count: int, timeout: float | None) -> asyncio.Future[list[Any]]:
        """Send commands.

        Returns:
            An eager future of so many replies, and no task, so that only who has it can cancel it. An error of a
            command is its reply. It raises `redis.TimeoutError` when they are not all there after `timeout` seconds,
            and `redis.ConnectionError` when the connection is closed, or an exchange before it has failed.
        """
        pending: EagerFuture[list[Any]] = EagerFuture(self._loop)
        too_late_at = None if timeout is None else self._loop.time() + timeout
        self._exchanges.append(_Exchange(pending, count, too_late_at))
        if self._timer is None:
            self._set_timer()
        self._transport.write(packed)
        return pending

    def fail(self, error: Exception) -> None:
        """Of all exchanges that are on their way. The connection is to be closed."""
        failed, self._exchanges = self._exchanges, deque()
        for exchange in failed:
            if not exchange.pending.done():
                exchange.pending.set_exception(error)

    def shut_down(self) -> None:
        """Close it as far as that can be done when its event loop is no more."""
        self.closed = True
        sock = self._transport.get_extra_info("socket")
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def abort(self) -> None:
        """Close at once: the next reply would be that of another command."""
        self.closed = True
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        self._reader.feed(data)
        try:
            while (reply := self._reader.gets()) is not _INCOMPLETE:
                if not isinstance(reply, _PUSH):
                    self._take(reply)
        except rex.InvalidResponse as error:
            self._fail(error)

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self.closed = True
        if self._timer is not None:
            self._timer.cancel()
        self._fail(exc or rex.ConnectionError("Connection closed by server."))
        self._former.connection_lost(exc)  # whoever waits for the end of its stream

    def _take(self, reply: Any) -> None:
        if isinstance(reply, rex.ConnectionError):  # such as LOADING: nothing that comes after it is of use
            self._fail(reply)
            return
        if not self._exchanges:
            return  # they have failed
        first = self._exchanges[0]
        first.replies.append(reply)
        first.missing -= 1
        if not first.missing:
            self._exchanges.popleft()
            if not first.pending.done():  # it may have been cancelled
                first.pending.set_result(first.replies)

    def _set_timer(self) -> None:
        at = self._exchanges[0].too_late_at
        self._timer = None if at is None else self._loop.call_at(at, self._look_at_the_time)

    def _look_at_the_time(self) -> None:
        self._timer = None
        at = self._exchanges[0].too_late_at if self._exchanges else None
        if at is None:
            return  # the next exchange sets it
        if self._loop.time() < at:
            self._set_timer()
        else:
            self._fail(rex.TimeoutError("Timeout reading from socket"))

    def _fail(self, error: Exception) -> None:
        """Of the first exchange, and of all behind it: what comes now may be any of their replies."""
        while self._exchanges:
            first = self._exchanges.popleft()
            if not first.pending.done():
                first.pending.set_exception(error)
            error = rex.ConnectionError(f"an exchange before this one has failed: {error}")
