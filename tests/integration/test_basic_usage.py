"""The "Basic Usage" program of the specification, unchanged, from a wheel installed in an empty environment."""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import json
import re
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
import redis
from packaging.requirements import Requirement
from scaffold import PROGRAMS, ROOT, leased, program, stored

from queue_system import QueueConfig
from queue_system.embedded import EmbeddedServer, find_server
from queue_system.errors import ConfigurationError
from support import missing, until, until_metrics

PORT = 6379  # the program says so
LOCK_WAIT = 60.0


@pytest.fixture
def server_of_the_program() -> Iterator[str]:
    """A Redis at the program's own address: ours, or one that is there and does not have the program's keys."""
    with _alone_on_this_machine():
        try:
            find_server()
            server = EmbeddedServer(port=PORT).start()
        except ConfigurationError:
            yield _borrowed()
            _remove_keys()
        else:
            with server:
                yield server.url


@contextlib.contextmanager
def _alone_on_this_machine() -> Iterator[None]:
    with Path(tempfile.gettempdir(), f"queue-system-tests-{PORT}.lock").open("w") as lock:
        deadline = time.monotonic() + LOCK_WAIT
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
        yield


def _borrowed() -> str:
    url = f"redis://localhost:{PORT}/0"
    try:
        with redis.Redis.from_url(url, socket_timeout=2) as client:
            if next(client.scan_iter("queue:*", count=1000), None) is not None:
                missing(f"a Redis at localhost:{PORT} without keys of a queue")
    except redis.RedisError:
        missing(f"a Redis at localhost:{PORT}, or a server and that port to start one,")
    return url


def _remove_keys() -> None:
    with redis.Redis.from_url(f"redis://localhost:{PORT}/0") as client:
        for key in client.scan_iter("queue:*", count=1000):
            client.delete(key)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a new virtual environment with the wheel, and with what the wheel says that it needs."""
    directory = tmp_path_factory.mktemp("installed")
    subprocess.run([sys.executable, "-m", "venv", directory / "venv"], check=True, timeout=60)
    python = directory / "venv" / "bin" / "python"
    wheel = _build_wheel(directory, python)
    subprocess.run(
        [python, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--disable-pip-version-check", wheel],
        check=True,
        timeout=60,
    )
    _link_requirements(python)
    subprocess.run([python, "-m", "pip", "--disable-pip-version-check", "check"], check=True, timeout=60)
    return python


def _build_wheel(directory: Path, python: Path) -> Path:
    """The wheel of this checkout, by the build back end if it is here, else by pip, which downloads it."""
    if importlib.util.find_spec("hatchling"):
        command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", directory]
    else:
        command = [python, "-m", "pip", "wheel", "-q", "--no-deps", "-w", directory, ROOT]
    subprocess.run(command, check=True, cwd=ROOT, timeout=100, stdout=subprocess.DEVNULL)
    (wheel,) = directory.glob("*.whl")
    return wheel


def _link_requirements(python: Path) -> None:
    """Link the declared requirements, and theirs, from this environment: no others, and without a download."""
    query = "import json, importlib.metadata as m; print(json.dumps(m.requires('queue-system')))"
    declared = json.loads(subprocess.run([python, "-c", query], check=True, capture_output=True, timeout=60).stdout)
    (site_packages,) = python.parent.parent.glob("lib/python*/site-packages")
    for name in _closure([Requirement(text) for text in declared]):
        files = distribution(name).files or ()
        for top in {file.parts[0] for file in files if file.parts[0] not in {"..", "__pycache__"}}:
            link = site_packages / top
            if not link.exists():
                link.symlink_to(Path(sysconfig.get_path("purelib")) / top)


def _closure(wanted: list[Requirement]) -> set[str]:
    found: set[str] = set()
    seen: set[tuple[str, str]] = set()
    todo = [(requirement, "") for requirement in wanted]
    while todo:
        requirement, extra = todo.pop()
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        for asked in ("", *requirement.extras):
            if (requirement.name, asked) in seen:
                continue
            seen.add((requirement.name, asked))
            try:
                requires = distribution(requirement.name).requires or ()
            except PackageNotFoundError:
                missing(f"{requirement.name}, which the wheel needs,")
            found.add(requirement.name)
            todo += [(Requirement(text), asked) for text in requires]
    return found


def test_the_wheel_brings_all_that_the_program_imports(installed, tmp_path):
    query = "import queue_system, telemetry, utils; print(queue_system.__file__, telemetry.__file__, utils.__file__)"
    answer = subprocess.run([installed, "-c", query], check=True, capture_output=True, cwd=tmp_path, timeout=60)
    files = answer.stdout.decode().split()
    assert len(files) == 3
    for file in files:
        assert Path(file).is_relative_to(installed.parent.parent)


@pytest.mark.timeout(180)
async def test_basic_usage_runs_unchanged_from_the_wheel(installed, server_of_the_program, tmp_path):
    copy = tmp_path / "basic_usage.py"
    copy.write_bytes((PROGRAMS / "basic_usage.py").read_bytes())
    with (
        QueueConfig(redis_url=server_of_the_program, telemetry=None) as config,
        program(copy, cwd=tmp_path, python=installed) as basic_usage,
    ):
        await basic_usage.says("Successfully processed: ", timeout=60)
        await until_metrics(config, enqueued=2, processed=2, callbacks_processed=1)
        basic_usage.send(signal.SIGINT)
        assert await basic_usage.ends() != 0  # Python's own way to end after Ctrl-C
        assert re.findall("Successfully processed: (.*)", basic_usage.output()) == [
            "{'status': 'success', 'result': {'user_id': '123', 'action': 'update'}}"
        ]
        assert "KeyboardInterrupt" in basic_usage.output()
        metrics = config.get_metrics()
        assert (metrics["enqueued"], metrics["processed"], metrics["failed"]) == (2, 2, 0)
        assert (metrics["retried"], metrics["timeouts"], metrics["system_errors"]) == (0, 0, 0)
        assert metrics["workers"] == 0  # it signed off


BASIC_STYLE = """
import asyncio
from queue_system import QueueConfig, QueueManager, QueueWorker

config = QueueConfig(redis_url={redis_url!r}, queue_prefix={prefix!r})
queue = QueueManager(config=config)
worker = QueueWorker(config=config, max_workers=2, thread_pool_size=2)

async def forever(data):
    print("running", flush=True)
    await asyncio.sleep(3600)

def forever_in_a_thread(data):
    import time
    print("running", flush=True)
    time.sleep(3600)

queue.enqueue(entity={{"id": 1}}, processor=forever, operation_id="async-one", priority="high")
queue.enqueue(entity={{"id": 2}}, processor=forever_in_a_thread, operation_id="sync-one")

async def main():
    await worker.start()
    try:
        while True:
            await asyncio.sleep(1)
    except KeyboardInterrupt:
        await worker.stop()

if __name__ == "__main__":
    asyncio.run(main())
"""


async def test_ctrl_c_gives_back_what_the_program_holds(config, redis_url, prefix, tmp_path):
    """On Ctrl-C `asyncio.run` cancels the main task: the program's own `except` never runs, the worker still acts."""
    path = tmp_path / "basic_style.py"
    path.write_text(BASIC_STYLE.format(redis_url=redis_url, prefix=prefix))
    with program(path, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}) as basic_style:
        await until(lambda: basic_style.output().count("running") == 2, 30, "both operations to run")
        assert leased(config) == {"async-one", "sync-one"}
        interrupted = time.monotonic()
        basic_style.send(signal.SIGINT)
        assert await basic_style.ends() != 0
        assert time.monotonic() - interrupted < 8  # not held up by the thread that never returns
    assert leased(config) == set()
    for operation_id in ("async-one", "sync-one"):
        fields = stored(config, operation_id)
        assert fields["st"] == "ready"
        assert "at" not in fields  # no attempt burned
        assert "cr" not in fields
