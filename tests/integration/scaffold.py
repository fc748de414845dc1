"""Shared by the integration tests: programs in processes of their own, their notes, and looks below the surface."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from queue_system import QueueConfig
from queue_system.failures import FailureEntry, FailureStore
from support import until

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = Path(__file__).parent / "programs"
MODULE = "tests"
"""The module under which tests register their local functions."""

sys.path.append(str(PROGRAMS))
jobs = importlib.import_module("jobs")


def add(config: QueueConfig, *functions: Callable[..., Any]) -> None:
    """Register local functions as processors."""
    for function in functions:
        config.registry.register(function, name=function.__name__, module=MODULE)


def add_callbacks(config: QueueConfig, *functions: Callable[..., Any]) -> None:
    for function in functions:
        config.register_callback(function, name=function.__name__, module=MODULE)


def named(function: Callable[..., Any]) -> str:
    """The reference of a function that `add` or `add_callbacks` has registered."""
    return f"{MODULE}:{function.__name__}"


def redis_of(config: QueueConfig) -> Any:
    """A plain client: what a hostile producer, or a curious operator, has."""
    return config._ensure_redis_sync()


def stored(config: QueueConfig, operation_id: str) -> dict[str, str]:
    """The fields of an operation's hash; empty when it is gone."""
    fields = redis_of(config).hgetall(config.keys.operation(operation_id))
    return {name.decode(): value.decode("utf-8", "replace") for name, value in fields.items()}


def leased(config: QueueConfig) -> set[str]:
    return {raw.decode() for raw in redis_of(config).zrange(config.keys.leases, 0, -1)}


def given_up(config: QueueConfig, *, system_errors: bool = False) -> list[FailureEntry]:
    return FailureStore(config, system_errors=system_errors).list(limit=500)


class Note(NamedTuple):
    at: float
    pid: int
    what: str
    words: tuple[str, ...]


class Notes:
    """What the processors of `jobs` have noted, over all processes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()

    def all(self, what: str | None = None) -> list[Note]:
        notes = []
        for line in self.path.read_text().splitlines():
            at, pid, kind, *words = line.split(" ")
            if what is None or kind == what:
                notes.append(Note(float(at), int(pid), kind, tuple(words)))
        return notes

    def count(self, what: str) -> int:
        return len(self.all(what))


class Program:
    """A Python program in a process of its own; what it prints goes to a file."""

    def __init__(self, process: subprocess.Popen[bytes], output: Path) -> None:
        self.process = process
        self._output = output

    @property
    def pid(self) -> int:
        return self.process.pid

    def output(self) -> str:
        return self._output.read_text(errors="replace")

    async def says(self, text: str, timeout: float = 30.0) -> None:
        """Wait until it has printed the text; fail at once when it ends without."""
        await until(lambda: text in self.output() or self.process.poll() is not None, timeout, f"output {text!r}")
        assert text in self.output(), f"ended with {self.process.returncode}: {self.output()}"

    async def ends(self, timeout: float = 30.0) -> int:
        """Wait for its end; the exit code, negative for a signal."""
        await until(lambda: self.process.poll() is not None, timeout, "the end of the program")
        return self.process.returncode

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        """Kill it as `kill -9` does, and wait until it is gone."""
        self.process.kill()
        self.process.wait(timeout=10)


@contextlib.contextmanager
def program(
    path: Path, *args: str, cwd: Path, python: str | Path = sys.executable, env: dict[str, str] | None = None
) -> Iterator[Program]:
    """Run a program; it is killed at the end if it still runs."""
    output = cwd / f"output-{len(list(cwd.glob('output-*')))}.txt"
    environment = os.environ | {"PYTHONUNBUFFERED": "1"} | (env or {})
    with output.open("wb") as sink:
        process = subprocess.Popen(
            [str(python), str(path), *args], stdout=sink, stderr=subprocess.STDOUT, cwd=cwd, env=environment
        )
    try:
        yield Program(process, output)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(timeout=10)


@contextlib.contextmanager
def worker_program(
    config: QueueConfig,
    notes: Notes,
    *,
    dies_of_an_outcome: bool = False,
    **options: Any,
) -> Iterator[Program]:
    """The worker of ``programs/worker.py`` on a test's prefix; `options` are those of `QueueWorker`."""
    settings = {
        "redis_url": config.clients.address,
        "prefix": config.queue_prefix,
        "options": options,
        "dies_of_an_outcome": dies_of_an_outcome,
    }
    env = {jobs.RECORD_VARIABLE: str(notes.path), "PYTHONPATH": str(ROOT)}
    with program(PROGRAMS / "worker.py", json.dumps(settings), cwd=notes.path.parent, env=env) as started:
        yield started


def ids_in_order(notes: Sequence[Note]) -> list[str]:
    return [note.words[0] for note in notes]
