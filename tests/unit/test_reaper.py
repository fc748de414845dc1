"""What the reaper makes of its replies, with a broker in place of Redis."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from fakes import AsyncFakeBroker, Recorder

from queue_system.broker.commands import Commands
from queue_system.errors import BrokerReplyError, BrokerUnavailableError
from queue_system.events import ClockCorrected, Reclaimed
from queue_system.keys import Keys
from queue_system.runtime import reaper
from queue_system.runtime.reaper import Reaper


def quarantined(*names):
    return [value for name in names for value in (name.encode(), 0, 1, b"1", 0, 4, 0, 1000, 1000, 1000, b"", b"")]


class Rig:
    def __init__(self) -> None:
        self.hooks, self.given, self.contacts = Recorder(), [], 0
        self.reply = [2, 0, quarantined("a", "b", "c"), 0]
        self.broker = AsyncFakeBroker(lambda _: self.reply)
        self.reaper = Reaper(
            self.broker,
            Commands(Keys("q:")),
            lease=10.0,
            interval=2.0,
            max_crashes=3,
            retention=60.0,
            on_quarantine=lambda delivery: self.take(delivery.operation_id),
            on_contact=self.contact,
            hooks=self.hooks,
        )

    def take(self, operation_id: str) -> None:
        self.given.append(operation_id)

    def contact(self) -> None:
        self.contacts += 1


async def test_what_was_taken_back_is_told():
    rig = Rig()
    assert await rig.reaper.reap() == 5
    assert rig.given == ["a", "b", "c"]
    assert (rig.hooks.events, rig.contacts) == ([Reclaimed(2, 3)], 1)


@pytest.mark.parametrize("error", [LookupError("a"), SystemExit("a")], ids=repr)
async def test_one_that_cannot_be_given_up_hinders_no_other(error):
    rig = Rig()

    def take(operation_id):
        rig.given.append(operation_id)
        if operation_id == "a":
            raise error

    rig.take = take
    with pytest.raises(type(error), match=r"^a$"):
        await rig.reaper.reap()
    assert rig.given == ["a", "b", "c"]
    assert rig.hooks.events == [Reclaimed(2, 3)]


async def test_a_redis_that_is_away_is_no_contact():
    rig = Rig()

    def away(_):
        raise BrokerUnavailableError("away")

    rig.broker.answer = away
    with pytest.raises(BrokerUnavailableError):
        await rig.reaper.reap()
    assert rig.contacts == 0


async def test_it_sleeps_when_redis_is_away_and_goes_on():
    rig = Rig()

    def away(_):
        raise BrokerUnavailableError("away")

    rig.broker.answer = away
    task = asyncio.create_task(rig.reaper.run())
    await asyncio.sleep(0)
    assert not task.done()
    assert len(rig.broker.calls) == 1
    task.cancel()
    await asyncio.wait([task])


async def test_times_that_were_put_right_are_told():
    rig = Rig()
    rig.reply = [0, 1, [], 7]
    assert await rig.reaper.reap() == 0
    assert rig.hooks.events == [ClockCorrected(7)]


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass when the test says so."""
    now = SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(reaper, "time", SimpleNamespace(monotonic=lambda: now.seconds))
    return now


def good_for(rig) -> int:
    """What the last reaping said: milliseconds of good service, -1 for ever."""
    return rig.broker.calls[-1].args[6]


async def test_a_reaper_that_has_never_failed_says_so(clock):
    rig = Rig()
    await rig.reaper.reap()
    clock.seconds += 5
    await rig.reaper.reap()
    assert [call.args[6] for call in rig.broker.calls] == [-1, -1]


@pytest.mark.parametrize("error", [BrokerUnavailableError("away"), BrokerReplyError("WRONGTYPE")], ids=repr)
async def test_it_remembers_when_it_last_failed(clock, error):
    rig = Rig()
    answer = rig.broker.answer

    def fail(_):
        clock.seconds += 2  # it takes its time to fail
        raise error

    for _ in range(2):  # the second failure counts, not the first
        rig.broker.answer = fail
        with pytest.raises(type(error)):
            await rig.reaper.reap()
        clock.seconds += 1.5
    rig.broker.answer = answer
    await rig.reaper.reap()
    assert good_for(rig) == 1_500
    clock.seconds += 8.5
    await rig.reaper.reap()  # a success does not make it forget
    assert good_for(rig) == 10_000


async def test_a_failed_renewal_counts_as_well(clock):
    rig = Rig()
    rig.reaper.service_failed()
    clock.seconds += 0.25
    await rig.reaper.reap()
    assert good_for(rig) == 250
