"""A module is imported in a thread, with a time limit; whatever it does, its operation has an outcome."""

from __future__ import annotations

import asyncio
import importlib
import sys
import threading

import pytest
from scaffold import add, given_up

from queue_system import QueueManager, QueueWorker
from queue_system.events import Event, WorkerTaskFailed
from queue_system.hooks import Hooks
from queue_system.imports import ImportPolicy
from support import running, until, until_metrics

NAMES = ("imported_by_name", "imported_by_name_two")


class Told(Hooks):
    """Remembers that tasks have failed."""

    def __init__(self) -> None:
        self.failed: list[WorkerTaskFailed] = []

    def on_event(self, event: Event) -> None:
        if isinstance(event, WorkerTaskFailed):
            self.failed.append(event)


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Writes a module that may be imported by name."""
    monkeypatch.syspath_prepend(tmp_path)
    sys.importing, sys.go_on, sys.imported_in = threading.Event(), threading.Event(), []

    def write(source: str, name: str = "imported_by_name") -> None:
        (tmp_path / f"{name}.py").write_text(source)
        importlib.invalidate_caches()

    yield write
    sys.go_on.set()
    for name in NAMES:
        sys.modules.pop(name, None)


@pytest.fixture
def told():
    return Told()


@pytest.fixture
def config(make_config, told):
    return make_config(importable_modules=ImportPolicy(NAMES), listeners=[told])


WAITS = """
import sys, threading
sys.importing.set()
sys.go_on.wait(20)
sys.imported_in.append(threading.current_thread().name)
"""


@pytest.mark.parametrize("define", ["def run", "async def run"])
async def test_the_event_loop_goes_on_meanwhile_and_the_operation_starts_after_it(config, module, define):
    module(WAITS + define + "(entity):\n    sys.imported_in.append(entity['n'])\n")

    async def quick(entity):
        return None

    def quick_sync(entity):
        return None

    add(config, quick, quick_sync)
    queue = QueueManager(config)
    async with running(config, max_workers=1, thread_pool_size=1):
        queue.enqueue_batch([{"n": 1}, {"n": 2}], "imported_by_name:run", queue_name="own")
        await until(sys.importing.is_set)
        queue.enqueue({}, quick_sync)
        await until_metrics(config, processed=1)
        assert sys.imported_in == []
        sys.go_on.set()
        await until_metrics(config, processed=3)
        queue.enqueue({}, quick)
        await until_metrics(config, processed=4)
    assert sorted(map(str, sys.imported_in)) == ["1", "2", "queue-system-import"]


@pytest.mark.parametrize("statement", ["raise SystemExit(3)", "raise KeyboardInterrupt", "raise ValueError('no')"])
async def test_a_module_that_fails_is_an_error_of_its_operation(config, module, statement):
    module(f"{statement}\ndef run(entity): pass\n")
    async with running(config):
        QueueManager(config).enqueue({}, "imported_by_name:run")
        await until_metrics(config, system_errors=1)
    (entry,) = given_up(config, system_errors=True)
    assert entry.error_type == "ImportRefusedError"
    assert entry.error_message.startswith("importing imported_by_name failed: ")


async def test_a_hung_import_has_an_outcome_is_told_and_the_worker_goes_on(config, module, told):
    module(WAITS + "def run(entity): pass\n")

    async def work(entity):
        return None

    add(config, work)
    queue = QueueManager(config)
    async with running(config, import_timeout=0.2):
        queue.enqueue_batch([{}, {}], "imported_by_name:run", queue_name="own")
        await until_metrics(config, system_errors=2)
        queue.enqueue({}, work)
        await until_metrics(config, processed=1)
    (failed,) = told.failed
    assert failed.task == "import"
    assert failed.reason.startswith("importing imported_by_name has not ended within 0.2 s; its thread is in\n")
    assert "sys.go_on.wait(20)" in failed.reason
    messages = sorted(entry.error_message for entry in given_up(config, system_errors=True))
    assert messages[0].startswith("imported_by_name was not imported: importing imported_by_name has not ended for ")
    assert messages[1].startswith("importing imported_by_name has not ended within 0.2 s: ")


async def test_a_stop_gives_back_what_waits_for_an_import(config, module):
    module(WAITS + "def run(entity): pass\n")
    queue = QueueManager(config)
    queue.enqueue({}, "imported_by_name:run", queue_name="own")
    worker = QueueWorker(config)
    await worker.start()
    await until(sys.importing.is_set)
    await worker.stop(grace=0.0)
    status = queue.get_queue_status()
    assert (status["in_flight"], status[config.get_queue_key("own")]) == (0, 1)
    metrics = config.get_metrics()
    assert (metrics["retried"], metrics["system_errors"]) == (0, 0)


async def test_a_callback_is_imported_in_a_thread_too(config, module):
    module(WAITS + "def told(data):\n    sys.imported_in.append(data['result'])\n")
    sys.go_on.set()

    async def work(entity):
        return "a result"

    add(config, work)
    async with running(config):
        QueueManager(config).enqueue({}, work, on_success="imported_by_name:told")
        await until(lambda: len(sys.imported_in) == 2)
    assert sys.imported_in == ["queue-system-import", "a result"]


async def test_a_function_that_is_not_there_is_unknown(config, module):
    module("def run(entity): pass\n")
    queue = QueueManager(config)
    async with running(config):
        queue.enqueue({}, "imported_by_name:other")
        await until(lambda: config._ensure_redis_sync().zcard(config.keys.delayed) == 1)
        await asyncio.sleep(0)
    assert "imported_by_name" not in sys.modules
