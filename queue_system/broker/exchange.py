"""Exchanges commands for replies in one round trip, for asyncio."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeAlias

import hiredis
import redis.asyncio as aioredis
import redis.exceptions as rex

from queue_system.broker.exchange_sync import Command, getter_of
from queue_system.broker.places import CrowdedError
from queue_system.broker.translate import ClosedConnectionError, is_misplaced
from queue_system.broker.wire import Wire

Exchange: TypeAlias = Callable[[Sequence[Command]], Awaitable[list[Any]]]
"""Gives one reply for each command, in one round trip on one connection. An error of a command is its reply.

Raises:
    redis.RedisError, OSError: the exchange failed as a whole.
"""


def exchange_of(client: aioredis.Redis, most: int | None = None) -> Exchange:
    """How to exchange with this client: directly, unless it is of a class of its own, which may do as it likes.

    Args:
        client: of redis-py.
        most: see `DirectExchange`.
    """
    return DirectExchange(client, most) if type(client) is aioredis.Redis else PipelinedExchange(client)


class PipelinedExchange:
    """See `Exchange`: by means of the client's own methods."""

    def __init__(self, client: Any) -> None:
        self._client = client

    async def __call__(self, commands: Sequence[Command]) -> list[Any]:
        """See `Exchange`."""
        replies = await self._replies(commands)
        if is_misplaced(replies):  # which of its connections has said so it does not tell
            await self._client.connection_pool.disconnect(inuse_connections=False)
        return replies

    async def _replies(self, commands: Sequence[Command]) -> list[Any]:
        if len(commands) == 1:
            try:
                return [await self._client.execute_command(*commands[0])]
            except rex.ResponseError as error:
                return [error]
        pipeline = self._client.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)
        replies: list[Any] = await pipeline.execute(raise_on_error=False)
        return replies


class DirectExchange:
    """See `Exchange`: on connections that are kept. For one event loop.

    A server that is not, or no longer, the right one says so on one of them. All are dropped then, each as soon as no
    reply is to come: not each of them has to fail once.

    Takes over the client's limit of time: it is that of an exchange as a whole, of the making of a connection, and of
    the wait for one that is free.

    Args:
        client: whose pool the connections come from.
        most: connections at once; whoever comes then waits for its turn. None for as many as there are exchanges.
    """

    def __init__(self, client: aioredis.Redis, most: int | None = None) -> None:
        self._pool: Any = client.connection_pool
        self._most = most
        self._places = None if most is None else asyncio.Semaphore(most)
        self._closed = False
        self._timeout: float | None = self._pool.connection_kwargs.get("socket_timeout")
        self._pool.connection_kwargs["socket_timeout"] = None
        self._get: Callable[[], Awaitable[Any]] = getter_of(self._pool)
        self._idle: list[Wire] = []
        self._in_use: set[Wire] = set()
        self._in_order: Wire | None = None  # the one with exchanges whose order counts, as long as there are such
        self._ordering = asyncio.Lock()

    async def __call__(self, commands: Sequence[Command]) -> list[Any]:
        """See `Exchange`."""
        return await (await self.begin(commands))

    async def in_order(self, commands: Sequence[Command]) -> list[Any]:
        """As others, but Redis carries them out, and their replies come, in the order in which these were called."""
        packed = _packed(commands)
        async with self._ordering:  # no two connections, while the first is being made
            wire = self._in_order
            if wire is None or wire.closed:
                self._in_order = wire = await self._wire()
            pending = self._send(wire, packed, len(commands))
        return await pending

    async def begin(self, commands: Sequence[Command]) -> asyncio.Future[list[Any]]:
        """Send commands; the future of their replies goes on when whoever awaits it, shielded, is cancelled."""
        packed = _packed(commands)
        return self._send(await self._wire(), packed, len(commands))

    def _send(self, wire: Wire, packed: bytes, count: int) -> asyncio.Future[list[Any]]:
        pending = wire.send(packed, count, self._timeout)
        pending.add_done_callback(functools.partial(self._ended, wire))
        return pending

    def _ended(self, wire: Wire, pending: asyncio.Future[list[Any]]) -> None:
        if pending.cancelled() or pending.exception() is not None:
            wire.abort()
        elif is_misplaced(pending.result()):
            self._outdate()
        if wire.outdated and not wire.busy:
            wire.abort()
        if wire in self._in_use and (wire.closed or not wire.busy):
            self._in_use.discard(wire)
            self._idle.append(wire)
            if self._places is not None:
                self._places.release()
            if wire is self._in_order:
                self._in_order = None

    def close(self) -> None:
        """Close all connections, for good: what is on its way is told so, and nothing is sent any more."""
        self._closed = True
        for wire in [*self._in_use, *self._idle]:
            wire.fail(ClosedConnectionError(was_sent=True))
            wire.abort()

    def abandon(self) -> None:
        """The event loop is closed: let the server know that nobody is there, as far as that can be done without it."""
        self._closed = True
        for wire in [*self._in_use, *self._idle]:
            wire.shut_down()

    def _outdate(self) -> None:
        for wire in self._in_use:
            wire.outdated = True
        for wire in self._idle:
            wire.abort()

    async def _wire(self) -> Wire:
        """A connection that is nobody else's now."""
        if self._places is None:
            wire = await self._unused()
        else:
            await self._place(self._places)
            try:
                wire = await self._unused()
            except BaseException:
                self._places.release()
                raise
        self._in_use.add(wire)
        return wire

    async def _place(self, places: asyncio.Semaphore) -> None:
        if places.locked():
            try:
                async with asyncio.timeout(self._timeout):
                    await places.acquire()
            except TimeoutError:
                raise CrowdedError(self._most or 0, self._timeout) from None
        else:
            await places.acquire()  # at once

    async def _unused(self) -> Wire:
        self._check_open()
        while self._idle:
            wire = self._idle.pop()
            if not wire.closed:
                return wire
            await wire.connection.disconnect(nowait=True)  # redis-py connects it anew when it is needed
            await self._pool.release(wire.connection)
        try:
            async with asyncio.timeout(self._timeout):
                wire = Wire(await self._get())
        except TimeoutError:
            raise rex.TimeoutError("Timeout connecting to server") from None
        if self._closed:  # while it was made
            wire.abort()
            self._check_open()
        return wire

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedConnectionError(was_sent=False)


def _packed(commands: Sequence[Command]) -> bytes:
    return b"".join([hiredis.pack_command(command) for command in commands])
