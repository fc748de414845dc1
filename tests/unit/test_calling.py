"""An async processor runs in the worker's task and in a context of its own, and is cancelled there alone."""

import asyncio
import contextvars
import dataclasses

import pytest
import structlog
from fakes import item

from queue_system.events import OperationInfo
from queue_system.runtime.attempts import Attempt
from queue_system.runtime.calling import AttemptTimeoutError, await_processor, cancel_late, in_context, runs_on_loop
from queue_system.runtime.deadlines import Deadlines
from queue_system.runtime.incident import ProcessorRaisedError

VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")
INFO = OperationInfo("id-1", "mail", "high", "work", "operation", is_async=True, attempt=1, headers={})


@pytest.fixture
def attempt():
    return Attempt(item(), None, INFO, 1.0)


async def run(attempt, function, timeout=60.0):
    return await await_processor(function, attempt, timeout, None, Deadlines(cancel_late))


async def test_the_result_is_that_of_the_processor(attempt):
    async def processor(entity):
        await asyncio.sleep(0)
        return entity["n"] + 1

    assert await run(attempt, processor) == 2


async def test_it_runs_in_the_task_that_calls_it(attempt):
    async def processor(_):
        return asyncio.current_task()

    assert await run(attempt, processor) is asyncio.current_task()


async def test_what_it_sets_in_its_context_stays_there_over_all_its_steps(attempt):
    VARIABLE.set("of the worker")
    seen = []

    async def processor(_):
        seen.append(VARIABLE.get())
        VARIABLE.set("of the processor")
        await asyncio.sleep(0)
        seen.append(VARIABLE.get())
        seen.append(await asyncio.create_task(child()))

    async def child():
        return VARIABLE.get()

    await run(attempt, processor)
    assert seen == ["of the worker", "of the processor", "of the processor"]
    assert VARIABLE.get() == "of the worker"


async def test_an_error_is_thrown_into_the_processor_where_it_waits(attempt):
    broken = asyncio.get_running_loop().create_future()

    async def processor(_):
        try:
            await broken
        except ValueError:
            VARIABLE.set("of the handler")
            return "handled"

    asyncio.get_running_loop().call_soon(broken.set_exception, ValueError("no"))
    assert await run(attempt, processor) == "handled"
    assert VARIABLE.get() == "unset"


async def test_any_awaitable_will_do(attempt):
    future = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(future.set_result, "of a future")
    assert await run(attempt, lambda _: future) == "of a future"
    assert await run(attempt, lambda _: "no awaitable at all") == "no awaitable at all"


async def test_a_late_processor_is_cancelled_and_its_task_is_not(attempt):
    cleaned = []

    async def processor(_):
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            await asyncio.sleep(0)  # it may still wait
            cleaned.append(True)

    with pytest.raises(AttemptTimeoutError, match=r"cancelled after 0\.01 s"):
        await run(attempt, processor, timeout=0.01)
    assert cleaned == [True]
    assert asyncio.current_task().cancelling() == 0
    await asyncio.sleep(0)  # nothing is left that would be raised here


async def test_a_late_processor_may_return_a_result_all_the_same(attempt):
    async def processor(_):
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            return "rescued"

    assert await run(attempt, processor, timeout=0.01) == "rescued"
    assert asyncio.current_task().cancelling() == 0


async def test_a_timeout_of_its_own_is_its_own(attempt):
    async def processor(_):
        async with asyncio.timeout(0.01):
            await asyncio.get_running_loop().create_future()

    with pytest.raises(TimeoutError):
        await run(attempt, processor)
    assert asyncio.current_task().cancelling() == 0


async def test_one_that_cancels_its_task_and_returns_is_cancelled_before_the_task_goes_on(attempt):
    async def processor(_):
        asyncio.current_task().cancel()
        return "not seen"

    with pytest.raises(asyncio.CancelledError):
        await run(attempt, processor)
    assert attempt.cancelled_from_outside()
    asyncio.current_task().uncancel()
    await asyncio.sleep(0)


class Panic(BaseException):
    """As a panic in an extension module is."""


BASE_ERRORS = [
    Panic("panicked"), SystemExit(3), KeyboardInterrupt(), GeneratorExit(), BaseExceptionGroup("of tasks", [Panic()]),
]  # fmt: skip


@pytest.mark.parametrize("error", BASE_ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("when", ["at the call", "at once", "later"])
async def test_what_is_no_exception_does_not_get_out(attempt, error, when):
    async def processor(_):
        if when == "later":
            await asyncio.sleep(0)
        raise error

    def at_the_call(_):
        raise error

    with pytest.raises(ProcessorRaisedError) as caught:
        await run(attempt, at_the_call if when == "at the call" else processor)
    assert caught.value.error is caught.value.__cause__ is error
    assert await run(attempt, lambda _: "alive") == "alive"


async def test_base_exceptions_of_a_task_group_are_one_error(attempt):
    async def panics():
        raise Panic("in a child")

    async def processor(_):
        async with asyncio.TaskGroup() as group:
            group.create_task(panics())
            group.create_task(panics())

    with pytest.raises(ProcessorRaisedError) as caught:
        await run(attempt, processor)
    assert [str(error) for error in caught.value.error.exceptions] == ["in a child", "in a child"]


async def test_a_task_that_is_closed_is_no_failure_of_its_processor(attempt):
    seen = []

    async def processor(_):
        try:
            await asyncio.get_running_loop().create_future()
        except GeneratorExit:
            seen.append("closed")
            raise Panic("while it was closed") from None

    call = await_processor(processor, attempt, 60.0, None, Deadlines(cancel_late))
    call.send(None)
    call.close()
    assert seen == ["closed"]


@dataclasses.dataclass
class Unhashable:
    """A plain dataclass has no hash."""

    async def __call__(self, entity, context):
        return context.attempt


async def test_a_callable_needs_no_hash(attempt):
    processor = Unhashable()
    with pytest.raises(TypeError):
        hash(processor)
    assert runs_on_loop(processor)
    assert not runs_on_loop(Unhashable)
    assert await await_processor(processor, attempt, 60.0, structlog.get_logger(), Deadlines(cancel_late)) == 1


async def test_a_processor_that_is_never_ended_is_closed_in_its_context():
    closed = []

    async def processor():
        VARIABLE.set("of the processor")
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            closed.append(VARIABLE.get())

    steps = in_context(contextvars.copy_context(), processor())
    next(steps)
    steps.close()
    assert closed == ["of the processor"]
