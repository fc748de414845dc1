"""Takes back the leases of workers that are gone. Every worker does it; the script makes it safe to do at once."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable

from queue_system.broker.aio import AsyncBroker
from queue_system.broker.commands import Commands
from queue_system.broker.messages import REAP_LIMIT, Delivery
from queue_system.errors import BrokerUnavailableError, QueueError
from queue_system.events import ClockCorrected, Reclaimed
from queue_system.hooks import Hooks


class Reaper:
    """Reaps at an interval.

    Args:
        broker: carries out the calls.
        commands: builds them.
        lease: seconds; also how long after an outage nothing is taken back.
        interval: seconds between reapings.
        max_crashes: so many workers may die over an operation before it is given up.
        retention: seconds for which what was given up is kept.
        on_quarantine: given each operation that is to be given up, leased to this worker.
        on_contact: told each time that Redis has answered.
        hooks: told what was taken back.
    """

    def __init__(
        self,
        broker: AsyncBroker,
        commands: Commands,
        *,
        lease: float,
        interval: float,
        max_crashes: int,
        retention: float,
        on_quarantine: Callable[[Delivery], None],
        on_contact: Callable[[], None] = lambda: None,
        hooks: Hooks,
    ) -> None:
        self._broker = broker
        self._make_call = functools.partial(
            commands.reap, max_crashes=max_crashes, interval=interval, lease=lease, retention=retention
        )
        self._failed_at: float | None = None
        self._interval = interval
        self._on_quarantine = on_quarantine
        self._on_contact = on_contact
        self._hooks = hooks

    async def run(self) -> None:
        """Reap until cancelled."""
        while True:
            try:
                reclaimed = await self.reap()
            except BrokerUnavailableError:
                reclaimed = 0  # told by the fetcher, which notices first; the next turn tries again
            if reclaimed < REAP_LIMIT:
                await asyncio.sleep(self._interval)

    def service_failed(self) -> None:
        """Redis has failed this worker: nothing is taken back before it has seen a whole lease of good service."""
        self._failed_at = time.monotonic()

    async def reap(self) -> int:
        """Take back what has expired, at most `REAP_LIMIT`; says how many that were."""
        good_for = None if self._failed_at is None else time.monotonic() - self._failed_at
        try:
            reaped = await self._broker.run(self._make_call(good_for=good_for))
        except QueueError:
            self.service_failed()
            raise
        self._on_contact()
        if reaped.corrected:
            self._hooks.on_event(ClockCorrected(reaped.corrected))
        failed: BaseException | None = None
        for delivery in reaped.quarantined:
            try:
                self._on_quarantine(delivery)
            except BaseException as error:  # noqa: BLE001  raised below: the others are leased to this worker, too
                failed = failed or error
        reclaimed = reaped.returned + len(reaped.quarantined)
        if reclaimed:
            self._hooks.on_event(Reclaimed(reaped.returned, len(reaped.quarantined)))
        if failed is not None:
            raise failed
        return reclaimed
