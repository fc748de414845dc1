import asyncio
from types import SimpleNamespace

import pytest

from queue_system.broker.messages import Delivery
from queue_system.runtime.intake import Claim, Intake
from queue_system.runtime.isolation import Isolation
from queue_system.runtime.waiting import Slots


def claim(name: str, *, sync: bool) -> Claim:
    delivery = Delivery(name, "q:high:a", 1, 1, 0, 0, 0, 0.0, 0.0, 0.0, 0.0, "", b"")
    return Claim(delivery, sync=sync)


@pytest.fixture
def pool():
    """Says how many sync operations may be held now."""
    return SimpleNamespace(limit=3)


@pytest.fixture
def freed():
    return []


@pytest.fixture
def intake(pool, freed):
    return Intake(2, lambda: pool.limit, lambda: freed.append(True), Isolation(lambda _: None, patience=10.0))


async def next_of(intake, *, sync):
    async with asyncio.timeout(20):
        return await intake.next(sync=sync)


def test_each_side_has_its_slots(intake, pool):
    assert intake.free() == Slots(2, 3, suspect=True)
    intake.put([claim("a", sync=False)])
    intake.put([claim("b", sync=True)])
    assert intake.free() == Slots(1, 2, suspect=True)
    assert (intake.async_held, intake.sync_held, intake.held) == (1, 1, 2)
    pool.limit = 1  # the pool's waiting room has closed
    assert intake.free() == Slots(1, 0, suspect=True)


def test_never_fewer_than_no_slots(intake, pool):
    for name in "abc":
        intake.put([claim(name, sync=False)])
        intake.put([claim(name, sync=True)])
    pool.limit = 1
    assert intake.free() == Slots(0, 0, suspect=True)
    assert not intake.free()


@pytest.mark.parametrize(("slots", "some"), [(Slots(0, 0), False), (Slots(1, 0), True), (Slots(0, 1), True)])
def test_slots_are_true_when_there_are_any(slots, some):
    assert bool(slots) is some


async def test_each_lane_keeps_its_order(intake):
    for name in ("a1", "a2"):
        intake.put([claim(name, sync=False)])
    for name in ("s1", "s2"):
        intake.put([claim(name, sync=True)])
    names = [(await next_of(intake, sync=sync)).delivery.operation_id for sync in (True, False, False, True)]
    assert names == ["s1", "a1", "a2", "s2"]


async def test_taking_a_claim_keeps_its_slot_until_it_is_done(intake, freed):
    intake.put([claim("a", sync=False), claim("b", sync=False)])
    taken = await next_of(intake, sync=False)
    assert intake.free() == Slots(0, 3, suspect=True)
    assert freed == []
    intake.done(taken)
    assert intake.free() == Slots(1, 3, suspect=True)
    assert freed == [True]


async def test_it_is_told_when_nothing_waits_any_more(intake, freed):
    intake.put([claim("a", sync=False), claim("b", sync=False)])
    await next_of(intake, sync=False)
    assert (intake.waiting, freed) == (1, [])
    await next_of(intake, sync=False)
    assert (intake.waiting, freed) == (0, [True])


@pytest.mark.parametrize("sync", [True, False])
async def test_a_claim_of_the_other_kind_moves_its_slot(intake, freed, sync):
    moved = claim("a", sync=not sync)
    intake.put([moved])
    intake.switch(moved, sync=sync)
    assert moved.sync is sync
    assert (intake.sync_held, intake.async_held) == (int(sync), int(not sync))
    assert freed == [True]
    intake.done(moved)
    assert intake.held == 0


def test_a_claim_that_is_right_where_it_is_moves_nothing(intake, freed):
    stays = claim("a", sync=True)
    intake.put([stays])
    intake.switch(stays, sync=True)
    assert (intake.sync_held, freed) == (1, [])


async def test_a_claim_can_be_handed_on_to_the_other_lane(intake):
    wrong = claim("a", sync=True)
    intake.put([wrong])
    taken = await next_of(intake, sync=True)
    intake.switch(taken, sync=False)
    intake.requeue(taken)
    assert await next_of(intake, sync=False) is wrong
    assert (intake.async_held, intake.sync_held) == (1, 0)


async def test_draining_takes_out_what_no_task_has_taken(intake):
    for name, sync in (("a1", False), ("a2", False), ("s1", True)):
        intake.put([claim(name, sync=sync)])
    await next_of(intake, sync=False)
    left = intake.drain()
    assert [each.delivery.operation_id for each in left] == ["a2", "s1"]
    assert intake.held == 3  # each is done with by whoever drains
    assert intake.drain() == []
