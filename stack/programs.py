"""The programs of the stack, each as a child process that is ended by its process id."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

START_LIMIT: Final = 30.0
STOP_LIMIT: Final = 15.0
HOST: Final = "127.0.0.1"


class StackError(Exception):
    """A program of the stack did not start; the text says which, and quotes its log."""


def free_port(preferred: int = 0) -> int:
    """The preferred port when nobody listens there, else another."""
    for port in (preferred, 0):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((HOST, port))
            return int(probe.getsockname()[1])
    raise StackError("no free port on 127.0.0.1")


@dataclass
class Program:
    """One child process.

    Attributes:
        name: as it is shown.
        url: where people find it.
        ready_url: answers 200 as soon as it works.
        log: its output.
        otlp_url: where it takes spans, if it does.
        stop_limit: seconds from SIGTERM to SIGKILL.
    """

    name: str
    url: str
    ready_url: str
    log: Path
    process: subprocess.Popen[bytes]
    otlp_url: str = ""
    stop_limit: float = STOP_LIMIT

    def wait_ready(self, limit: float = START_LIMIT) -> Self:
        """Wait for the first good answer.

        Raises:
            StackError: it ended, or does not answer in time.
        """
        deadline = time.monotonic() + limit
        while not answers(self.ready_url):
            if self.process.poll() is not None:
                raise StackError(f"{self.name} ended with {self.process.returncode}: {self.last_lines()}")
            if time.monotonic() > deadline:
                raise StackError(f"{self.name} does not answer on {self.ready_url}: {self.last_lines()}")
            time.sleep(0.05)
        return self

    def ask_to_stop(self) -> None:
        """SIGTERM, unless it has ended."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)

    def stop(self) -> None:
        """SIGTERM, and SIGKILL after the limit."""
        self.ask_to_stop()
        try:
            self.process.wait(self.stop_limit)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def last_lines(self) -> str:
        """The end of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-8:])


@dataclass
class Programs:
    """All that were started, and how to end them: the last one first.

    Attributes:
        directory: of their data and logs.
    """

    directory: Path
    running: list[Program] = field(default_factory=list)

    def start(
        self,
        name: str,
        command: Sequence[str | Path],
        *,
        url: str,
        ready: str = "/",
        variables: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> Program:
        """Start a program; `Program.wait_ready` waits for it."""
        log = self.directory / f"{name.replace(' ', '-')}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(  # noqa: S603  the stack's own programs
                [str(part) for part in command],
                cwd=cwd or self.directory,
                env=os.environ | {"PYTHONUNBUFFERED": "1"} | dict(variables or {}),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for this program, which ends them in their order
            )
        program = Program(name, url, url + ready, log, process)
        self.running.append(program)
        return program

    def dead(self) -> Program | None:
        """One that has ended though nobody asked it to."""
        return next((program for program in self.running if program.process.poll() is not None), None)

    def stop(self) -> None:
        """End all, the last one first, so that none misses what it needs."""
        for program in reversed(self.running):
            program.stop()
        self.running.clear()


def answers(url: str, limit: float = 2.0) -> bool:
    """Whether a GET is answered with 200."""
    try:
        with urllib.request.urlopen(url, timeout=limit) as answer:  # noqa: S310  an address of this stack
            return bool(answer.status == http.HTTPStatus.OK)
    except (OSError, urllib.error.URLError, http.client.HTTPException):
        return False


def beside_python(name: str) -> Path:
    """A program of this virtual environment."""
    return Path(sys.executable).with_name(name)
