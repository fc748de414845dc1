"""A stop that comes while a worker is still importing: as any process, and as the first one of a container.

The first process of a PID namespace never sees a signal that it has no handler for: one that comes too early is lost.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support import until

COMMANDS = {
    "script": [str(Path(sys.executable).with_name("queue-system"))],
    "module": [sys.executable, "-m", "queue_system.cli"],
}
NAMESPACE = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc", "--kill-child"]
NOWHERE = "redis://127.0.0.1:1"

# Sends itself a SIGTERM at the first import, of this package or of others, that comes after the handlers.
SITE = """
import os, signal, sys

EARLIER = {"queue_system", "queue_system.version", "queue_system.cli", "queue_system.cli.signals"}

class Stop:
    def find_spec(self, name, path=None, target=None):
        library = name.partition(".")[0] not in sys.stdlib_module_names
        if "queue_system" in sys.modules and library and name not in EARLIER:
            sys.meta_path.remove(self)
            with open("stopped_at", "w") as file:
                file.write(f"{name} {os.getpid()}")
            os.kill(os.getpid(), signal.SIGTERM)

sys.meta_path.insert(0, Stop())
"""

SLOW = """
import os, pathlib, threading
pathlib.Path("importing.new").write_text(str(os.getpid()))
os.replace("importing.new", "importing")
threading.Event().wait()
"""


@pytest.fixture(params=["process", "first"])
def before(request) -> list[str]:
    """What stands before the command, so that it is any process or the first one of a namespace."""
    if request.param == "process":
        return []
    with contextlib.suppress(OSError):
        if subprocess.run([*NAMESPACE, "true"], capture_output=True, timeout=30, check=False).returncode == 0:
            return NAMESPACE
    pytest.skip("this machine does not let us make PID namespaces")


@pytest.fixture(params=COMMANDS)
def command(request, before) -> list[str]:
    return [*before, *COMMANDS[request.param], "worker", "slow", "--redis-url", NOWHERE]


@pytest.fixture
def started(command, tmp_path) -> Iterator[tuple[subprocess.Popen[str], Callable[[], int]]]:
    """The process, and how to learn the worker's pid: that of the child where `unshare` has started it."""
    (tmp_path / "slow.py").write_text(SLOW)
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def pid() -> int:
        if command[0] != "unshare":
            return process.pid
        return int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0])

    yield process, pid
    process.kill()
    process.communicate()


def test_a_stop_before_the_package_is_imported_is_heeded(command, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(SITE)
    (tmp_path / "slow.py").write_text("open('importing', 'w').close()")
    ended = subprocess.run(
        command,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    name, pid = (tmp_path / "stopped_at").read_text().split()
    assert name in {"typer", "typing_extensions"}, "the handlers come first"
    assert (pid == "1") is (command[0] == "unshare")
    assert not (tmp_path / "importing").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
async def test_a_stop_during_a_slow_import_is_heeded(started, number, tmp_path):
    process, pid = started
    await until((tmp_path / "importing").exists, 30, "the import of the module")
    assert ((tmp_path / "importing").read_text() == "1") is (process.pid != pid())
    os.kill(pid(), number)
    assert process.communicate(timeout=30)[0] == ""
    assert process.returncode == 0


def test_other_commands_end_at_a_signal_as_any_process(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(SITE)
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    command = [*COMMANDS["module"], "status", "--redis-url", NOWHERE]
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, timeout=60, check=False)
    assert ended.returncode == -signal.SIGTERM
