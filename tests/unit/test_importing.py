"""Imports run in threads, one at a time for each package, and not for ever."""

import asyncio
import sys
import threading

import pytest

from queue_system.errors import ImportRefusedError
from queue_system.runtime.importing import Importer


@pytest.fixture
def hung():
    return []


@pytest.fixture
def importer(hung):
    return Importer(30.0, lambda module, stack: hung.append((module, stack)))


async def test_it_runs_in_a_thread_of_its_own(importer):
    thread = await importer.run("app.tasks", threading.current_thread)
    assert thread is not threading.current_thread()
    assert (thread.name, thread.daemon) == ("queue-system-import", True)


async def test_what_it_raises_is_raised(importer, hung):
    def refused():
        raise ImportRefusedError("not this one")

    def exits():
        raise SystemExit(3)

    with pytest.raises(ImportRefusedError, match="not this one"):
        await importer.run("app", refused)
    with pytest.raises(ImportRefusedError, match=r"^importing app raised SystemExit$"):
        await importer.run("app", exits)
    assert await importer.run("app", lambda: 5) == 5
    assert hung == []


async def test_of_one_package_there_are_not_two_at_once(importer):
    go_on, other_began = threading.Event(), threading.Event()
    order = []

    def first():
        assert go_on.wait(20)
        order.append("first")

    tasks = [
        asyncio.create_task(importer.run("app.a", first)),
        asyncio.create_task(importer.run("app.b", lambda: order.append("second"))),
        asyncio.create_task(importer.run("other", other_began.set)),
    ]
    await asyncio.wait_for(tasks[2], 20)  # another package does not wait
    assert (order, other_began.is_set()) == ([], True)
    go_on.set()
    await asyncio.gather(*tasks)
    assert order == ["first", "second"]


async def test_one_that_hangs_is_given_up_told_once_and_not_begun_again(hung):
    importer = Importer(0.05, lambda module, stack: hung.append((module, stack)))
    end, ended, calls = threading.Event(), threading.Event(), []

    def hangs_in_here():
        calls.append(1)
        end.wait(20)
        ended.set()

    both = [importer.run("app.slow", hangs_in_here), importer.run("app.other", hangs_in_here)]
    first, second = await asyncio.gather(*both, return_exceptions=True)
    assert "importing app.slow has not ended within 0.05 s: name the module where" in str(first)
    assert "app.other was not imported: importing app.slow has not ended for" in str(second)
    with pytest.raises(ImportRefusedError, match=r"importing app.slow has not ended"):
        await importer.run("app.third", hangs_in_here)
    assert calls == [1]
    ((module, stack),) = hung
    assert module == "app.slow"
    assert "in hangs_in_here\n" in stack
    assert await importer.run("json", lambda: 5) == 5  # the others go on
    end.set()
    while True:  # and so does the package, once the import has ended
        try:
            assert await asyncio.wait_for(importer.run("app.third", lambda: 6), 20) == 6
            break
        except ImportRefusedError:
            await asyncio.sleep(0.01)
    assert ended.is_set()


async def test_what_is_loaded_does_not_wait_for_its_package(hung, monkeypatch):
    importer = Importer(0.01, lambda module, stack: hung.append(module))
    end = threading.Event()
    monkeypatch.setitem(sys.modules, "app.loaded", object())
    with pytest.raises(ImportRefusedError):
        await importer.run("app.slow", lambda: end.wait(20))
    assert await importer.run("app.loaded", lambda: 7) == 7
    end.set()


async def test_one_whose_caller_has_gone_ends_all_the_same(importer):
    end, began = threading.Event(), threading.Event()

    def slow():
        began.set()
        end.wait(20)

    task = asyncio.create_task(importer.run("app", slow))
    await asyncio.to_thread(began.wait, 20)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    waiting = asyncio.create_task(importer.run("app", lambda: 8))
    end.set()
    assert await asyncio.wait_for(waiting, 20) == 8
