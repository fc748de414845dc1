"""A module is imported in a thread, with a time limit; whatever it does, its operation has an outcome."""

from __future__ import annotations

import asyncio
import importlib
import sys
import threading

import pytest
from fakes import Recorder
from scaffold import add, given_up

from queue_system import QueueManager, QueueWorker
from queue_system.events import WorkerTaskFailed
from queue_system.imports import ImportPolicy
from support import running, until, until_metrics

NAMES = ("h7_mod", "h7_mod_two")


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Writes a module that may be imported by name."""
    monkeypatch.syspath_prepend(tmp_path)
    sys.importing, sys.go_on, sys.imported_in = threading.Event(), threading.Event(), []

    def write(source: str, name: str = "h7_mod") -> None:
        (tmp_path / f"{name}.py").write_text(source)
        importlib.invalidate_caches()

    yield write
    sys.go_on.set()
    for name in NAMES:
        sys.modules.pop(name, None)


@pytest.fixture
def config(make_config):
    recorder = Recorder()
    config = make_config(importable_modules=ImportPolicy(NAMES), listeners=[recorder])
    config.recorder = recorder
    return config


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
        queue.enqueue_batch([{"n": 1}, {"n": 2}], "h7_mod:run", queue_name="own")
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
        QueueManager(config).enqueue({}, "h7_mod:run")
        await until_metrics(config, system_errors=1)
    (entry,) = given_up(config, system_errors=True)
    assert entry.error_type == "ImportRefusedError"
    assert entry.error_message.startswith("importing h7_mod failed: ")


async def test_a_hung_import_has_an_outcome_is_told_and_the_worker_goes_on(config, module):
    module(WAITS + "def run(entity): pass\n")

    async def work(entity):
        return None

    add(config, work)
    queue = QueueManager(config)
    async with running(config, import_timeout=0.2):
        queue.enqueue_batch([{}, {}], "h7_mod:run", queue_name="own")
        await until_metrics(config, system_errors=2)
        queue.enqueue({}, work)
        await until_metrics(config, processed=1)
        (told,) = config.recorder.of(WorkerTaskFailed)
    assert told.task == "import"
    assert told.reason.startswith("importing h7_mod has not ended within 0.2 s; its thread is in\n")
    assert "sys.go_on.wait(20)" in told.reason
    messages = sorted(entry.error_message for entry in given_up(config, system_errors=True))
    assert messages[0].startswith("h7_mod was not imported: importing h7_mod has not ended for ")
    assert messages[1].startswith("importing h7_mod has not ended within 0.2 s: ")


async def test_a_stop_gives_back_what_waits_for_an_import(config, module):
    module(WAITS + "def run(entity): pass\n")
    queue = QueueManager(config)
    queue.enqueue({}, "h7_mod:run", queue_name="own")
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
        QueueManager(config).enqueue({}, work, on_success="h7_mod:told")
        await until(lambda: len(sys.imported_in) == 2)
    assert sys.imported_in == ["queue-system-import", "a result"]


async def test_a_function_that_is_not_there_is_unknown(config, module):
    module("def run(entity): pass\n")
    queue = QueueManager(config)
    async with running(config):
        queue.enqueue({}, "h7_mod:other")
        await until(lambda: config._ensure_redis_sync().zcard(config.keys.delayed) == 1)
        await asyncio.sleep(0)
    assert "h7_mod" not in sys.modules
