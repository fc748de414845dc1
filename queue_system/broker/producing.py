"""What an asynchronous producer has in one event loop: its broker, and who shares a round trip with whom."""

from __future__ import annotations

import asyncio
import contextvars
import copy
from typing import Final

from queue_system.broker.aio import AsyncBroker
from queue_system.broker.clients import check_prefix, check_server
from queue_system.broker.commands import Commands
from queue_system.broker.grouping import EnqueueGroups
from queue_system.broker.messages import Call
from queue_system.broker.resend import worth_retrying
from queue_system.broker.translate import ClosedConnectionError, translate
from queue_system.errors import QueueError
from queue_system.utils import retry_with_backoff

_CONFIRMED_GROUPS: Final = 1  # the next one's `WAIT` would only begin when that of the last has ended


class AsyncProducer:
    """For one event loop, in which it is made.

    Args:
        broker: of bounded connections.
        commands: of the queue system.
        address: of Redis, for errors.
        confirm: asks replicas to confirm what was sent before.
        tries: for the first look at the server.
        patience: seconds for which an operation waits for its group to be sent, at most.
    """

    def __init__(
        self,
        broker: AsyncBroker,
        commands: Commands,
        address: str,
        *,
        confirm: Call[int | QueueError],
        tries: int,
        patience: float,
    ) -> None:
        self.broker = broker
        self.primary = EnqueueGroups(broker, commands, address, patience=patience)
        self.durable = EnqueueGroups(
            broker, commands, address, patience=patience, confirm=confirm, most=_CONFIRMED_GROUPS
        )
        self.checked = False
        """Whether the server is new enough."""
        self._address = address
        self._prefix = commands.keys.prefix
        self._tries = tries
        self._checking: asyncio.Task[None] | None = None

    async def check(self) -> None:
        """Have a look at the server, one for all that ask meanwhile.

        Raises:
            BrokerUnavailableError: it cannot be reached.
            UnsupportedServerError: it is older than Redis 6.2.
        """
        checking = self._checking
        if checking is None or checking.done():
            loop = asyncio.get_running_loop()
            self._checking = checking = loop.create_task(self._check(), context=contextvars.Context())
        await asyncio.wait([checking])  # it goes on when one of those who wait is cancelled
        if checking.cancelled():  # as all tasks are at the end of their event loop
            raise translate(ClosedConnectionError(was_sent=False), self._address)
        error = checking.exception()
        if error is not None:
            raise copy.copy(error) from error.__cause__  # each caller its own

    async def close(self) -> None:
        """Close its connections. What is on its way, or waits, is told so."""
        self.primary.close()
        self.durable.close()
        await self.broker.close()

    def abandon(self) -> None:
        """Let go of its connections: their event loop is closed."""
        self.broker.abandon()

    @retry_with_backoff(attempts=lambda self: self._tries, retry_if=worth_retrying)
    async def _check(self) -> None:
        check_server(await self.broker.server_version(), self._address)
        check_prefix(self._prefix, self._address, is_cluster=self.broker.is_cluster)
        self.checked = True
