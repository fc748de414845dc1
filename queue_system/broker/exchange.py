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
from queue_system.broker.wire import Wire

Exchange: TypeAlias = Callable[[Sequence[Command]], Awaitable[list[Any]]]
"""Gives one reply for each command, in one round trip on one connection. An error of a command is its reply.

Raises:
    redis.RedisError, OSError: the exchange failed as a whole.
"""


def exchange_of(client: aioredis.Redis) -> Exchange:
    """How to exchange with this client: directly, unless it is of a class of its own, which may do as it likes."""
    return DirectExchange(client) if type(client) is aioredis.Redis else PipelinedExchange(client)


class PipelinedExchange:
    """See `Exchange`: by means of the client's own methods."""

    def __init__(self, client: Any) -> None:
        self._client = client

    async def __call__(self, commands: Sequence[Command]) -> list[Any]:
        """See `Exchange`."""
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

    Takes over the client's limit of time: it is that of an exchange as a whole, and of the making of a connection.
    """

    def __init__(self, client: aioredis.Redis) -> None:
        self._pool: Any = client.connection_pool
        self._timeout: float | None = self._pool.connection_kwargs.get("socket_timeout")
        self._pool.connection_kwargs["socket_timeout"] = None
        self._get: Callable[[], Awaitable[Any]] = getter_of(self._pool)
        self._idle: list[Wire] = []

    async def __call__(self, commands: Sequence[Command]) -> list[Any]:
        """See `Exchange`."""
        return await (await self.begin(commands))

    async def begin(self, commands: Sequence[Command]) -> asyncio.Future[list[Any]]:
        """Send commands; the future of their replies goes on when whoever awaits it, shielded, is cancelled."""
        packed = b"".join([hiredis.pack_command(command) for command in commands])
        wire = await self._wire()
        pending = wire.send(packed, len(commands), self._timeout)
        pending.add_done_callback(functools.partial(self._ended, wire))
        return pending

    def _ended(self, wire: Wire, pending: asyncio.Future[list[Any]]) -> None:
        if pending.cancelled() or pending.exception() is not None:
            wire.abort()
        self._idle.append(wire)

    async def _wire(self) -> Wire:
        """A connection that is nobody's else now."""
        while self._idle:
            wire = self._idle.pop()
            if not wire.closed:
                return wire
            await wire.connection.disconnect(nowait=True)  # redis-py connects it anew when it is needed
            await self._pool.release(wire.connection)
        try:
            async with asyncio.timeout(self._timeout):
                return Wire(await self._get())
        except TimeoutError:
            raise rex.TimeoutError("Timeout connecting to server") from None
