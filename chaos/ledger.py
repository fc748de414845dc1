"""What processors did, written so that it outlives `kill -9`: one line in one `os.write` to a file opened to append.

A line is ``{time.monotonic()} {pid} {what} {operation id} {words...}``. The clock is the machine's, so lines of several
processes compare. `what` is ``start`` and ``end`` (with the number of the run within its process, then words of the
processor's own), or what a worker's listener was told: ``applied`` (with the result), ``lease_lost``.
"""

from __future__ import annotations

import itertools
import os
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

_runs = itertools.count(1)


class Writer:
    """Writes to a ledger, from any thread or process."""

    def __init__(self, path: str | Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def start(self, operation_id: str, *words: str) -> int:
        """A processor was called; returns the number of the run, for `end`."""
        run = next(_runs)
        self.write("start", operation_id, str(run), *words)
        return run

    def end(self, operation_id: str, run: int, *words: str) -> None:
        """That call is about to return."""
        self.write("end", operation_id, str(run), *words)

    def write(self, what: str, operation_id: str, *words: str) -> None:
        """One line. Words have no spaces. A strange id (a hostile one) is written in percent encoding."""
        own = operation_id if operation_id.isprintable() and " " not in operation_id else _encoded(operation_id)
        line = " ".join((f"{time.monotonic():.6f}", str(os.getpid()), what, own, *words))
        os.write(self._file, f"{line}\n".encode())

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


@dataclass(frozen=True, slots=True)
class Line:
    """One line; `at` is of `time.monotonic`."""

    at: float
    pid: int
    what: str
    operation_id: str
    words: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Run:
    """One call of a processor; `ended` is None when its process died before, or it goes on."""

    operation_id: str
    pid: int
    started: float
    ended: float | None
    words: tuple[str, ...]

    def in_flight(self, at: float, *, margin: float = 0.0) -> bool:
        """Whether it went on at that time, or ended less than `margin` seconds before."""
        return self.started <= at and (self.ended is None or self.ended + margin >= at)


class Ledger:
    """The reading side. Each method reads the file anew (in parts that it has not seen)."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.path.touch()
        self._offset = 0
        self._lines: list[Line] = []

    def lines(self, what: str | None = None) -> list[Line]:
        """All lines, or those of a kind, in the order in which they were written."""
        self._read()
        return [line for line in self._lines if what is None or line.what == what]

    def count(self, what: str) -> int:
        """How many lines of a kind."""
        return len(self.lines(what))

    def runs(self) -> dict[str, list[Run]]:
        """The runs of each operation, in the order of their starts."""
        lines = self.lines()
        ends = {(line.pid, line.words[0]): line.at for line in lines if line.what == "end"}
        runs: dict[str, list[Run]] = defaultdict(list)
        for line in lines:
            if line.what == "start":
                ended = ends.get((line.pid, line.words[0]))
                runs[line.operation_id].append(Run(line.operation_id, line.pid, line.at, ended, line.words[1:]))
        return dict(runs)

    def done(self) -> set[str]:
        """Operations of which at least one run came to its end."""
        return {line.operation_id for line in self.lines("end")}

    def applied(self) -> Counter[str]:
        """How many outcomes workers were told of, by result (processed, retried, failed, stale, ...)."""
        return Counter(line.words[0] for line in self.lines("applied"))

    def extra_runs(self) -> dict[str, int]:
        """Operations that ran more than once, with the number of runs beyond the first."""
        return {operation_id: len(runs) - 1 for operation_id, runs in self.runs().items() if len(runs) > 1}

    def in_flight_of(self, pid: int) -> set[str]:
        """Operations whose run a process never ended: what was in flight when it died."""
        return {run.operation_id for run in _flat(self.runs()) if run.pid == pid and run.ended is None}

    def in_flight_at(self, at: float, *, margin: float = 0.0) -> set[str]:
        """Operations of any process that ran at that time, or ended less than `margin` seconds before."""
        return {run.operation_id for run in _flat(self.runs()) if run.in_flight(at, margin=margin)}

    def _read(self) -> None:
        with self.path.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        self._lines += [_parse(text) for text in whole.decode().splitlines()]


def _encoded(operation_id: str) -> str:
    return quote(operation_id, errors="surrogateescape")


def _parse(text: str) -> Line:
    at, pid, what, operation_id, *words = text.split(" ")
    return Line(float(at), int(pid), what, operation_id, tuple(words))


def _flat(runs: dict[str, list[Run]]) -> Iterable[Run]:
    return itertools.chain.from_iterable(runs.values())
