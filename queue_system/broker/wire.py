"""A connection of redis-py's for asyncio, taken over once it is made, to exchange bytes for replies with little ado.

How a connection is made (TLS, user, database) and which error a reply is stay redis-py's. What its streams, time limits
and tasks cost for each command is saved: of 170 us for two commands at once, 140.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

import hiredis
import redis.exceptions as rex

_INCOMPLETE: Final = object()
_PUSH: Final[tuple[type, ...]] = (hiredis.PushNotification,) if hasattr(hiredis, "PushNotification") else ()


class Wire(asyncio.Protocol):
    """One exchange at a time.

    Args:
        connection: of a pool of redis-py's, connected.
    """

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.closed = False
        self._loop = asyncio.get_running_loop()
        self._reader: Any = hiredis.Reader(
            protocolError=rex.InvalidResponse,
            replyError=connection._parser.parse_error,  # noqa: SLF001  the class of an error is redis-py's affair
            notEnoughData=_INCOMPLETE,
        )
        self._waiter: asyncio.Future[None] | None = None
        self._missing = 0
        self._replies: list[Any] = []
        self._transport: Any = connection._writer.transport  # noqa: SLF001  redis-py gives it to nobody
        self._former: asyncio.BaseProtocol = self._transport.get_protocol()
        self._transport.set_protocol(self)

    async def exchange(self, packed: bytes, count: int, timeout: float | None) -> list[Any]:
        """Send commands and wait for so many replies. An error of a command is its reply.

        Raises:
            redis.TimeoutError: they were not all there after `timeout` seconds.
            redis.ConnectionError: the connection is closed.
        """
        if self.closed:
            raise rex.ConnectionError("Connection closed by server.")
        self._waiter = waiter = self._loop.create_future()
        self._missing, self._replies = count, []
        timer = None if timeout is None else self._loop.call_later(timeout, self._fail, _late())
        try:
            self._transport.write(packed)
            await waiter
        finally:
            self._waiter = None
            if timer is not None:
                timer.cancel()
        return self._replies

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
        self._fail(exc or rex.ConnectionError("Connection closed by server."))
        self._former.connection_lost(exc)  # whoever waits for the end of its stream

    def _take(self, reply: Any) -> None:
        if isinstance(reply, rex.ConnectionError):  # such as LOADING: nothing that comes after it is of use
            self._fail(reply)
            return
        self._replies.append(reply)
        self._missing -= 1
        if self._missing == 0 and self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _fail(self, error: Exception) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(error)


def _late() -> rex.TimeoutError:
    return rex.TimeoutError("Timeout reading from socket")
