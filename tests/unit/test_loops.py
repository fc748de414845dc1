import asyncio
from types import SimpleNamespace

import pytest

from queue_system.runtime import loops
from queue_system.runtime.loops import SupervisedLoop
from support import until


async def forever():
    await asyncio.get_running_loop().create_future()


class Paused:
    """asyncio, but for pauses between two starts, which it notes; and for its clock, which is moved by hand."""

    def __init__(self) -> None:
        self.slept: list[float] = []
        self.now = 0.0

    def __getattr__(self, name: str):
        return getattr(asyncio, name)

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        await asyncio.sleep(0)

    def get_running_loop(self):
        return SimpleNamespace(time=lambda: self.now, create_task=asyncio.get_running_loop().create_task)


@pytest.fixture
def pauses(monkeypatch):
    paused = Paused()
    monkeypatch.setattr(loops, "asyncio", paused)
    return paused


def failing(times, error=None, on_start=lambda: None):
    """A coroutine function that raises so often, then waits for ever; and how often it was started."""
    starts = []

    async def run():
        starts.append(None)
        on_start()
        if len(starts) <= times:
            raise error or LookupError(f"start {len(starts)}")
        await forever()

    return run, starts


async def test_a_loop_that_raises_is_told_and_started_again(pauses):
    told = []
    run, starts = failing(3)
    loop = SupervisedLoop("fetch", run, lambda name, error: told.append((name, str(error))))
    loop.start()
    await until(lambda: len(starts) == 4)
    assert told == [("fetch", f"start {n}") for n in (1, 2, 3)]
    assert loop.alive
    await loop.stop()


async def test_the_pause_doubles_from_a_fifth_of_a_second_to_five(pauses):
    run, starts = failing(8)
    loop = SupervisedLoop("fetch", run, lambda *_: None)
    loop.start()
    await until(lambda: len(starts) == 9)
    await loop.stop()
    assert pauses.slept == pytest.approx([0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 5.0])


async def test_a_loop_that_ran_well_for_a_while_is_started_again_at_once(pauses):
    def a_while():
        if len(starts) == 5:
            pauses.now += 60

    run, starts = failing(6, on_start=a_while)
    loop = SupervisedLoop("fetch", run, lambda *_: None)
    loop.start()
    await until(lambda: len(starts) == 7)
    await loop.stop()
    assert pauses.slept == pytest.approx([0.2, 0.4, 0.8, 1.6, 0.2, 0.4])


async def test_a_loop_that_returns_has_ended():
    starts = []

    async def run():
        starts.append(None)

    loop = SupervisedLoop("once", run, lambda *_: None)
    loop.start()
    await until(lambda: not loop.alive)
    assert len(starts) == 1
    await loop.stop()


async def test_start_and_stop_may_be_repeated():
    run, starts = failing(0)
    loop = SupervisedLoop("beat", run, lambda *_: None)
    await loop.stop()  # never started
    assert not loop.alive
    for _ in range(2):
        loop.start()
        loop.start()
        assert loop.alive
        await asyncio.sleep(0)
        await loop.stop()
        await loop.stop()
        assert not loop.alive
    assert len(starts) == 2


async def test_stop_waits_until_the_loop_has_cleaned_up():
    cleaned, running = [], asyncio.Event()

    async def run():
        try:
            running.set()
            await forever()
        finally:
            await asyncio.sleep(0)
            cleaned.append(True)

    loop = SupervisedLoop("fetch", run, lambda *_: None)
    loop.start()
    await running.wait()
    await loop.stop()
    assert cleaned == [True]


async def test_a_loop_that_fails_while_it_is_cancelled_is_not_started_again():
    starts, running = [], asyncio.Event()

    async def run():
        starts.append(None)
        running.set()
        try:
            await forever()
        except asyncio.CancelledError:
            raise LookupError from None

    told = []
    loop = SupervisedLoop("fetch", run, lambda name, _: told.append(name))
    loop.start()
    await running.wait()
    async with asyncio.timeout(20):
        await loop.stop()
    assert not loop.alive
    assert (len(starts), told) == (1, ["fetch"])


async def test_a_cancellation_that_is_swallowed_once_is_repeated():
    swallowed, running = [], asyncio.Event()

    async def run():
        while True:
            running.set()
            try:
                await forever()
            except asyncio.CancelledError:
                if swallowed:
                    raise
                swallowed.append(True)

    loop = SupervisedLoop("fetch", run, lambda *_: None)
    loop.start()
    await running.wait()
    async with asyncio.timeout(20):
        await loop.stop()
    assert not loop.alive
    assert swallowed == [True]


async def test_its_task_has_its_name():
    names = []

    async def run():
        names.append(asyncio.current_task().get_name())

    loop = SupervisedLoop("worker-3", run, lambda *_: None)
    loop.start()
    await until(lambda: not loop.alive)
    assert names == ["worker-3"]


@pytest.mark.parametrize(
    "error",
    [
        SystemExit(3),
        KeyboardInterrupt(),
        GeneratorExit(),
        asyncio.CancelledError("a future that somebody else has cancelled"),
        BaseExceptionGroup("several", [SystemExit(1)]),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_no_exception_ends_a_loop_but_its_own_cancellation(pauses, error):
    told = []
    run, starts = failing(2, error)
    loop = SupervisedLoop("fetch", run, lambda *failure: told.append(failure))
    loop.start()
    await until(lambda: len(starts) == 3)
    assert told == [("fetch", error)] * 2
    assert loop.alive
    await loop.stop()
    assert len(told) == 2  # its own cancellation is not a failure


async def test_a_loop_goes_on_when_its_failure_cannot_be_told(pauses, caplog):
    def tell(*_):
        raise SystemExit("a listener")

    run, starts = failing(1)
    loop = SupervisedLoop("fetch", run, tell)
    loop.start()
    await until(lambda: len(starts) == 2)
    assert loop.alive
    assert caplog.messages == ["the failure of fetch could not be told"]
    await loop.stop()


def test_a_loop_whose_event_loop_is_gone_is_closed_without_a_word():
    told = []

    async def main():
        loop = SupervisedLoop("fetch", forever, lambda *failure: told.append(failure))
        loop.start()
        await asyncio.sleep(0)
        return loop._task.get_coro()

    loop = asyncio.new_event_loop()
    coroutine = loop.run_until_complete(main())
    coroutine.close()  # raises when it does not end
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    assert told == []
