"""Whether a worker that claims nothing stands still: judged by what is ready for it, and by what Redis says."""

from __future__ import annotations

import pytest
from fakes import AsyncFakeBroker

from queue_system.broker.commands import Commands
from queue_system.errors import BrokerReplyError, BrokerUnavailableError
from queue_system.keys import Keys
from queue_system.runtime.progress import PATIENCE, ClaimRecord, Progress
from queue_system.runtime.waiting import Slots


class Rig:
    """A worker's progress, with a clock that is moved by hand; `registry` and `ready` are what Redis has."""

    def __init__(self, queues: frozenset[str] | None = None) -> None:
        self.now = 100.0
        self.slots = Slots(1, 1)
        self.registry = {"normal:mail": "a"}
        self.ready = {"q:normal:mail"}
        self.error: Exception | None = None
        self.broker = AsyncFakeBroker(self.answer)
        self.record = ClaimRecord(lambda: self.now)
        self.record.accept()
        self.progress = Progress(
            self.broker,
            Commands(Keys("q:")),
            self.record,
            free_slots=lambda: self.slots,
            queues=queues,
            clock=lambda: self.now,
        )

    def answer(self, call):
        if self.error is not None:
            raise self.error
        if call.name == "HGETALL":
            return [text.encode() for pair in self.registry.items() for text in pair]
        return len(self.ready.intersection(call.args))

    async def look_after(self, seconds: float) -> float:
        self.now += seconds
        await self.progress.look()
        return self.progress.stuck_for

    async def stuck_after(self, seconds: float) -> float:
        """Since it was seen that work waits, `seconds` ago."""
        await self.look_after(PATIENCE)
        self.now += seconds
        return self.progress.stuck_for


async def test_work_that_waits_while_no_claim_is_accepted_is_a_standstill():
    rig = Rig()
    assert await rig.look_after(PATIENCE) == 0.0
    assert await rig.look_after(7.5) == 7.5
    assert rig.record.overdue_for == PATIENCE + 7.5


async def test_nothing_is_asked_while_claims_are_accepted():
    rig = Rig()
    assert await rig.look_after(PATIENCE - 0.01) == 0.0
    assert rig.broker.calls == []


async def test_an_accepted_claim_ends_it_at_once():
    rig = Rig()
    assert await rig.stuck_after(9.0) == 9.0
    rig.record.accept()
    assert rig.progress.stuck_for == 0.0
    assert await rig.stuck_after(1.0) == 1.0  # and it begins anew


async def test_no_work_is_no_standstill():
    rig = Rig()
    rig.ready = set()
    assert await rig.stuck_after(60.0) == 0.0
    rig.ready = {"q:normal:mail"}
    await rig.look_after(1.0)
    rig.ready = set()  # another worker has taken it
    assert await rig.look_after(20.0) == 0.0


async def test_without_a_free_slot_no_claim_is_due():
    rig = Rig()
    rig.slots = Slots(0, 0)
    assert await rig.stuck_after(60.0) == 0.0
    await rig.progress.look()
    assert rig.record.overdue_for == 0.0
    assert rig.broker.calls == []


@pytest.mark.parametrize(
    ("kind", "slots", "stuck"),
    [
        ("a", Slots(1, 0), True),
        ("a", Slots(0, 1), False),
        ("s", Slots(0, 1), True),
        ("s", Slots(1, 0), False),
        ("m", Slots(1, 1), True),
        ("m", Slots(1, 0), False),
        ("u", Slots(0, 1), False),
    ],
)
async def test_only_work_counts_for_which_there_is_a_slot(kind, slots, stuck):
    rig = Rig()
    rig.registry, rig.slots = {"normal:mail": kind}, slots
    assert await rig.stuck_after(9.0) == (9.0 if stuck else 0.0)


@pytest.mark.parametrize(("serves", "stuck"), [("mail", True), ("other", False)])
async def test_only_work_of_its_own_queues_counts(serves, stuck):
    rig = Rig(frozenset({serves}))
    assert await rig.stuck_after(9.0) == (9.0 if stuck else 0.0)


async def test_many_lists_are_asked_about_in_parts():
    rig = Rig()
    rig.registry = {f"normal:q{number}": "a" for number in range(2001)}
    rig.ready = {"q:normal:q2000"}
    assert await rig.stuck_after(9.0) == 9.0
    assert [len(call.args) for call in rig.broker.named("EXISTS")] == [1000, 1000, 1]


async def test_a_redis_that_cannot_serve_is_no_standstill_of_the_worker():
    rig = Rig()
    rig.now += PATIENCE
    for _ in range(20):
        rig.record.fail()
        assert await rig.look_after(PATIENCE - 0.01) == 0.0
    assert rig.broker.calls == []
    assert await rig.look_after(0.01) == 0.0  # it has ceased to try: that is one
    assert await rig.look_after(4.0) == 4.0


async def test_what_nobody_can_tell_changes_nothing():
    rig = Rig()
    rig.error = BrokerUnavailableError("away")
    assert await rig.stuck_after(60.0) == 0.0
    rig.error = None
    await rig.look_after(0.0)
    rig.error = BrokerUnavailableError("away")
    assert await rig.look_after(5.0) == 5.0


async def test_a_worker_whose_claims_and_questions_are_refused_stands_still():
    rig = Rig()
    rig.error = BrokerReplyError("NOPERM")
    assert await rig.stuck_after(9.0) == 9.0


def test_the_record_says_what_became_of_the_latest_claim():
    now = [5.0]
    record = ClaimRecord(lambda: now[0])
    assert (record.accepted, record.refusal, record.is_away, record.overdue_for) == (False, "", False, 0.0)
    now[0] += 2.0
    record.fail()
    assert (record.accepted, record.refusal, record.is_away, record.overdue_for) == (False, "", True, 2.0)
    record.refuse("NOPERM")
    assert (record.accepted, record.refusal, record.is_away, record.overdue_for) == (False, "NOPERM", False, 2.0)
    record.fail()
    record.accept()
    assert (record.accepted, record.refusal, record.is_away, record.overdue_for) == (True, "", False, 0.0)
    record.fail()
    now[0] += PATIENCE
    assert (record.is_away, record.overdue_for) == (False, PATIENCE)
    record.rest()
    assert record.overdue_for == 0.0
