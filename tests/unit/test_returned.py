"""What a processor returns that has not run yet."""

import asyncio
import itertools
import warnings

import pytest
from fakes import item

from queue_system.errors import UnrunResultError
from queue_system.events import OperationInfo
from queue_system.runtime.attempts import Attempt
from queue_system.runtime.calling import AttemptTimeoutError, await_processor, call_in_thread, cancel_late
from queue_system.runtime.deadlines import Deadlines
from queue_system.runtime.returned import MAX_AWAITS, Returned, is_unrun, refuse_unrun

INFO = OperationInfo("id-1", "mail", "high", "work", "operation", is_async=False, attempt=1, headers={})


@pytest.fixture
def attempt():
    return Attempt(item(), None, INFO, 1.0)


async def run(attempt, function, timeout=60.0):
    return await await_processor(function, attempt, timeout, None, Deadlines(cancel_late))


async def answer(value=42):
    await asyncio.sleep(0)
    return value


def numbers():
    yield 1
    yield 2


async def async_numbers():
    yield 1


class Awaitable:
    def __await__(self):
        return answer().__await__()


class Endless:
    def __await__(self):
        return answer(self).__await__()


@pytest.mark.parametrize("result", [0, "text", b"", {}, {"a": numbers}, [], (), [1, 2], numbers, object(), iter([1])])
def test_a_result_is_left_alone(attempt, result):
    assert not is_unrun(result)
    refuse_unrun(result)
    assert call_in_thread(lambda entity: result, attempt, None) is result


UNRUN = {
    "generator": numbers,
    "expression": lambda: (each for each in "ab"),
    "async-generator": async_numbers,
    "map": lambda: map(print, "ab"),
    "filter": lambda: filter(print, "ab"),
    "starmap": lambda: itertools.starmap(print, [("a",)]),
}


@pytest.mark.parametrize("make", UNRUN.values(), ids=UNRUN)
async def test_what_has_not_run_is_refused(attempt, make):
    with pytest.raises(UnrunResultError, match="whose code has not run: go through it"):
        call_in_thread(lambda entity: make(), attempt, None)

    async def processor(entity):
        return make()

    with pytest.raises(UnrunResultError, match="whose code has not run: go through it"):
        await run(attempt, processor)


@pytest.mark.parametrize("kind", [list, tuple])
async def test_a_series_of_what_has_not_run_is_refused_and_closed(attempt, kind):
    coroutines = [answer(), answer()]
    with pytest.raises(
        UnrunResultError, match=f"a {kind.__name__} of coroutine objects, which nobody runs: await them"
    ):
        call_in_thread(lambda entity: kind(coroutines), attempt, None)
    for each in coroutines:
        with pytest.raises(RuntimeError, match="cannot reuse"):
            await each


def test_a_generator_that_has_begun_is_a_result(attempt):
    begun, ended = numbers(), numbers()
    next(begun)
    list(ended)
    for result in (begun, ended):
        assert call_in_thread(lambda entity, result=result: result, attempt, None) is result


@pytest.mark.parametrize("make", [answer, Awaitable, lambda: asyncio.ensure_future(answer())])
async def test_what_an_async_processor_returns_is_awaited(attempt, make):
    async def processor(entity):
        return make()

    assert await run(attempt, processor) == 42


async def test_its_own_task_is_a_result(attempt):
    async def processor(entity):
        return asyncio.current_task()

    assert await run(attempt, processor) is asyncio.current_task()


async def test_it_is_awaited_until_it_is_a_result(attempt):
    async def processor(entity):
        return answer(answer(Awaitable()))

    assert await run(attempt, processor) == 42
    with pytest.raises(UnrunResultError, match=f"was awaited {MAX_AWAITS} times"):
        await run(attempt, lambda entity: Endless())


async def test_what_a_sync_one_returns_is_awaited_with_its_time_limit(attempt):
    async def hang():
        await asyncio.get_running_loop().create_future()

    returned = call_in_thread(lambda entity: answer(entity["n"]), attempt, None)
    assert isinstance(returned, Returned)
    assert await run(attempt, returned) == 1
    with pytest.raises(AttemptTimeoutError, match=r"^cancelled after 0.01 s$") as caught:
        await run(attempt, call_in_thread(lambda entity: hang(), attempt, None), timeout=0.01)
    assert caught.value.seconds == 0.01


async def test_what_is_not_awaited_any_more_is_closed_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Returned(answer(), None).close()
        Returned(Awaitable(), None).close()
