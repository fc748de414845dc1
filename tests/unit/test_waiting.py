"""The claim behind the blocking read: its slots are kept for it, and nothing that it brings is left behind."""

import asyncio
import time
from types import SimpleNamespace

import pytest
from fakes import Recorder

from queue_system.broker.commands import Commands
from queue_system.broker.messages import Claimed, Delivery
from queue_system.errors import BrokerReplyError, BrokerUnavailableError
from queue_system.events import BrokerCall, BrokerError, OperationInfo
from queue_system.hooks import NO_HOOKS
from queue_system.keys import Keys
from queue_system.outcome import ErrorInfo, Retry, Success
from queue_system.runtime import fetch as fetch_module
from queue_system.runtime.contact import Contact
from queue_system.runtime.fetch import Fetcher
from queue_system.runtime.finish import Outbox, Settlement
from queue_system.runtime.isolation import Isolation
from queue_system.runtime.loops import SupervisedLoop
from queue_system.runtime.waiting import Slots
from queue_system.utils import CircuitBreaker
from support import until

INFO = OperationInfo("a", "mail", "high", "work", "operation", is_async=True, attempt=1, headers={})
NO_ERROR = ErrorInfo("", "")
LIST = "q:high:mail"


def claimed(*names, due=None):
    deliveries = [Delivery(name, LIST, 1, 1, 0, 0, 0, 1.0, 1.0, 1.0, 1.0, "", b"") for name in names]
    return Claimed(100.0, deliveries, due, False, False, {LIST: "a"})  # noqa: FBT003  as the script says it


class Redis:
    """Both brokers of a fetcher: a blocking read ends with the next of `woken`; turns get what `turns` says."""

    keeps_order = True

    def __init__(self):
        self.woken = asyncio.Queue()
        self.turns = [claimed()]
        self.blocked_with, self.asked, self.rung = [], [], 0
        self.on_ring = self.ring

    def ring(self):
        self.woken.put_nowait(claimed())

    async def begin_after(self, wait, call):
        assert wait.name == "BZPOPMIN"
        self.blocked_with.append(call.args[1:3])
        return asyncio.ensure_future(self.woken.get())

    def read_after(self, _, pending):
        reply = pending.result()
        if isinstance(reply, BrokerUnavailableError):
            raise reply
        return reply if isinstance(reply, tuple) else (None, reply)

    async def run_many(self, calls):
        self.asked += [call.name for call in calls]
        return [await self.reply_to(call) for call in calls]

    async def reply_to(self, call):
        if call.name == "ring":
            return await self.run(call)
        if call.name == "claim":
            return self.turns.pop(0) if self.turns else claimed()
        return True

    async def run(self, call):
        assert call.name == "ring"
        self.rung += 1
        self.on_ring()


class Rig:
    """A fetcher with three slots, running."""

    def __init__(self):
        self.redis, self.commands = Redis(), Commands(Keys("q:"))
        self.slots = Slots(3, 0)
        self.taken, self.late = [], []
        outbox = Outbox(
            self.commands, NO_HOOKS, done_ttl=0, retention=60, on_settled=lambda _: None, on_refused=lambda _: None
        )
        self.fetcher = Fetcher(
            self.redis,
            self.redis,
            self.commands,
            outbox,
            free_slots=lambda: self.slots,
            on_claimed=lambda found: self.taken.extend(delivery.operation_id for delivery, _ in found),
            on_late=lambda found: self.late.extend(delivery.operation_id for delivery in found),
            isolation=Isolation(lambda _: None, patience=10.0),
            hooks=NO_HOOKS,
            contact=Contact(CircuitBreaker("redis")),
            lease=10.0,
            retention=60.0,
        )
        self.tasks = [asyncio.create_task(self.fetcher.run()), asyncio.create_task(self.fetcher.wait_for_work())]

    async def blocked(self, times=1):
        await until(lambda: len(self.redis.blocked_with) == times and self.fetcher._blocking.slots is not None)


@pytest.fixture
async def rig():
    made = Rig()
    await made.blocked()
    yield made
    made.redis.on_ring = made.redis.ring
    for task in made.tasks:
        task.cancel()
    await asyncio.gather(*made.tasks, return_exceptions=True)


@pytest.mark.parametrize(("free", "asked"), [(Slots(3, 0), [1, 0]), (Slots(0, 9), [0, 1]), (Slots(2, 2), [1, 1])])
async def test_an_idle_worker_blocks_with_a_claim_for_one_of_each_kind(rig, free, asked):
    rig.slots = free
    rig.redis.woken.put_nowait(claimed())
    await rig.blocked(2)
    assert rig.redis.blocked_with[-1] == asked


async def test_what_the_claim_brings_is_taken_and_it_blocks_again(rig):
    rig.redis.woken.put_nowait(claimed("a", "b"))
    await rig.blocked(2)
    assert rig.taken == ["a", "b"]


async def test_whoever_processes_it_goes_on_before_the_next_read_is_sent(rig):
    woken = asyncio.get_running_loop().create_future()
    rig.fetcher._on_claimed = lambda _: woken.set_result(None)
    rig.redis.woken.put_nowait(claimed("a"))
    await woken
    assert len(rig.redis.blocked_with) == 1
    await rig.blocked(2)


async def test_meanwhile_turns_ask_for_the_other_slots(rig):
    before = len(rig.redis.asked)
    rig.fetcher._look_again()
    await until(lambda: len(rig.redis.asked) > before)
    assert rig.redis.asked[before:] == ["claim"]
    assert rig.fetcher._free() == Slots(2, 0)
    assert rig.redis.rung == 0


async def test_what_is_due_wakes_the_blocking_read_when_there_is_no_other_slot(rig):
    rig.slots = Slots(1, 0)
    rig.redis.on_ring = lambda: rig.redis.woken.put_nowait(claimed("due"))
    rig.fetcher._look_again()
    await rig.blocked(2)
    assert (rig.taken, rig.redis.rung) == (["due"], 1)


async def test_so_does_what_will_be_due_and_nothing_else(rig):
    rig.slots = Slots(1, 0)
    rig.fetcher._outbox.put(Settlement(("a", 1), Success(None), INFO))
    await rig.fetcher.turn()
    assert rig.redis.rung == 0
    rig.fetcher._outbox.put(Settlement(("b", 1), Retry(0.5, "error", NO_ERROR), INFO))
    await rig.fetcher.turn()
    assert rig.redis.rung == 1


async def test_a_stop_waits_for_the_claim_and_takes_what_it_brings(rig):
    rig.redis.on_ring = lambda: rig.redis.woken.put_nowait(claimed("last"))
    await rig.fetcher.stop_claiming()
    assert (rig.taken, rig.redis.rung) == (["last"], 1)
    rig.fetcher._may_wait.set()
    await asyncio.sleep(0)
    assert len(rig.redis.blocked_with) == 1


async def test_a_stop_waits_for_the_claim_also_when_redis_refuses_to_end_it(rig):
    told = []
    rig.fetcher._blocking._hooks = SimpleNamespace(on_event=told.append)

    def refuse():
        rig.redis.woken.put_nowait(claimed("last"))  # it ends by itself
        raise BrokerReplyError("NOPERM")

    rig.redis.on_ring = refuse
    await rig.fetcher.stop_claiming()
    assert rig.taken == ["last"]
    assert told == [BrokerError("ring", "BrokerReplyError")]


async def test_a_blocking_read_that_listens_for_too_little_is_ended(rig):
    rig.slots = Slots(0, 3)
    rig.redis.woken.put_nowait(claimed())
    await rig.blocked(2)
    rig.slots = Slots(0, 3)
    rig.fetcher._look_again()
    await until(lambda: rig.redis.asked[-1] == "claim" and rig.fetcher.is_free)
    assert rig.redis.rung == 0
    rig.slots = Slots(2, 3)  # an async operation has ended
    rig.fetcher._look_again()
    await rig.blocked(3)
    assert rig.redis.rung == 1
    assert rig.redis.blocked_with[1:] == [[0, 1], [1, 1]]


async def test_a_stop_does_not_wait_for_a_redis_that_is_away(rig):
    def away():
        raise BrokerUnavailableError("away", kind="connection")

    rig.redis.on_ring = away
    async with asyncio.timeout(10):
        await rig.fetcher.stop_claiming()
    assert rig.redis.rung == 1


async def test_after_a_failure_a_turn_looks_and_the_slots_are_free(rig, monkeypatch):
    monkeypatch.setattr(fetch_module, "FUTILE_PAUSE", 0.0)
    before = len(rig.redis.asked)
    rig.redis.turns = [claimed("found")]
    rig.redis.woken.put_nowait(BrokerUnavailableError("cut", kind="connection"))
    await rig.blocked(2)
    assert rig.redis.asked[before:] == ["claim"]
    assert rig.taken == ["found"]


async def test_a_server_that_lacks_the_script_is_given_it_by_a_turn(rig):
    before = len(rig.redis.asked)
    rig.redis.woken.put_nowait(None)
    await rig.blocked(2)
    assert rig.redis.asked[before:] == ["claim"]


async def test_cancelled_it_still_waits_for_the_claim_and_takes_what_it_brings(rig):
    """As when the event loop is torn down: each task is cancelled, and a stop follows that gives everything back."""
    rig.redis.on_ring = lambda: rig.redis.woken.put_nowait(claimed("last"))
    rig.tasks[1].cancel()
    with pytest.raises(asyncio.CancelledError):
        await rig.tasks[1]
    assert (rig.taken, rig.redis.rung) == (["last"], 1)


@pytest.mark.parametrize(("ago", "late"), [(4.5, False), (6.0, True)])
async def test_what_was_claimed_while_this_process_was_stopped_is_not_run(rig, monkeypatch, ago, late):
    monkeypatch.setattr(fetch_module, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + ago))
    rig.redis.woken.put_nowait(claimed("a"))  # with a lease of 10 s
    await until(lambda: len(rig.redis.blocked_with) == 2)
    assert (rig.taken, rig.late) == (([], ["a"]) if late else (["a"], []))


async def test_a_blocking_read_that_is_not_back_in_time_stands_still(rig, monkeypatch):
    assert rig.fetcher.turning_for == 0.0
    monkeypatch.setattr(fetch_module, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + 30))
    assert 27 < rig.fetcher.turning_for < 29


async def test_a_blocking_read_that_is_refused_is_told_and_what_was_claimed_is_taken(rig, monkeypatch):
    monkeypatch.setattr(fetch_module, "FUTILE_PAUSE", 0.0)
    before, hooks = len(rig.redis.asked), Recorder()
    rig.fetcher._hooks = hooks
    rig.redis.woken.put_nowait((BrokerReplyError("WRONGTYPE"), claimed("a")))
    await rig.blocked(2)
    assert rig.taken == ["a"]
    assert hooks.events == [BrokerError("wait", "refused", "WRONGTYPE"), *hooks.of(BrokerCall)]
    assert rig.redis.asked[before:] == ["claim"]


@pytest.mark.parametrize(
    "error",
    [BrokerReplyError("NOPERM"), asyncio.CancelledError(), SystemExit(), StopIteration(), LookupError()],
    ids=repr,
)
async def test_whatever_ends_a_blocking_read_a_turn_looks_again(rig, monkeypatch, error):
    def read_after(*_):
        raise error

    monkeypatch.setattr(fetch_module, "FUTILE_PAUSE", 0.0)
    loop = SupervisedLoop("wait", rig.fetcher.wait_for_work, lambda *_: None)
    rig.redis.on_ring = lambda: rig.redis.woken.put_nowait(claimed())
    rig.tasks[1].cancel()
    await asyncio.wait([rig.tasks[1]])
    rig.fetcher._look_again()
    loop.start()
    await rig.blocked(2)
    before, usual = len(rig.redis.asked), rig.redis.read_after
    monkeypatch.setattr(rig.redis, "read_after", read_after)
    rig.redis.turns = [claimed("found")]
    rig.redis.woken.put_nowait(claimed())
    await until(lambda: len(rig.redis.asked) > before)
    monkeypatch.setattr(rig.redis, "read_after", usual)
    await rig.blocked(3)
    assert rig.taken == ["found"]
    await loop.stop()


async def test_what_comes_while_a_suspect_runs_alone_is_given_back(rig):
    rig.slots = Slots(0, 0)  # as when the worker is closed for it
    rig.redis.woken.put_nowait(claimed("innocent"))
    await until(lambda: rig.late)
    assert (rig.taken, rig.late) == ([], ["innocent"])
    rig.slots = Slots(3, 0)
    rig.fetcher.notify()
    await rig.blocked(2)
    assert rig.redis.asked[-1] == "claim"  # it is there again
