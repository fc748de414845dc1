"""The claim loop at its end: a flush leaves no outcome behind, not even one that is on its way."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from queue_system.broker.commands import Commands
from queue_system.events import (
    OperationInfo,
)
from queue_system.hooks import NO_HOOKS
from queue_system.keys import Keys
from queue_system.outcome import Success
from queue_system.runtime import fetch as fetch_module
from queue_system.runtime.fetch import Fetcher, Slots
from queue_system.runtime.finish import Outbox, Settlement
from queue_system.runtime.isolation import Isolation
from queue_system.utils import CircuitBreaker
from support import until

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
    settled: list[tuple[str, int]] = []
    commands, broker = Commands(Keys()), SlowBroker()
    outbox = Outbox(
        commands,
        NO_HOOKS,
        done_ttl=0.0,
        retention=60.0,
        on_settled=settled.extend,
        on_refused=lambda _: None,
    )
    fetcher = Fetcher(
        broker,
        broker,
        commands,
        outbox,
        free_slots=lambda: Slots(0, 0),
        on_claimed=lambda _: None,
        on_late=lambda _: None,
        isolation=Isolation(lambda _: None, patience=10.0),
        hooks=NO_HOOKS,
        breaker=CircuitBreaker("redis"),
        lease=10.0,
        retention=60.0,
    )
    outbox.put(Settlement(("id", 1), Success(None), INFO))
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
    assert settled == [("id", 1)]
    await turn


async def test_a_round_trip_that_would_bring_more_later_waits():
    fetcher, turns, waits = Fetcher.__new__(Fetcher), [], [True]
    fetcher._event, fetcher._turning_since = asyncio.Event(), None
    fetcher._holds_back = waits.pop

    async def turn():
        turns.append(len(waits))

    fetcher.turn = turn
    running = asyncio.create_task(fetcher.run())
    await until(lambda: not waits and not fetcher._event.is_set())
    assert turns == []
    waits.append(False)
    fetcher.notify()
    await until(lambda: turns)
    running.cancel()


@pytest.mark.parametrize(
    ("replies", "ahead"),
    [
        ([(0.0, 0.2, 100.1)], 99.9),  # as late as it can have been
        ([(0.0, 0.2, 100.1), (1.0, 1.5, 101.1)], 99.9),  # took longer to come: no reason to go back
        ([(0.0, 0.2, 100.1), (1.0, 1.01, 101.0)], 99.99),  # came sooner: it is known better
        ([(0.0, 0.2, 100.1), (1.0, 1.2, 41.1)], 40.1),  # set back
        ([(0.0, 0.2, 100.1), (1.0, 1.2, 161.1)], 159.9),  # set forward
    ],
)
def test_the_clock_of_redis_goes_back_only_when_it_was_set_back(monkeypatch, replies, ahead):
    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(fetch_module, "time", clock)
    fetcher = Fetcher.__new__(Fetcher)
    fetcher._offset = None
    for asked_at, clock.now, told in replies:
        fetcher._set_clock(told, asked_at)
    assert fetcher.server_time() - clock.now == pytest.approx(ahead, abs=0.0011)
