"""An embedded server that several processes share: when its owner ends, the others find the next one.

Another `EmbeddedServer` on the same path stands for that of another process: their locks belong to the open file.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from scaffold import add, named

import queue_system.embedded as embedded_module
from queue_system import AsyncQueueManager, BrokerUnavailableError, QueueManager
from queue_system.embedded import EmbeddedServer, embedded_url
from support import running, until


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path.resolve() / "data"
    yield path
    server = embedded_module._shared.pop(path, None)
    if server is not None:
        server.stop()


def next_owner(path: Path, last: EmbeddedServer) -> EmbeddedServer:
    """Another process has started the server again, on a port of its own."""
    port = last.port
    last.stop()
    following = EmbeddedServer(path=path).start()
    assert following.port != port
    return following


async def test_managers_and_workers_find_the_server_of_the_next_owner(path, make_config):
    done = []

    async def work(entity):
        done.append(entity["n"])

    owner = EmbeddedServer(path=path).start()
    config = make_config(redis_url=f"embedded://{path}")
    add(config, work)
    queue, async_queue = QueueManager(config), AsyncQueueManager(config)
    async with running(config):
        queue.enqueue({"n": 1}, named(work))
        await async_queue.enqueue({"n": 2}, named(work))
        await until(lambda: sorted(done) == [1, 2])
        owner = next_owner(path, owner)
        queue.enqueue({"n": 3}, named(work))
        await async_queue.enqueue({"n": 4}, named(work))
        await until(lambda: sorted(done) == [1, 2, 3, 4], what="the worker has found it, too")
    QueueManager(make_config(redis_url=f"embedded://{path}")).get_queue_status()
    await async_queue.close()
    owner.stop()


async def test_without_an_owner_whoever_is_there_starts_it(path, make_config):
    owner = EmbeddedServer(path=path).start()
    queue = QueueManager(make_config(redis_url=f"embedded://{path}"))
    first = queue.enqueue({}, "tests:work", operation_id="first")
    owner.stop()
    again = queue.enqueue({}, "tests:work", operation_id="first")
    assert (first["status"], again["status"]) == ("queued", "duplicate")  # the data are there
    assert embedded_module._shared[path]._lock is not None


def test_a_forked_child_finds_it(path, make_config):
    owner = EmbeddedServer(path=path).start()
    queue = QueueManager(make_config(redis_url=f"embedded://{path}"))
    queue.enqueue({}, "tests:work")
    owner = next_owner(path, owner)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = 0 if queue.enqueue({}, "tests:work")["status"] == "queued" else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    owner.stop()


def test_a_server_that_cannot_be_found_is_an_outage(path, make_config, monkeypatch):
    queue = QueueManager(make_config(redis_url=f"embedded://{path}", max_connection_retries=1))
    queue.enqueue({}, "tests:work")

    def refuse(url: str) -> str:
        raise BrokerUnavailableError("the last server does not end")

    monkeypatch.setattr(embedded_module, "embedded_url", refuse)
    embedded_module._shared[path].stop()
    with pytest.raises(BrokerUnavailableError, match="the last server does not end") as caught:
        queue.enqueue({}, "tests:work")
    assert (caught.value.kind, caught.value.ambiguous) == ("connection", False)
    monkeypatch.undo()
    assert embedded_url(f"embedded://{path}")
    assert queue.enqueue({}, "tests:work")["status"] == "queued"
