"""The claim loop at its end: a flush leaves no outcome behind, not even one that is on its way."""

from __future__ import annotations

import asyncio

from queue_system.broker.commands import Commands
from queue_system.events import (
    OperationInfo,
)
from queue_system.hooks import NO_HOOKS
from queue_system.keys import Keys
from queue_system.outcome import Success
from queue_system.runtime.fetch import Fetcher, Slots
from queue_system.runtime.finish import Outbox, Settlement
from queue_system.runtime.isolation import Isolation
from queue_system.utils import CircuitBreaker

INFO = OperationInfo("id", "mail", "normal", "send", "operation", is_async=True, attempt=1, headers={})


class SlowBroker:
    """Answers when it is let."""

    def __init__(self) -> None:
        self.asked, self.let = asyncio.Event(), asyncio.Event()

    async def run_many(self, calls):
        self.asked.set()
        await self.let.wait()
        return [[True] for _ in calls]


async def test_a_flush_waits_for_the_outcomes_that_are_on_their_way():
    settled: list[str] = []
    commands, broker = Commands(Keys()), SlowBroker()
    outbox = Outbox(
        commands,
        NO_HOOKS,
        done_ttl=0.0,
        retention=60.0,
        on_settled=lambda operation_id, _: settled.append(operation_id),
        on_refused=lambda _: None,
    )
    fetcher = Fetcher(
        broker,
        broker,
        commands,
        outbox,
        free_slots=lambda: Slots(0, 0),
        on_claimed=lambda _: None,
        isolation=Isolation(lambda _: None, patience=10.0),
        hooks=NO_HOOKS,
        breaker=CircuitBreaker("redis"),
        lease=10.0,
        retention=60.0,
    )
    outbox.put(Settlement("id", 1, Success(None), INFO))
    turn = asyncio.create_task(fetcher.turn())
    await broker.asked.wait()
    assert len(outbox) == 0
    flush = asyncio.create_task(fetcher.flush(10.0))
    for _ in range(20):  # turns of the event loop: what could end without the broker would have ended
        await asyncio.sleep(0)
    assert not flush.done()
    broker.let.set()
    async with asyncio.timeout(10):
        await flush
    assert settled == ["id"]
    await turn
