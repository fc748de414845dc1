"""Runs the whole system on one machine, without containers, until Ctrl-C: ``python -m stack``.

Redis, the sample application, its worker, Prometheus and Alertmanager, and Jaeger when it has been built (``python -m
stack.jaeger``). Everything listens on 127.0.0.1 only, on the usual port or, when that is taken, on another. What is not
installed is left out, with the reason. Data and logs are in a temporary directory that is removed at the end.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Final

from queue_system.embedded import EmbeddedServer, find_server
from queue_system.errors import QueueError
from stack import configuration, jaeger
from stack.programs import HOST, Program, Programs, StackError, beside_python, free_port

EXAMPLES: Final = configuration.ROOT / "examples"
PORTS: Final = {
    "redis": 6379,
    "app": 8000,
    "worker": 9191,
    "prometheus": 9090,
    "alertmanager": 9093,
    "jaeger": 16686,
    "otlp": 4318,
}


@dataclass(frozen=True, slots=True)
class Options:
    """The command line.

    Attributes:
        free_ports: take free ports instead of the usual ones.
        interval: seconds between two scrapes.
        seconds: stop after so long; None to run until a signal.
        addresses: a file that gets the addresses as JSON, once all answer.
        without: programs to leave out.
    """

    free_ports: bool
    interval: int
    seconds: float | None
    addresses: Path | None
    without: frozenset[str]


class Stack:
    """All programs. `start` them, and whatever happens, `stop` them."""

    def __init__(self, options: Options, directory: Path) -> None:
        self._options = options
        self._directory = directory
        self.programs = Programs(directory)
        self.redis = EmbeddedServer(path=directory / "redis", port=self._port("redis"))
        self.left_out: dict[str, str] = {}

    def start(self) -> None:
        """Start all in the order in which they need each other, and wait until each answers."""
        self.redis.start()
        traces = self._start_jaeger()
        app, worker = self._start_app(traces), self._start_worker(traces)
        alertmanager = self._start_alertmanager()
        self._start_prometheus([app, worker], alertmanager)
        for program in self.programs.running:
            program.wait_ready()

    def stop(self) -> None:
        """Stop all: the worker drains while Redis is still there."""
        self.programs.stop()
        self.redis.stop()

    def addresses(self) -> dict[str, str]:
        """Where each is to be found."""
        return {"Redis": self.redis.url} | {program.name: program.url for program in self.programs.running}

    def _port(self, name: str) -> int:
        return free_port(0 if self._options.free_ports else PORTS[name])

    def _start_jaeger(self) -> Program | None:
        binary = jaeger.find()
        if "jaeger" in self._options.without or binary is None:
            self.left_out["Jaeger"] = "not built: python -m stack.jaeger builds it" if binary is None else "not wanted"
            return None
        return jaeger.start(self.programs, binary, query=self._port("jaeger"), otlp=self._port("otlp"))

    def _variables(self, traces: Program | None, service: str) -> dict[str, str]:
        variables = {"QUEUE_SYSTEM_REDIS_URL": self.redis.url, "QUEUE_SYSTEM_SERVICE_NAME": service}
        if traces is not None:
            variables["QUEUE_SYSTEM_OTLP_ENDPOINT"] = traces.otlp_url
        return variables

    def _start_app(self, traces: Program | None) -> Program:
        port = self._port("app")
        return self.programs.start(
            "Sample app",
            [sys.executable, "-m", "uvicorn", "sample_app:app", "--host", HOST, "--port", str(port)],
            url=f"http://{HOST}:{port}",
            variables=self._variables(traces, "sample-app"),
            cwd=EXAMPLES,
        )

    def _start_worker(self, traces: Program | None) -> Program:
        port = self._port("worker")
        return self.programs.start(
            "Worker",
            [beside_python("queue-system"), "worker", "sample_tasks", "--metrics-port", str(port), "--grace", "10"],
            url=f"http://{HOST}:{port}",
            ready="/readyz",
            variables=self._variables(traces, "sample-worker"),
            cwd=EXAMPLES,
        )

    def _start_alertmanager(self) -> Program | None:
        binary = self._find("Alertmanager", "prometheus-alertmanager", "alertmanager")
        if binary is None:
            return None
        address = f"{HOST}:{self._port('alertmanager')}"
        return self.programs.start(
            "Alertmanager",
            [
                binary,
                f"--config.file={configuration.ALERTMANAGER}",
                f"--storage.path={self._directory / 'alertmanager'}",
                f"--web.listen-address={address}",
                "--cluster.listen-address=",  # one alone: no gossip port
            ],
            url=f"http://{address}",
            ready="/-/ready",
        )

    def _start_prometheus(self, targets: list[Program], alertmanager: Program | None) -> None:
        binary = self._find("Prometheus", "prometheus")
        if binary is None:
            return
        address = f"{HOST}:{self._port('prometheus')}"
        config = configuration.write(
            self._directory,
            queue_system=[_host(target.url) for target in targets],
            prometheus=address,
            alertmanager=None if alertmanager is None else _host(alertmanager.url),
            interval=self._options.interval,
        )
        self.programs.start(
            "Prometheus",
            [
                binary,
                f"--config.file={config}",
                f"--storage.tsdb.path={self._directory / 'prometheus'}",
                f"--web.listen-address={address}",
                "--enable-feature=exemplar-storage",
            ],
            url=f"http://{address}",
            ready="/-/ready",
        )

    def _find(self, name: str, *binaries: str) -> str | None:
        if name.lower() in self._options.without:
            self.left_out[name] = "not wanted"
            return None
        found = next((path for binary in binaries if (path := shutil.which(binary))), None)
        if found is None:
            self.left_out[name] = f"no {binaries[0]} on the PATH"
        return found


def _host(url: str) -> str:
    return url.removeprefix("http://")


def main() -> int:
    """Start, tell, wait, stop."""
    options = _options()
    asked = threading.Event()

    def stop(_: int, __: FrameType | None) -> None:
        asked.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    try:
        find_server()
        with tempfile.TemporaryDirectory(prefix="queue-system-stack-") as directory:
            return _run(Stack(options, Path(directory)), options, asked)
    except (StackError, QueueError) as error:
        _say(f"stack: {error}")
        return 1


def _run(stack: Stack, options: Options, asked: threading.Event) -> int:
    try:
        stack.start()
        _tell(stack)
        if options.addresses is not None:
            unfinished = options.addresses.with_suffix(".part")
            unfinished.write_text(json.dumps(stack.addresses()))
            unfinished.rename(options.addresses)
        return _wait(stack, options, asked)
    finally:
        stack.stop()
        _say("stopped")


def _wait(stack: Stack, options: Options, asked: threading.Event) -> int:
    """Until a signal, the end of the time, or the unexpected end of a program."""
    left = options.seconds
    while not asked.wait(0.5 if left is None else min(0.5, left)):
        if (dead := stack.programs.dead()) is not None:
            raise StackError(f"{dead.name} has ended with {dead.process.returncode}: {dead.last_lines()}")
        if left is not None and (left := left - 0.5) <= 0:
            break
    return 0


def _tell(stack: Stack) -> None:
    for name, url in stack.addresses().items():
        _say(f"{name:<14}{url}")
    for name, reason in stack.left_out.items():
        _say(f"{name:<14}left out: {reason}")
    app = stack.addresses()["Sample app"]
    _say("")
    _say(f"""Enqueue:      curl {app}/enqueue -d '{{"task": "mail", "entity": {{"fails": 1}}, "count": 10}}'""")
    _say(f"Look:         curl {app}/status")
    _say("Stop:         Ctrl-C")


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _options() -> Options:
    parser = argparse.ArgumentParser(prog="python -m stack", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--free-ports", action="store_true", help="take free ports instead of the usual ones")
    parser.add_argument("--interval", type=int, default=5, metavar="SECONDS", help="between scrapes (default: 5)")
    parser.add_argument("--seconds", type=float, metavar="SECONDS", help="stop after so long")
    parser.add_argument("--addresses", type=Path, metavar="FILE", help="write the addresses there, as JSON")
    parser.add_argument("--without", action="append", default=[], metavar="NAME", help="leave it out, e.g. jaeger")
    given = parser.parse_args()
    return Options(given.free_ports, given.interval, given.seconds, given.addresses, frozenset(given.without))


if __name__ == "__main__":
    sys.exit(main())
