"""The task factory for what processors make: which tasks it touches, and what it leaves on the event loop."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import warnings

import pytest

from queue_system.events import OperationInfo, current_operation
from queue_system.runtime import contained
from queue_system.runtime.contained import Contained
from queue_system.runtime.incident import ProcessorRaisedError

INFO = OperationInfo("1", "mail", "high", "work", "operation", is_async=True, attempt=1, headers={})


@pytest.fixture
async def loop():
    running = asyncio.get_running_loop()
    contained.contain(running)
    yield running
    contained.release(running)


@pytest.fixture
def within():
    token = current_operation.set(INFO)
    yield contextvars.copy_context()
    current_operation.reset(token)


async def leave(error=SystemExit):
    await asyncio.sleep(0)
    raise error(4)


async def fine():
    await asyncio.sleep(0)
    return "result"


async def test_a_task_outside_of_operations_is_left_alone(loop):
    task = loop.create_task(fine(), name="own")
    assert inspect.iscoroutine(task.get_coro())
    assert (await task, task.get_name(), type(task)) == ("result", "own", asyncio.Task)


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
async def test_within_an_operation_what_ends_the_loop_is_an_exception(loop, error):
    context = contextvars.copy_context()
    context.run(current_operation.set, INFO)
    with pytest.raises(ProcessorRaisedError, match=error.__name__) as caught:
        await loop.create_task(leave(error), context=context)
    assert type(caught.value.error) is error
    assert caught.value.__cause__ is caught.value.error


@pytest.mark.parametrize("error", [ValueError, asyncio.CancelledError, GeneratorExit])
async def test_all_else_stays_as_it_is(loop, error):
    with pytest.raises(error):
        await context_of_operation(loop, leave(error))


async def test_what_answers_to_a_cancellation_is_contained_too(loop):
    async def answers():
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise SystemExit(4) from None

    task = context_of_operation(loop, answers())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(ProcessorRaisedError):
        await task


async def test_one_that_is_cancelled_before_its_first_step_leaves_no_coroutine_behind(loop):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        task = context_of_operation(loop, fine())
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        del task


async def test_it_looks_like_the_coroutine_that_it_holds(loop):
    task = context_of_operation(loop, fine())
    coroutine = task.get_coro()
    assert isinstance(coroutine, Contained)
    assert (coroutine.__name__, coroutine.cr_code) == ("fine", fine.__code__)
    assert "fine" in repr(task)
    await asyncio.sleep(0)
    assert inspect.getcoroutinestate(coroutine) == inspect.CORO_SUSPENDED
    assert [frame.f_code for frame in task.get_stack()] == [fine.__code__]
    assert await task == "result"


async def test_the_factory_that_was_there_makes_the_tasks_and_comes_back(within):
    loop, made = asyncio.get_running_loop(), []

    def before(loop, coroutine, **options):
        made.append((type(coroutine), sorted(options)))
        return asyncio.Task(coroutine, loop=loop, **options)

    loop.set_task_factory(before)
    contained.contain(loop)
    contained.contain(loop)
    await loop.create_task(fine())
    await loop.create_task(fine(), context=within)
    contained.release(loop)
    assert loop.get_task_factory() is not before, "another worker runs"
    contained.release(loop)
    assert loop.get_task_factory() is before
    loop.set_task_factory(None)
    contained.release(loop)
    assert [kind for kind, _ in made] == [Contained, Contained]
    assert made[1][1] == ["context"]


async def test_a_factory_that_was_set_since_is_left_there():
    loop = asyncio.get_running_loop()
    contained.contain(loop)
    ours = loop.get_task_factory()

    def since(loop, coroutine, **options):
        return ours(loop, coroutine, **options)

    loop.set_task_factory(since)
    contained.contain(loop)
    task = context_of_operation(loop, leave())
    with pytest.raises(ProcessorRaisedError):
        await task
    assert not isinstance(task.get_coro()._coroutine, Contained), "contained once"
    contained.release(loop)
    assert loop.get_task_factory() is since
    contained.release(loop)
    assert loop.get_task_factory() is since
    loop.set_task_factory(None)


def context_of_operation(loop, coroutine):
    context = contextvars.copy_context()
    context.run(current_operation.set, INFO)
    return loop.create_task(coroutine, context=context)
