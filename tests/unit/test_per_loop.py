"""Each event loop has its own, and it is closed when the loop ends, or given up when nobody closed it."""

import asyncio
import gc
import os
import threading

from queue_system.broker.per_loop import PerLoop
from support import until


class Things:
    def __init__(self):
        self.made, self.closed, self.abandoned = [], [], []
        self.per_loop = PerLoop(self.make, self.close, self.abandoned.append)

    def make(self):
        self.made.append(len(self.made))
        return self.made[-1]

    async def close(self, thing):
        await asyncio.sleep(0)
        self.closed.append(thing)

    async def get(self):
        return self.per_loop.get()


def loop_of_old():
    """One that nobody ends as `asyncio.run` does."""
    return asyncio.new_event_loop()


def test_one_loop_has_one_and_the_next_one_another():
    things = Things()

    async def twice():
        return [things.per_loop.get(), things.per_loop.get()]

    assert asyncio.run(twice()) == [0, 0]
    assert things.closed == [0]
    assert asyncio.run(twice()) == [1, 1]
    assert (things.closed, things.abandoned) == ([0, 1], [])


def test_loops_in_turns_keep_theirs():
    things, first, second = Things(), loop_of_old(), loop_of_old()
    assert [loop.run_until_complete(things.get()) for loop in (first, second, first, second)] == [0, 1, 0, 1]
    for loop in (first, second):
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()
    assert things.closed == [0, 1]


def test_that_of_a_loop_that_was_closed_without_ado_is_given_up_when_another_asks():
    things, first = Things(), loop_of_old()
    first.run_until_complete(things.get())
    first.close()
    assert things.abandoned == []
    assert asyncio.run(things.get()) == 1
    assert (things.abandoned, things.closed) == ([0], [1])


def test_after_it_was_closed_there_is_a_new_one():
    things = Things()

    async def closed():
        await things.per_loop.close()  # there is none
        things.per_loop.get()
        await asyncio.gather(things.per_loop.close(), things.per_loop.close())
        assert things.closed == [0]
        return things.per_loop.get()

    assert asyncio.run(closed()) == 1
    assert things.closed == [0, 1]


def test_those_of_other_loops_are_closed_by_them():
    things, ready = Things(), threading.Event()

    async def elsewhere():
        things.per_loop.get()
        ready.set()
        await until(lambda: things.closed)
        return list(things.closed)

    seen = []
    other = threading.Thread(target=lambda: seen.append(asyncio.run(elsewhere())))
    other.start()
    assert ready.wait(10)
    asyncio.run(things.per_loop.close())
    other.join()
    assert seen == [[0]]


def test_that_of_a_closed_loop_is_given_up_by_close(recwarn):
    things, first = Things(), loop_of_old()
    first.run_until_complete(things.get())
    first.close()
    asyncio.run(things.per_loop.close())
    gc.collect()
    assert (things.abandoned, things.closed) == ([0], [])
    assert not [warning for warning in recwarn if "never awaited" in str(warning.message)]


def test_a_child_leaves_the_parents_alone(monkeypatch):
    things, first = Things(), loop_of_old()
    first.run_until_complete(things.get())
    monkeypatch.setattr(os, "getpid", lambda: -1)
    assert asyncio.run(things.get()) == 1
    assert (things.closed, things.abandoned) == ([1], [])
    first.close()
    assert asyncio.run(things.get()) == 2
    assert things.abandoned == []
