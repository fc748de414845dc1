"""The blocking read of an idle worker, and the claim that Redis carries out as soon as it ends (adr/0011).

It claims one operation and not more because a worker that hangs by then would keep it until its lease runs out.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from queue_system.broker.aio import AsyncBroker
from queue_system.broker.commands import Commands
from queue_system.broker.messages import Call, Claimed
from queue_system.errors import BrokerUnavailableError, QueueError
from queue_system.events import BrokerError
from queue_system.hooks import Hooks

MAX_BLOCK: Final = 2.0
"""Seconds that a blocking read lasts at most: a marker can die with a connection, so every worker looks by itself."""

RING_INTERVAL: Final = 1.0
"""Seconds between two tries to end a blocking read."""


@dataclass(slots=True)
class Slots:
    """How many operations may be claimed now, and whether a suspect may be (see `isolation`)."""

    for_async: int
    for_sync: int
    suspect: bool = False

    def __bool__(self) -> bool:
        return self.for_async > 0 or self.for_sync > 0


class BlockingRead:
    """Blocks on the wake-up markers with a claim behind, again whenever it is told to; never twice at once.

    Args:
        broker: rings, to end it.
        waiter: another broker, whose connections may block for `MAX_BLOCK`.
        commands: builds the calls.
        hooks: told of errors.
        worker_id: to whom operations are leased.
        on_reply: given the claim's reply, and when the claim was sent; None when it was not carried out.
    """

    def __init__(
        self,
        broker: AsyncBroker,
        waiter: AsyncBroker,
        commands: Commands,
        hooks: Hooks,
        worker_id: str,
        on_reply: Callable[[Claimed | QueueError | None, float], None],
    ) -> None:
        self._broker = broker
        self._waiter = waiter
        self._commands = commands
        self._hooks = hooks
        self._worker_id = worker_id
        self._on_reply = on_reply
        self._back = asyncio.Event()
        self.slots: Slots | None = None
        """Those of its claim; None when none is on its way."""
        self.until: float | None = None
        """When it should be back, by `time.monotonic`."""

    async def run(self, slots: Slots, claim: Call[Claimed]) -> None:
        """Block until there is something to claim for these slots, and claim it.

        Raises:
            QueueError: the read failed.
        """
        wait = self._commands.wait(
            for_async=slots.for_async > 0, for_sync=slots.for_sync > 0, timeout=MAX_BLOCK, worker=self._worker_id
        )
        asked_at = time.monotonic()
        self.slots, self.until = slots, asked_at + MAX_BLOCK
        self._back.clear()
        taken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        try:
            pending = await self._waiter.begin_after(wait, claim)
        except BaseException:
            self._is_back()
            raise
        pending.add_done_callback(functools.partial(self._arrived, claim, asked_at, taken))
        try:
            await taken
        finally:  # cancelled, too: it would claim at any time
            await self._ring_until(pending)

    def ring(self) -> Call[Any]:
        """The call that ends it."""
        return self._commands.ring(self._worker_id)

    async def end(self) -> None:
        """End it, if it is on its way, and wait until it is back."""
        if self.slots is None:
            return
        back = asyncio.ensure_future(self._back.wait())
        try:
            await self._ring_until(back)
        finally:
            back.cancel()

    def _arrived(
        self, claim: Call[Claimed], asked_at: float, taken: asyncio.Future[None], pending: asyncio.Future[list[Any]]
    ) -> None:
        """It is back, and its claim with it, which is taken at once: the task that waits for it may have been
        cancelled, and would send its next read before a processor is called.
        """  # noqa: D205
        self._is_back()
        hindered: BaseException | None
        try:
            hindered, reply = self._waiter.read_after(claim, pending)
            self._on_reply(reply, asked_at)
        except BaseException as error:  # noqa: BLE001  it is for the task that waits
            hindered = error
        if taken.done():
            return
        if hindered is None:
            taken.set_result(None)
        else:  # a future does not take a StopIteration
            taken.set_exception(RuntimeError(repr(hindered)) if isinstance(hindered, StopIteration) else hindered)

    def _is_back(self) -> None:
        self.slots = self.until = None
        self._back.set()

    async def _ring_until(self, pending: asyncio.Future[Any]) -> None:
        while not pending.done():
            try:
                await self._broker.run(self.ring())
            except BrokerUnavailableError:
                return  # nothing can be claimed now either
            except Exception as error:  # noqa: BLE001  whatever it is: it ends by itself, after `MAX_BLOCK`
                self._hooks.on_event(BrokerError("ring", type(error).__name__))
            await asyncio.wait([pending], timeout=RING_INTERVAL)
