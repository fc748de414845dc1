"""Processes that a processor starts: they end when they are told to, leave the worker alone, and keep nothing of it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import urllib.request
from pathlib import Path

import pytest

from integration.scaffold import program
from queue_system import QueueManager
from support import until, until_metrics

SCRIPT = Path(sys.executable).with_name("queue-system")

TASKS = """
import concurrent.futures, multiprocessing, os, pathlib, signal, time
from queue_system import QueueConfig, QueueManager

own = os.environ["CHILDREN_PREFIX"]
queue = QueueManager(QueueConfig(redis_url=os.environ["QUEUE_SYSTEM_REDIS_URL"], queue_prefix=own))


def note(line):
    with open("notes", "a") as file:
        file.write(line + "\\n")


def wait_for(name):
    while not pathlib.Path(name).exists():
        time.sleep(0.01)


def pause(name):
    pathlib.Path(name).touch()
    signal.pause()


def terminate(entity):
    child = multiprocessing.get_context(entity["method"]).Process(target=pause, args=("running",))
    child.start()
    wait_for("running")
    child.terminate()
    child.join(20)
    note(f"terminated {child.exitcode}")
    child.kill()


def use_pools(entity):
    context = multiprocessing.get_context(entity["method"])
    with context.Pool(1) as pool:  # ends its processes by terminate()
        note(f"pool {sum(pool.map(abs, [-1, -2, -3]))}")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as executor:
        note(f"executor {sum(executor.map(abs, [-1, -2, -3]))}")


def enqueue_in_both(entity):
    queue.enqueue({}, "elsewhere:run", operation_id="before")  # the parent has connections
    child = os.fork()
    who = "parent" if child else "child"
    results = [queue.enqueue({}, "elsewhere:run", operation_id=f"{who}-{n}") for n in range(50)]
    right = [result["operation_id"] for result in results] == [f"{who}-{n}" for n in range(50)]
    if not child:
        os._exit(0 if right else 1)
    note(f"enqueued {right} {os.waitpid(child, 0)[1]}")


def come_back(entity):
    note(f"ran {entity['n']}")
    if entity["n"] == 0 and not os.fork():
        note("child")
        if entity["fails"]:
            raise SystemExit(3)
    elif entity["n"] == 0:
        note(f"ended {os.waitstatus_to_exitcode(os.wait()[1])}")


async def come_back_async(entity):
    come_back(entity)


def leave_a_child(entity):
    child = os.fork()
    if child == 0:
        pause("left.new")
        os._exit(0)
    wait_for("left.new")
    pathlib.Path("left.pid").write_text(str(child))
    os.replace("left.pid", "left")
"""


@pytest.fixture
async def worker(config, tmp_path, redis_url):
    """The console script's worker, one thread, with its endpoints on a free port."""
    (tmp_path / "tasks.py").write_text(TASKS)
    arguments = ["worker", "tasks", "--prefix", config.queue_prefix, "--metrics-port", "0", "--thread-pool-size", "1"]
    env = {"QUEUE_SYSTEM_REDIS_URL": redis_url, "CHILDREN_PREFIX": config.queue_prefix + "own:"}
    with program(SCRIPT, *arguments, cwd=tmp_path, env=env) as started:
        await started.says("/metrics\n")
        yield started


@pytest.fixture
def notes(tmp_path):
    path = tmp_path / "notes"
    return lambda: path.read_text().splitlines() if path.exists() else []


def port_of(worker) -> int:
    return int(worker.output().split("/metrics\n")[0].rpartition(":")[2])


def got(port: int, page: str) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/{page}", timeout=10) as answer:
        return answer.read().decode()


async def drained(worker):
    worker.send(signal.SIGTERM)
    assert await worker.ends() == 0


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
async def test_children_are_terminated_and_pools_do_not_hang(config, worker, notes, method):
    queue = QueueManager(config)
    queue.enqueue({"method": method}, "tasks:terminate")
    await until_metrics(config, 50, processed=1)
    queue.enqueue({"method": method}, "tasks:use_pools")
    await until_metrics(config, 50, processed=2)
    assert notes() == [f"terminated {-signal.SIGTERM}", "pool 6", "executor 6"]
    await drained(worker)


async def test_a_manager_works_in_both_after_a_fork(config, worker, notes):
    QueueManager(config).enqueue({}, "tasks:enqueue_in_both")
    await until_metrics(config, processed=1)
    assert notes() == ["enqueued True 0"]
    await drained(worker)


@pytest.mark.parametrize("name", ["come_back", "come_back_async"])
@pytest.mark.parametrize("fails", [False, True])
async def test_a_child_that_comes_back_is_not_the_worker(config, worker, notes, name, fails):
    """It runs nothing of what waits in its copy of the pool, and its counts are its own."""
    port = port_of(worker)
    entities = [{"n": n, "fails": fails} for n in range(5)]
    QueueManager(config).enqueue_batch(entities, f"tasks:{name}", queue_name="jobs")
    await until_metrics(config, processed=5)
    assert sorted(notes()) == sorted(["child", f"ended {3 if fails else 0}", *(f"ran {n}" for n in range(5))])
    processed = [line for line in got(port, "metrics").splitlines() if "processed_total{" in line]
    assert sum(float(line.rpartition(" ")[2]) for line in processed) == 5, processed
    await drained(worker)


async def test_a_child_keeps_neither_port_nor_connections(config, worker, tmp_path):
    port = port_of(worker)
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        client.sendall(b"GET /livez HTTP/1.1\r\n")
        assert '"status": "ok"' in got(port, "livez")  # so the client before has been accepted
        QueueManager(config).enqueue({}, "tasks:leave_a_child")
        await until((tmp_path / "left").exists, what="the child")
        child = int((tmp_path / "left").read_text())
        try:
            worker.kill()
            with contextlib.suppress(ConnectionResetError):
                assert client.recv(1) == b"", "the end of the connection"
            with socket.socket() as other:
                other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                other.bind(("127.0.0.1", port))
                other.listen()
            os.kill(child, 0)  # it is alive
        finally:
            os.kill(child, signal.SIGKILL)
