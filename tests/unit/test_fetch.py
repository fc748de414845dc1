"""The claim loop: when it makes a round trip, for what, and that a flush leaves no outcome behind."""

from __future__ import annotations

import asyncio
from collections import deque
from types import SimpleNamespace

import pytest
from fakes import Recorder

from queue_system.broker.commands import Commands
from queue_system.broker.messages import Call, Claimed
from queue_system.errors import BrokerReplyError, BrokerUnavailableError
from queue_system.events import BrokerError, OperationInfo, WorkerTaskFailed
from queue_system.hooks import NO_HOOKS
from queue_system.keys import Keys
from queue_system.outcome import Success
from queue_system.runtime import fetch as fetch_module
from queue_system.runtime.contact import Contact
from queue_system.runtime.fetch import MAX_TURNS, Fetcher
from queue_system.runtime.finish import Outbox, Settlement
from queue_system.runtime.isolation import Isolation
from queue_system.runtime.waiting import Slots
from queue_system.utils import CircuitBreaker
from support import until

INFO = OperationInfo("id", "mail", "normal", "send", "operation", is_async=True, attempt=1, headers={})
NOTHING = Claimed(0.0, [], None, more_async=False, more_sync=False)


class SlowBroker:
    """Answers a round trip when it is let, the first one first: completions are applied, a claim brings nothing."""

    def __init__(self, *, keeps_order: bool = True) -> None:
        self.keeps_order = keeps_order
        self.sent: list[list[Call]] = []
        self._waiting: deque[tuple[list[Call], asyncio.Future]] = deque()

    async def run_many(self, calls):
        answer = asyncio.get_running_loop().create_future()
        self.sent.append(list(calls))
        self._waiting.append((calls, answer))
        return await answer

    def answer(self) -> None:
        calls, answer = self._waiting.popleft()
        answer.set_result([NOTHING if call.name == "claim" else [True] * ((len(call.args) - 3) // 3) for call in calls])

    def refuse(self) -> None:
        calls, answer = self._waiting.popleft()
        replies = [BrokerReplyError("NOPERM") if call.name == "claim" else [True] for call in calls]
        answer.set_result(replies)

    def fail(self, error: BaseException | None = None) -> None:
        self._waiting.popleft()[1].set_exception(error or BrokerUnavailableError("gone", kind="connection"))


class Rig:
    """A fetcher whose slots and outcomes the test decides about."""

    def __init__(self, broker: SlowBroker, *, enough: int = 2) -> None:
        self.broker = broker
        self.slots, self.holds_back = Slots(4, 0), False
        self.settled: list[tuple[str, int]] = []
        commands = Commands(Keys())
        self.outbox = Outbox(
            commands,
            NO_HOOKS,
            done_ttl=0.0,
            retention=60.0,
            on_settled=self.settled.extend,
            on_refused=lambda _: None,
        )
        self.fetcher = Fetcher(
            broker,
            broker,
            commands,
            self.outbox,
            free_slots=lambda: self.slots,
            may_hold_back=lambda: self.holds_back,
            enough=enough,
            on_claimed=lambda _: None,
            on_late=lambda _: None,
            isolation=Isolation(lambda _: None, patience=10.0),
            hooks=NO_HOOKS,
            contact=Contact(CircuitBreaker("redis")),
            lease=10.0,
            retention=60.0,
        )
        self._tasks: list[asyncio.Task] = []

    def run(self) -> None:
        """As the engine does: two tasks."""
        self._tasks = [asyncio.create_task(self.fetcher.run()) for _ in range(MAX_TURNS)]

    def put(self, *ids: str) -> None:
        for one in ids:
            self.outbox.put(Settlement((one, 1), Success(None), INFO))
            self.fetcher.notify()

    def sent(self) -> list[tuple[list[str], tuple[int, int] | None]]:
        """Of each round trip so far: whose outcomes it wrote, and for how many slots of either kind it claimed."""
        return [(written(calls), asked(calls)) for calls in self.broker.sent]

    async def end(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def written(calls) -> list[str]:
    return [call.args[i].decode() for call in calls if call.name == "complete" for i in range(3, len(call.args), 3)]


def asked(calls) -> tuple[int, int] | None:
    return next(((call.args[1], call.args[2]) for call in calls if call.name == "claim"), None)


async def settle() -> None:
    """Turns of the event loop: what could go on without the broker has gone on."""
    for _ in range(20):
        await asyncio.sleep(0)


@pytest.fixture
async def rig():
    rig = Rig(SlowBroker())
    yield rig
    await rig.end()


async def test_a_flush_waits_for_the_outcomes_that_are_on_their_way(rig):
    rig.slots = Slots(0, 0)
    rig.put("id")
    turn = asyncio.create_task(rig.fetcher.turn())
    await settle()
    assert len(rig.outbox) == 0
    flush = asyncio.create_task(rig.fetcher.flush(10.0))
    await settle()
    assert not flush.done()
    rig.broker.answer()
    async with asyncio.timeout(10):
        await flush
    assert rig.settled == [("id", 1)]
    await turn


async def test_a_flush_writes_what_waits_while_others_are_on_their_way(rig):
    rig.slots = Slots(0, 0)
    rig.put("a")
    turn = asyncio.create_task(rig.fetcher.turn())
    await settle()
    rig.put("b")
    flush = asyncio.create_task(rig.fetcher.flush(10.0))
    await settle()
    assert rig.sent() == [(["a"], None), (["b"], None)]
    rig.broker.answer()
    rig.broker.answer()
    async with asyncio.timeout(10):
        await flush
    await turn
    assert rig.settled == [("a", 1), ("b", 1)]


async def test_a_round_trip_that_would_bring_more_later_waits(rig):
    rig.holds_back = True
    rig.run()
    await settle()
    assert rig.sent() == []
    rig.holds_back = False
    rig.fetcher.notify()
    await settle()
    assert rig.sent() == [([], (4, 0))]


async def test_a_second_round_trip_begins_with_enough_outcomes_and_claims_what_is_left(rig):
    rig.slots = Slots(2, 0)
    rig.run()
    await settle()
    rig.slots = Slots(3, 1)  # two of the three are those of the first claim
    rig.put("a")
    await settle()
    assert rig.sent() == [([], (2, 0))], "one outcome is not enough"
    rig.put("b")
    await settle()
    assert rig.sent()[1:] == [(["a", "b"], (1, 1))]


async def test_there_is_no_third(rig):
    rig.run()
    await settle()
    rig.put("a", "b")
    await settle()
    rig.put("c", "d", "e")
    await settle()
    assert len(rig.sent()) == 2
    rig.broker.answer()
    await settle()
    assert rig.sent()[2:] == [(["c", "d", "e"], (4, 0))]


async def test_what_was_not_enough_goes_when_the_first_is_back(rig):
    rig.run()
    await settle()
    rig.put("a")
    await settle()
    rig.broker.answer()
    await settle()
    assert [outcomes for outcomes, _ in rig.sent()] == [[], ["a"]]


async def test_a_slot_that_became_free_meanwhile_is_not_forgotten(rig):
    rig.slots = Slots(0, 0)
    rig.put("a")
    rig.run()
    await settle()
    rig.slots = Slots(1, 0)
    rig.fetcher.notify()
    await settle()
    assert rig.sent() == [(["a"], None)]
    rig.broker.answer()
    await settle()
    assert rig.sent()[1:] == [([], (1, 0))]


async def test_nothing_is_claimed_beside_a_claim_that_may_bring_a_suspect(rig):
    rig.slots = Slots(4, 4, suspect=True)
    rig.run()
    await settle()
    rig.put("a", "b")
    await settle()
    assert rig.sent() == [([], (4, 4)), (["a", "b"], None)]


async def test_a_second_claim_takes_no_suspect(rig):
    rig.slots = Slots(2, 0)
    rig.run()
    await settle()
    rig.slots = Slots(4, 0, suspect=True)
    rig.put("a", "b")
    await settle()
    first, second = (calls[-1] for calls in rig.broker.sent)
    assert [first.args[6], second.args[6]] == [0, 0]


async def test_there_is_no_second_where_the_order_would_be_lost():
    rig = Rig(SlowBroker(keeps_order=False))
    rig.run()
    await settle()
    rig.put("a", "b", "c")
    await settle()
    assert len(rig.sent()) == 1
    await rig.end()


async def test_none_begins_while_redis_was_away_a_moment_ago(rig):
    rig.run()
    await settle()
    rig.put("a", "b")
    await settle()
    rig.broker.fail()
    await settle()
    rig.put("c", "d")
    rig.broker.answer()
    await settle()
    assert len(rig.sent()) == 2
    await until(lambda: len(rig.sent()) == 3)
    assert rig.sent()[2] == (["c", "d"], (4, 0))


async def test_a_stop_waits_for_both_claims(rig):
    rig.slots = Slots(2, 0)
    rig.run()
    await settle()
    rig.slots = Slots(4, 0)
    rig.put("a", "b")
    await settle()
    stop = asyncio.create_task(rig.fetcher.stop_claiming())
    for _ in range(2):
        await settle()
        assert not stop.done()
        rig.broker.answer()
    async with asyncio.timeout(10):
        await stop


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


async def test_a_refused_claim_is_told_and_made_again_and_its_outcomes_are_settled(rig):
    rig.slots = Slots(2, 0)
    rig.fetcher._hooks = hooks = Recorder()
    rig.fetcher.record.accept()
    rig.run()
    await settle()
    for _ in range(3):
        rig.broker.refuse()
        before = len(rig.sent())
        await until(lambda before=before: len(rig.sent()) > before)
    assert hooks.of(BrokerError) == [BrokerError("claim", "refused", "NOPERM")] * 3
    assert rig.fetcher.record.refusal == "NOPERM"
    rig.broker.answer()
    await settle()
    assert rig.fetcher.record.refusal == ""
    rig.put("a", "b")
    await settle()
    rig.broker.refuse()
    await settle()
    assert rig.settled == [("a", 1), ("b", 1)]


@pytest.mark.parametrize("error", [LookupError("ours"), BaseExceptionGroup("two", [SystemExit()]), None], ids=repr)
async def test_without_an_answer_outcomes_go_again_whatever_happened(rig, error):
    rig.put("a")
    turn = asyncio.create_task(rig.fetcher.turn())
    await settle()
    assert len(rig.outbox) == 0
    turn.cancel() if error is None else rig.broker.fail(error)
    await asyncio.wait([turn])
    assert turn.cancelled() if error is None else turn.exception() is error
    (again,) = rig.outbox.take()
    assert (again.key, again.again) == (("a", 1), True)
    assert rig.fetcher._wants(Slots(1, 0))


async def test_what_cannot_be_made_a_call_is_not_lost(rig):
    def calls(_):
        raise LookupError

    rig.put("a")
    rig.outbox.calls = calls
    with pytest.raises(LookupError):
        await rig.fetcher.turn()
    (again,) = rig.outbox.take()
    assert (again.key, again.again) == (("a", 1), False)


async def test_outcomes_that_cannot_be_settled_hinder_no_claim(rig):
    def fail(*_):
        raise LookupError("a listener")

    rig.put("a")
    rig.outbox.settle_all = fail
    turn = asyncio.create_task(rig.fetcher.turn())
    await settle()
    rig.broker.answer()
    with pytest.raises(LookupError):
        await turn
    assert rig.fetcher.record.accepted


async def test_an_error_of_ours_in_a_turn_is_on_record(rig):
    rig.run()
    await settle()
    rig.broker.fail(LookupError("ours"))
    await settle()
    assert rig.fetcher.record.refusal == "LookupError: ours"


async def test_a_flush_ends_in_time_whatever_hinders_it(rig):
    rig.slots = Slots(0, 0)
    rig.put("a")
    turn = asyncio.create_task(rig.fetcher.turn())
    await settle()
    async with asyncio.timeout(10):
        await rig.fetcher.flush(0.05)  # the turn does not end
    rig.broker.fail(LookupError("ours"))
    await asyncio.wait([turn])
    rig.fetcher._hooks = hooks = Recorder()
    flush = asyncio.create_task(rig.fetcher.flush(10.0))
    await settle()
    rig.broker.fail(LookupError("ours"))
    await until(lambda: len(rig.broker.sent) == 3)
    rig.broker.answer()
    await flush
    assert rig.settled == [("a", 1)]
    assert hooks.of(WorkerTaskFailed) == [WorkerTaskFailed("flush", "LookupError: ours")]
