"""A future whose waiters go on at once, wherever they can, and otherwise as asyncio has it."""

import asyncio
from contextvars import ContextVar

import pytest

from queue_system.eager import EagerFuture
from support import until

NAME = ContextVar("name", default="nobody")


@pytest.fixture
async def future():
    return EagerFuture(asyncio.get_running_loop())


@pytest.fixture
def notes():
    return []


async def waiter(future, notes, name="a"):
    NAME.set(name)
    try:
        notes.append((NAME.get(), await future))
    except ValueError as error:
        notes.append((NAME.get(), str(error)))


async def started(*waiters):
    tasks = [asyncio.create_task(one) for one in waiters]
    await asyncio.sleep(0)
    return tasks


async def outside_of_tasks(action):
    """What was noted by the time at which the action returned, which ran in a callback of the event loop."""
    seen = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(lambda: seen.set_result(action()))
    return await seen


async def test_who_waits_goes_on_before_the_result_is_set(future, notes):
    await started(waiter(future, notes, "a"), waiter(future, notes, "b"))
    assert await outside_of_tasks(lambda: (future.set_result(1), list(notes))[1]) == [("a", 1), ("b", 1)]


async def test_an_exception_too(future, notes):
    await started(waiter(future, notes))
    assert await outside_of_tasks(lambda: (future.set_exception(ValueError("no")), list(notes))[1]) == [("a", "no")]


async def test_within_a_task_the_others_have_to_wait(future, notes):
    tasks = await started(waiter(future, notes))
    future.set_result(1)
    assert notes == []
    await asyncio.gather(*tasks)
    assert notes == [("a", 1)]


async def test_what_is_done_already_is_not_waited_for(future, notes):
    future.set_result(1)
    await waiter(future, notes)
    called = []
    future.add_done_callback(called.append)
    await until(lambda: called == [future])
    assert notes == [("a", 1)]


async def test_a_task_that_is_cancelled_cancels_it(future, notes):
    (task,) = await started(waiter(future, notes))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert future.cancelled()
    assert notes == []


async def test_a_shielded_one_is_not_cancelled(future):
    (task,) = await started(asyncio.wait_for(asyncio.shield(future), timeout=60))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not future.done()
    await outside_of_tasks(lambda: future.set_result(1))


async def test_asyncio_waits_for_it_as_for_others(future):
    (task,) = await started(asyncio.wait([future], timeout=60))
    await outside_of_tasks(lambda: future.set_result(1))
    assert await task == ({future}, set())


async def test_a_callback_that_is_removed_is_not_called(future, notes):
    future.add_done_callback(notes.append)
    assert future.remove_done_callback(notes.append) == 1
    await outside_of_tasks(lambda: future.set_result(1))
    assert notes == []


async def test_a_callback_that_raises_holds_nobody_up(future, notes):
    loop = asyncio.get_running_loop()
    told = []
    loop.set_exception_handler(lambda _, context: told.append(str(context["exception"])))

    def broken(_):
        raise ValueError("broken")

    future.add_done_callback(broken)
    await started(waiter(future, notes))
    await outside_of_tasks(lambda: future.set_result(1))
    assert (told, notes) == (["broken"], [("a", 1)])
