"""Where claims wait: in order, one task woken at a time, and nothing is lost with a task that is cancelled."""

import asyncio

import pytest

from queue_system.runtime import lane as lane_module
from queue_system.runtime.lane import Lane
from support import until


@pytest.fixture
def lane():
    return Lane()


class Takers:
    """Tasks that take from a lane for ever; each may be held up by what it has taken."""

    def __init__(self, lane, number, *, hold=False):
        self.lane, self.hold = lane, hold
        self.taken = []
        self.held = asyncio.Event()
        self.takers = set()
        self.tasks = [asyncio.create_task(self._take(name)) for name in range(number)]

    async def _take(self, name):
        while True:
            self.taken.append(await self.lane.get())
            self.takers.add(name)
            if self.hold:
                await self.held.wait()

    async def started(self):
        await until(lambda: len(self.lane._waiting) == len(self.tasks))

    async def end(self):
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


@pytest.fixture
async def take(lane):
    made = []

    async def start(number, **options):
        made.append(Takers(lane, number, **options))
        await made[-1].started()
        return made[-1]

    yield start
    for takers in made:
        await takers.end()


async def test_first_in_first_out(lane):
    for number in range(3):
        lane.put(number)
    assert [await lane.get() for _ in range(3)] == [0, 1, 2]


async def test_who_comes_first_waits(lane):
    waiting = asyncio.create_task(lane.get())
    await until(lambda: lane._waiting)
    assert not waiting.done()
    lane.put("late")
    assert await waiting == "late"


async def test_work_that_never_waits_is_done_by_one_task(lane, take, monkeypatch):
    monkeypatch.setattr(lane_module, "TURN", 60.0)
    takers = await take(20)
    for number in range(100):
        lane.put(number)
    await until(lambda: len(takers.taken) == 100)
    assert takers.taken == list(range(100))
    assert len(takers.takers) == 1


async def test_work_that_waits_is_spread_over_all(lane, take):
    takers = await take(20, hold=True)
    for number in range(20):
        lane.put(number)
    await until(lambda: len(takers.taken) == 20)
    assert len(takers.takers) == 20


async def test_outside_of_a_task_the_first_takers_go_on_at_once_and_find_all_of_it(lane, take):
    takers = await take(3, hold=True)
    seen = []

    def put():
        lane.extend([1, 2])
        seen.extend(takers.taken)

    asyncio.get_running_loop().call_soon(put)
    await until(lambda: seen == [1, 2])
    assert takers.takers == {0, 1}


async def test_takers_that_keep_the_event_loop_busy_let_others_have_their_turn(lane, take, monkeypatch):
    monkeypatch.setattr(lane_module, "TURN", -1.0)
    takers = await take(20, hold=True)
    seen = []
    lane.extend(range(20))
    while len(takers.taken) < 20:
        await asyncio.sleep(0)
        seen.append(len(takers.taken))
    assert len(set(seen)) > 5


async def test_the_event_loop_gets_its_turn_while_one_task_is_busy(lane, take, monkeypatch):
    monkeypatch.setattr(lane_module, "TURN", 0.0)
    takers = await take(1)
    seen = []
    for number in range(50):
        lane.put(number)
    while len(takers.taken) < 50:
        await asyncio.sleep(0)
        seen.append(len(takers.taken))
    assert len(set(seen)) > 10  # it had taken some, and not all, each time that somebody else could look


async def test_what_a_cancelled_task_was_woken_for_goes_to_another(lane, take):
    takers = await take(2, hold=True)
    lane.put("one")  # wakes the first
    takers.tasks[0].cancel()
    await until(lambda: takers.taken == ["one"])
    assert takers.takers == {1}


async def test_a_task_that_lets_others_go_first_leaves_nothing_when_it_is_cancelled(lane, take):
    lane._others_wait = lambda: True
    takers = await take(2, hold=True)
    lane.put("one")
    await asyncio.sleep(0)  # the first is awake, and lets others go first
    assert (len(lane), len(lane._waiting)) == (1, 1)
    takers.tasks[0].cancel()
    await until(lambda: takers.taken == ["one"])
    assert takers.takers == {1}


async def test_others_go_first_before_the_first_thing_is_taken(lane, take):
    lane._others_wait = lambda: True
    takers, seen = await take(1), []
    lane.put("one")
    asyncio.get_running_loop().call_soon(lambda: seen.append(list(takers.taken)))
    await until(lambda: takers.taken)
    assert seen == [[]]


async def test_a_cancelled_task_is_not_woken(lane, take):
    takers = await take(2, hold=True)
    takers.tasks[0].cancel()
    lane.put("one")
    await until(lambda: takers.taken == ["one"])
    assert takers.takers == {1}


async def test_a_woken_task_that_finds_nothing_waits_again(lane, take):
    takers = await take(1)
    lane.put("drained")
    assert lane.drain() == ["drained"]
    lane.put("next")
    await until(lambda: takers.taken == ["next"])
    lane.put("last")
    await until(lambda: takers.taken == ["next", "last"])


def test_draining_takes_everything(lane):
    lane.put(1)
    lane.put(2)
    assert lane.drain() == [1, 2]
    assert lane.drain() == []
