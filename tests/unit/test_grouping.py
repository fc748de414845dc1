"""What is enqueued while others are on their way goes together, and each has its own answer, or its own error."""

import asyncio

import pytest

from queue_system.broker.commands import Commands
from queue_system.broker.grouping import ENOUGH, MOST_BYTES, EnqueueGroups
from queue_system.broker.messages import MAX_ENQUEUE, Accepted, NewOperation
from queue_system.errors import BrokerReplyError, BrokerUnavailableError, ClosedError
from queue_system.keys import Keys
from support import until


class Broker:
    """Holds each group until it is let go."""

    def __init__(self):
        self.groups, self.held = [], []

    async def run_each(self, calls):
        self.groups.append(calls)
        self.held.append(asyncio.get_running_loop().create_future())
        answer = await self.held[-1]
        if isinstance(answer, BaseException):
            raise answer
        return [call.parse([b"q"] * count(call)) for call in calls if not call.plain] if answer is None else answer

    def let_go(self, number, answer=None):
        self.held[number].set_result(answer)


def count(call):
    return 1 if call.name == "enqueue_one" else (len(call.args) - 5) // 5


def shape(calls):
    """The name, queue and number of operations of each call."""
    return [(call.name, call.args[1] if call.keys else None, count(call) if call.keys else 0) for call in calls]


class Rig:
    def __init__(self, **options):
        self.broker, self.commands = Broker(), Commands(Keys("q:"))
        self.groups = EnqueueGroups(self.broker, self.commands, "here", **{"patience": 60.0, **options})

    def join(self, name, *, queue="mail", kind="a", size=2, **fields):
        operation = NewOperation(name, b"x" * size, **fields)
        return self.groups.join(queue, "high", kind, operation)

    async def sent(self, number):
        await until(lambda: len(self.broker.groups) >= number)
        await asyncio.sleep(0)
        return [shape(calls) for calls in self.broker.groups]


def queued(name):
    return [(Accepted.QUEUED, name)], 0


async def test_those_of_one_turn_go_together_and_those_that_come_then_in_the_next():
    rig = Rig()
    first = [rig.join(str(n)) for n in range(3)]
    assert await rig.sent(1) == [[("enqueue", "high:mail", 3)]]
    second = [rig.join("3"), rig.join("4")]
    assert (await rig.sent(2))[1] == [("enqueue", "high:mail", 2)]
    third = [rig.join("5")]
    await asyncio.sleep(0.001)
    assert len(rig.broker.groups) == 2, "no more than two are on their way"
    rig.broker.let_go(0)
    assert [await answer for answer in first] == [queued(str(n)) for n in range(3)]
    assert (await rig.sent(3))[2] == [("enqueue_one", "high:mail", 1)]
    rig.broker.let_go(1)
    rig.broker.let_go(2)
    assert [await answer for answer in second + third] == [queued("3"), queued("4"), queued("5")]
    await asyncio.sleep(0)
    assert not rig.groups.busy
    assert len({rig.commands.lanes.take().key for _ in range(2)}) == len(rig.commands.lanes._free) + 2 == 2, (
        "given back"
    )


async def test_while_one_is_sent_alone_others_wait_for_the_end_of_the_turn_only():
    rig = Rig()
    assert not rig.groups.busy
    rig.groups.depart()
    assert rig.groups.busy
    answer = rig.join("1")
    assert await rig.sent(1) == [[("enqueue_one", "high:mail", 1)]]
    waits = rig.join("2")  # one alone and one group are on their way
    await asyncio.sleep(0.001)
    assert len(rig.broker.groups) == 1
    rig.groups.arrived()
    await rig.sent(2)
    rig.broker.let_go(0)
    rig.broker.let_go(1)
    assert [await answer, await waits] == [queued("1"), queued("2")]


async def test_what_may_be_refused_for_a_reason_of_its_own_has_a_call_of_its_own():
    rig = Rig()
    for fields in ({}, {"delay": 1.0}, {"deduplication_key": "k", "dedup_window": 1.0}, {}, {"queue": "other"}):
        rig.join("x", **fields)
    rig.join("x", kind="s")
    assert await rig.sent(1) == [
        [
            ("enqueue", "high:mail", 2),
            ("enqueue", "high:mail", 1),
            ("enqueue", "high:mail", 1),
            ("enqueue_one", "high:other", 1),
            ("enqueue_one", "high:mail", 1),
        ]
    ]


async def test_each_has_its_own_error():
    rig = Rig()
    same, also, other = rig.join("1"), rig.join("2"), rig.join("3", queue="other")
    await rig.sent(1)
    refused = BrokerReplyError("refused")
    refused.__cause__ = ValueError("why")
    rig.broker.let_go(0, [refused, [(Accepted.QUEUED, "3")]])
    errors = await asyncio.gather(same, also, return_exceptions=True)
    assert [type(error) for error in errors] == [BrokerReplyError] * 2
    assert len({id(error) for error in (*errors, refused)}) == 3
    assert {error.__cause__ for error in errors} == {refused.__cause__}
    assert await other == queued("3")


async def test_an_error_of_a_group_is_told_to_all_and_the_next_one_is_sent():
    rig = Rig(most=1)
    both = [rig.join("1"), rig.join("2", queue="other")]
    await rig.sent(1)
    after = rig.join("3")
    rig.broker.let_go(0, ZeroDivisionError("ours"))
    assert [str(error) for error in await asyncio.gather(*both, return_exceptions=True)] == ["ours", "ours"]
    await rig.sent(2)
    rig.broker.let_go(1)
    assert await after == queued("3")


async def test_one_that_is_cancelled_breaks_no_other():
    rig = Rig(most=1)
    sent, stays = rig.join("1"), rig.join("2")
    await rig.sent(1)
    waiting, behind = rig.join("3"), rig.join("4")
    sent.cancel()
    waiting.cancel()
    rig.broker.let_go(0)
    assert await stays == queued("2")
    assert (await rig.sent(2))[1] == [("enqueue_one", "high:mail", 1)], "what was not sent is not"
    rig.broker.let_go(1)
    assert await behind == queued("4")


async def test_a_group_of_cancelled_ones_is_none():
    rig = Rig()
    rig.join("1").cancel()
    await asyncio.sleep(0.001)
    assert rig.broker.groups == []
    assert not rig.groups.busy


async def test_redis_is_given_work_while_the_rest_of_a_turn_is_made_ready():
    rig = Rig()
    for n in range(ENOUGH + 2):
        rig.join(str(n))
    assert not rig.broker.groups
    assert await rig.sent(2) == [[("enqueue", "high:mail", ENOUGH)], [("enqueue", "high:mail", 2)]]


async def test_a_group_is_bounded_by_number_and_by_size(monkeypatch):
    monkeypatch.setattr("queue_system.broker.grouping.ENOUGH", 10_000)
    rig = Rig()
    for n in range(MAX_ENQUEUE + 1):
        rig.join(str(n))
    assert await rig.sent(2) == [[("enqueue", "high:mail", MAX_ENQUEUE)], [("enqueue_one", "high:mail", 1)]]
    rig = Rig()
    for size in (MOST_BYTES // 2, MOST_BYTES // 2, 1):
        rig.join("x", size=size)
    assert await rig.sent(2) == [[("enqueue", "high:mail", 2)], [("enqueue_one", "high:mail", 1)]]
    rig = Rig()
    rig.join("x", size=MOST_BYTES + 1)
    assert await rig.sent(1) == [[("enqueue_one", "high:mail", 1)]]


async def test_nobody_waits_for_ever_to_be_sent():
    rig = Rig(most=1, patience=0.02)
    first = rig.join("1")
    await rig.sent(1)
    errors = await asyncio.gather(rig.join("2"), rig.join("3"), return_exceptions=True)
    assert [(type(error), error.kind, error.ambiguous) for error in errors] == [
        (BrokerUnavailableError, "timeout", False)
    ] * 2
    assert not first.done(), "it is the broker that knows what has become of it"
    rig.broker.let_go(0)
    assert await first == queued("1")
    assert len(rig.broker.groups) == 1


async def test_those_that_came_later_have_more_time():
    rig = Rig(most=1, patience=0.03)
    rig.join("1")
    await rig.sent(1)
    early = rig.join("2")
    await asyncio.sleep(0.02)
    late = rig.join("3")
    with pytest.raises(BrokerUnavailableError):
        await early
    assert not late.done()
    with pytest.raises(BrokerUnavailableError):
        await late


async def test_what_replicas_confirm_is_confirmed_for_all_at_once():
    rig = Rig(confirm=Commands(Keys("q:")).confirm(1, 0.5))
    both = [rig.join("1"), rig.join("2")]
    assert await rig.sent(1) == [[("enqueue", "high:mail", 2), ("WAIT", None, 0)]]
    rig.broker.let_go(0, [[(Accepted.QUEUED, "1"), (Accepted.QUEUED, "2")], 1])
    assert [await answer for answer in both] == [([(Accepted.QUEUED, name)], 1) for name in "12"]


async def test_whoever_waits_when_it_is_closed_is_told():
    rig = Rig(most=1)
    rig.join("1")
    await rig.sent(1)
    waiting = rig.join("2")
    rig.groups.close()
    for answer in (waiting, rig.join("3")):
        with pytest.raises(ClosedError, match="it was not sent") as told:
            await answer
        assert not told.value.ambiguous
    rig.broker.let_go(0)


async def test_a_group_whose_task_is_cancelled_tells_that_the_end_has_come():
    rig = Rig()
    answer = rig.join("1")
    await rig.sent(1)
    for task in rig.groups._groups:
        task.cancel()
    with pytest.raises(ClosedError, match="may have been carried out") as told:
        await answer
    assert told.value.ambiguous
