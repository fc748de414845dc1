"""Starts a worker's command again whenever it has ended, as Kubernetes or systemd do; here without a pause."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Final, Self

from chaos.lab import LEASE, ROOT, Lab
from chaos.liveness import Sign
from chaos.processors import LEDGER_VARIABLE

_POLL_SECONDS: Final = 0.02
_END_SECONDS: Final = 40.0
_FIGURE: Final = re.compile(r"^queue_system_((?:worker_tasks|thread_pool)_?\w*)(?:\{[^}]*\})? (\S+)", re.MULTILINE)
_ADDRESS: Final = re.compile(r"metrics on (http://\S+)/metrics")


@dataclass(frozen=True, slots=True)
class Exit:
    """One end of the process, at `at` (`time.monotonic`), after `lived` seconds."""

    code: int
    at: float
    lived: float


class Supervisor:
    """Keeps one ``queue-system worker`` running while its ``with`` block lasts; then SIGTERM.

    Args:
        lab: whose Redis, prefix and ledger the worker has.
        name: of its output, ``NAME.txt`` in the lab's directory, that of all its processes.
        args: of the command, after ``worker``.
    """

    def __init__(self, lab: Lab, name: str, args: Sequence[str]) -> None:
        self.output = lab.directory / f"{name}.txt"
        self.exits: list[Exit] = []
        self._command = [
            *(sys.executable, "-m", "chaos.command", "worker", *args),
            *("--redis-url", lab.server.url, "--prefix", lab.keys.prefix, "--lease", str(LEASE)),
            *("--log-format", "json"),
        ]
        self._environment = os.environ | {LEDGER_VARIABLE: str(lab.ledger.path), "PYTHONUNBUFFERED": "1"}
        self._ending = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        lab.watched.append(self)
        self._name = name
        self._thread = threading.Thread(target=self._supervise, name=f"supervisor-{name}", daemon=True)

    def __enter__(self) -> Self:
        self.output.touch()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join(timeout=2 * _END_SECONDS)

    @property
    def alive(self) -> bool:
        """Whether a process runs now."""
        return self._process is not None and self._process.poll() is None

    @property
    def starts(self) -> int:
        """How many processes have said that they are ready."""
        return self.text().count(" ready: ")

    def text(self) -> str:
        """What all of them have printed."""
        return self.output.read_text(errors="replace")

    def probe(self, path: str) -> tuple[int, str]:
        """Status and body of a page of the newest process's server; 0 while there is none."""
        found = _ADDRESS.findall(self.text())
        if not found:
            return 0, ""
        try:
            with urllib.request.urlopen(f"{found[-1]}{path}", timeout=2) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def sign(self) -> Sign | None:
        """What its newest process says of itself; None while there is none that answers."""
        alive, metrics = self.probe("/livez"), self.probe("/metrics")
        if not alive[0] or metrics[0] != HTTPStatus.OK:
            return None
        figures = {name: float(value) for name, value in _FIGURE.findall(metrics[1])}
        slots = (
            round(figures["worker_tasks"] - figures["worker_tasks_busy"]),
            round(figures["thread_pool_size"] - figures["thread_pool_active"]),
        )
        text = self.probe("/readyz")[1]
        checks = json.loads(text)["checks"] if text else {}
        excused = checks.get("redis") != "ok" or checks.get("state") != "ok"
        return Sign(self._name, alive[0] == HTTPStatus.OK, excused, slots)

    def _supervise(self) -> None:
        with self.output.open("ab") as sink:
            while not self._ending.is_set():
                self._run_once(sink.fileno())

    def _run_once(self, sink: int) -> None:
        began = time.monotonic()
        process = subprocess.Popen(
            self._command, cwd=ROOT, env=self._environment, stdin=subprocess.PIPE, stdout=sink, stderr=sink
        )
        self._process = process
        try:
            while process.poll() is None and not self._ending.wait(_POLL_SECONDS):
                pass
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            code = process.wait(timeout=_END_SECONDS)
            self.exits.append(Exit(code, time.monotonic(), time.monotonic() - began))
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
            if process.stdin is not None:
                process.stdin.close()


def last_lines(path: Path, count: int = 15) -> str:
    """The end of an output, for the text of an error."""
    return "\n".join(path.read_text(errors="replace").splitlines()[-count:])
