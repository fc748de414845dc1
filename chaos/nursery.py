"""Forks workers from one warm process, so that hundreds of them cost little: ``python -m chaos.nursery MODULE``.

The nursery imports the module once, and then calls its ``run(settings)`` in a fork of its own for each line of JSON
that it reads. It has no threads, so its forks are sound. What a fork prints goes to ``settings["output"]``.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import IO, Any, Final, Self

ROOT: Final = Path(__file__).resolve().parents[1]
_POLL_SECONDS: Final = 0.01
_LIMIT_SECONDS: Final = 30.0


class Child:
    """A fork of the nursery: `pid`, and `ended`, a future of its exit code (negative for a signal)."""

    def __init__(self) -> None:
        self.pid = 0
        self.born = threading.Event()
        self.ended: Future[int] = Future()

    def send(self, number: signal.Signals) -> None:
        """Send a signal; nothing happens when it is gone."""
        if not self.ended.done():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)


class Nursery:
    """The side of who wants workers; thread-safe. The nursery ends with its ``with`` block, its forks with it."""

    def __init__(self, module: str) -> None:
        self._module = module
        self._children: dict[int, Child] = {}
        self._lock = threading.Lock()
        self._number = 0

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "chaos.nursery", self._module],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True)
        self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(timeout=_LIMIT_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join(timeout=_LIMIT_SECONDS)

    def fork(self, settings: Mapping[str, Any]) -> Child:
        """A new fork that runs ``MODULE.run(settings)``."""
        child = Child()
        with self._lock:
            self._number += 1
            self._children[self._number] = child
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps({"number": self._number, "settings": settings}) + "\n")
            self._process.stdin.flush()
        if not child.born.wait(_LIMIT_SECONDS):
            raise TimeoutError("the nursery does not fork: see its output")
        return child

    def _read(self, lines: IO[str]) -> None:
        for line in lines:
            number, what, value = json.loads(line)
            child = self._children[number]
            if what == "born":
                child.pid = value
                child.born.set()
            else:
                child.ended.set_result(value)


def _serve(run: Callable[[dict[str, Any]], None]) -> None:
    forks: dict[int, int] = {}
    pending = b""
    try:
        while True:
            if select.select([0], [], [], _POLL_SECONDS)[0]:
                data = os.read(0, 65_536)
                if not data:
                    return
                *lines, pending = (pending + data).split(b"\n")
                for line in lines:
                    job = json.loads(line)
                    pid = _fork(run, job["settings"])
                    forks[pid] = job["number"]
                    _say(job["number"], "born", pid)
            _bury(forks)
    finally:
        for pid in forks:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _fork(run: Callable[[dict[str, Any]], None], settings: dict[str, Any]) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        output = os.open(settings["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for target, source in ((0, nothing), (1, output), (2, output)):
            os.dup2(source, target)
        run(settings)
        code = 0
    except BaseException:  # noqa: BLE001  the end of the fork, whatever it is
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _bury(forks: dict[int, int]) -> None:
    while forks:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        if pid in forks:
            _say(forks.pop(pid), "ended", os.waitstatus_to_exitcode(status))


def _say(*what: int | str) -> None:
    print(json.dumps(what), flush=True)


if __name__ == "__main__":
    _serve(importlib.import_module(sys.argv[1]).run)
