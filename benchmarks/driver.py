"""One step of a measurement: a Redis of its own, an adapter's processes, and what they cost, seen from outside.

A step's time starts when its first job has run and ends when the last one has, so that no start-up counts. CPU is that
of the worker's processes and of Redis (`INFO`), over the same time and a moment more, in which outcomes are written. A
round trip is counted as one reading of a client's socket by Redis.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

import psutil
import redis

from benchmarks.peers.common import Tally
from benchmarks.systems import ROOT, System, python_of
from queue_system.embedded import EmbeddedServer

START_SECONDS: Final = 20.0
SETTLE_SECONDS: Final = 0.3
_TICK: Final = 0.002
_PROCESS_CLOCK: Final = 2  # CPUCLOCK_SCHED of clock_getcpuclockid(3)


class StepError(Exception):
    """A step came to nothing: the system hung or ended. The text goes into the table."""


@dataclass
class Load:
    """What Redis has done so far."""

    commands: dict[str, int]
    reads: int
    cpu: float

    def since(self, before: Load) -> Load:
        commands = {name: calls - before.commands.get(name, 0) for name, calls in self.commands.items()}
        return Load({name: calls for name, calls in commands.items() if calls}, self.reads - before.reads,
                    self.cpu - before.cpu)  # fmt: skip

    @property
    def calls(self) -> int:
        """Commands, those that scripts call included; not our own looks."""
        return sum(calls for name, calls in self.commands.items() if name != "info")


class Server:
    """A Redis of its own, without persistence, and what it says of itself."""

    def __init__(self) -> None:
        self._server = EmbeddedServer()

    def __enter__(self) -> Self:
        self._server.start()
        self.url = self._server.url
        self._client = redis.Redis.from_url(self.url, socket_timeout=30)
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()
        self._server.stop()

    def load(self) -> Load:
        info: Any = self._client.info("everything")
        commands = {
            name.removeprefix("cmdstat_"): value["calls"] for name, value in info.items() if name.startswith("cmdstat_")
        }
        return Load(commands, info.get("total_reads_processed", 0), info["used_cpu_user"] + info["used_cpu_sys"])

    def flush(self) -> None:
        """Forget all keys, so that the next step finds nothing."""
        self._client.flushall()

    def memory(self) -> int:
        """Bytes of memory, the keys' own included."""
        info: Any = self._client.info("memory")
        return int(info["used_memory"])

    def version(self) -> str:
        info: Any = self._client.info("server")
        return str(info["redis_version"])


class Step:
    """One system on one server, with counts of its own. Ends every process that it started."""

    def __init__(self, system: System, server: Server, extra: Mapping[str, str] | None = None) -> None:
        self.system, self.server = system, server
        self._extra = dict(extra or {})
        self._python = python_of(system)
        self._workers: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        shared = pathlib.Path("/dev/shm")
        self._temporary = tempfile.TemporaryDirectory(
            prefix="queue-system-bench-", dir=shared if shared.is_dir() else None
        )
        self.directory = pathlib.Path(self._temporary.name)
        self.tally = Tally(self.directory)
        return self

    def __exit__(self, *_: object) -> None:
        self.kill_workers()
        self._temporary.cleanup()

    def ask(self, command: str, *, timeout: float = 120.0, **options: object) -> Any:
        """Run the adapter to its end and read what it prints."""
        try:
            done = subprocess.run(
                self._command(command, options),
                env=self._environment(),
                cwd=ROOT,
                capture_output=True,
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise StepError(f"{command}: no end within {timeout:.0f} s") from None
        if done.returncode:
            raise StepError(f"{command}: {_last_line(done.stderr)}")
        return json.loads(done.stdout.splitlines()[-1])

    def start_worker(self, purpose: str, kind: str, concurrency: int, extra: Mapping[str, str] | None = None) -> None:
        """Start one worker command; `extra` is its own environment."""
        log = (self.directory / "worker.log").open("ab")
        with log:
            command = self._command("work", {"purpose": purpose, "kind": kind, "concurrency": concurrency})
            environment = self._environment() | dict(extra or {})
            self._workers.append(
                subprocess.Popen(command, env=environment, cwd=ROOT, stdin=subprocess.DEVNULL,
                                 stdout=log, stderr=log, start_new_session=True)
            )  # fmt: skip

    def kill_workers(self) -> None:
        """SIGKILL for each worker and each of its children."""
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        for worker in self._workers:
            worker.kill()
            worker.wait(timeout=10)
        self._workers.clear()

    def stop_workers(self, seconds: float) -> None:
        """SIGTERM for each worker, and wait until they have ended in good order."""
        for worker in self._workers:
            worker.terminate()
        for worker in self._workers:
            try:
                code = worker.wait(timeout=seconds)
            except subprocess.TimeoutExpired:
                raise StepError(f"the worker did not stop within {seconds:.0f} s; {self.log()}") from None
            if code:
                raise StepError(f"the worker stopped with {code}: {self.log()}")
        self._workers.clear()

    def processes(self) -> list[psutil.Process]:
        """The workers and all that they have started."""
        found: list[psutil.Process] = []
        for worker in self._workers:
            with contextlib.suppress(psutil.NoSuchProcess):
                process = psutil.Process(worker.pid)
                found += [process, *process.children(recursive=True)]
        return found

    def cpu(self) -> float:
        """Seconds, user and system, of all of them."""
        total = 0.0
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                total += _cpu(process)
        return total

    def resident(self, field: str = "VmRSS") -> int:
        """Bytes of memory of all of them: ``VmRSS`` now, ``VmHWM`` the peak."""
        return sum(_status(process.pid, field) for process in self.processes())

    def wait_for(self, count: int, seconds: float, what: str) -> None:
        """Wait until so many jobs have run."""
        deadline = time.monotonic() + seconds
        while self.tally.count() < count:
            self.check_alive()
            if time.monotonic() > deadline:
                raise StepError(f"{what}: {self.tally.count()} of {count} within {seconds:.0f} s; {self.log()}")
            time.sleep(_TICK)

    def check_alive(self) -> None:
        if any(worker.poll() is not None for worker in self._workers):
            raise StepError(f"the worker ended: {self.log()}")

    def log(self) -> str:
        """The last line that a worker wrote."""
        path = self.directory / "worker.log"
        return _last_line(path.read_bytes()) if path.exists() else ""

    def _command(self, command: str, options: Mapping[str, object]) -> list[str]:
        arguments = [part for name, value in options.items() for part in (f"--{name}", str(value))]
        return [self._python, "-m", f"benchmarks.peers.{self.system.adapter}", command, *arguments]

    def _environment(self) -> dict[str, str]:
        return os.environ | {
            "BENCH_REDIS": self.server.url,
            "BENCH_COUNTS": str(self.directory),
            "BENCH_VARIANT": self.system.variant,
            "PYTHONDONTWRITEBYTECODE": "1",
            **self._extra,
        }


@contextlib.contextmanager
def step(system: System, extra: Mapping[str, str] | None = None) -> Iterator[Step]:
    """A step on a new server."""
    with Server() as server, Step(system, server, extra) as started:
        yield started


def _cpu(process: psutil.Process) -> float:
    """Seconds of CPU that a process has taken."""
    if sys.platform == "linux":  # where each process has a clock that others may read: ticks of 10 ms are too coarse
        try:
            return time.clock_gettime((~process.pid << 3) | _PROCESS_CLOCK)
        except OSError:
            raise psutil.NoSuchProcess(process.pid) from None
    times = process.cpu_times()
    return times.user + times.system


def _status(pid: int, field: str) -> int:
    try:
        lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), 0)


def _last_line(text: bytes) -> str:
    lines = [line for line in text.decode(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it said nothing"
