"""Where a worker's CPU goes: the event loop's by part of an operation's way, and that of its other threads.

    python -m benchmarks.profile [--sync] [--spans] [--operations 20000] [--functions 15] [--markdown FILE]

One worker runs the operations without a profiler, which says what they cost; another one under cProfile, which says in
what shares. What the profiler adds to each call is measured and taken off, or parts that make many small calls would
look dearer than they are; the microseconds are estimates all the same. The time in which the event loop waits for
events is left out; a call of `send` includes the wait for the interpreter lock, where other threads want it.

A function belongs to the part that `PARTS` gives it. One that is not there, such as most of the standard library and of
what is written in C, belongs to the parts that have called it.
"""

from __future__ import annotations

import argparse
import ast
import cProfile
import functools
import os
import pathlib
import pstats
import shlex
import sys
import sysconfig
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from rich.console import Console

from benchmarks.driver import START_SECONDS, step
from benchmarks.machine import describe
from benchmarks.markdown import table
from benchmarks.measurements import FULL, drain, enqueue_cost
from benchmarks.receiver import Receiver
from benchmarks.recorder import Entry, Function, Recording, entries_of, read
from benchmarks.systems import ROOT, System
from benchmarks.tables import plain

LIMIT_SECONDS: Final = 120.0
OPERATIONS: Final = 20_000
IN_C: Final = "~"
REST: Final = "the rest"
WAITING: Final = "waiting"
LEAST_US: Final = 0.05  # what would be shown as 0.0 is left out
PART_HEADS: Final = ("part of the way", "share", "us for each", "calls for each")
FUNCTION_HEADS: Final = ("function", "own us for each", "part")

# Part -> modules (with all below them), `module:function`s and `module:Class`es; the longest that fits counts. What is
# written in C goes by its name.
PARTS: Final[dict[str, tuple[str, ...]]] = {
    "claim and reply parsing": (
        "queue_system.broker", "queue_system.keys", "queue_system.runtime.fetch", "queue_system.runtime.waiting",
        "queue_system.runtime.isolation", "queue_system.runtime.contact", "queue_system.runtime.progress",
        "queue_system.runtime.engine:Engine._claimed",
    ),
    "slots, lanes and worker tasks": (
        "queue_system.runtime.intake", "queue_system.runtime.lane", "queue_system.runtime.loops", "queue_system.eager",
        "queue_system.runtime.account", "queue_system.runtime.recycle", "queue_system.runtime.engine:Engine.done",
        "queue_system.worker:QueueWorker._worker_loop", "queue_system.worker:QueueWorker._process_queue_item",
        "queue_system.worker:QueueWorker._is_ended", "queue_system.resilience", "queue_system.utils",
    ),
    "decode and find the function": (
        "queue_system.operation", "queue_system.signing", "queue_system.registry", "queue_system.imports",
        "queue_system.functions", "queue_system.import_scope", "queue_system.runtime.importing",
        "queue_system.config", "queue_system.worker:QueueWorker._decode",
        "queue_system.worker:QueueWorker._function_for", "queue_system.worker:QueueWorker._find_processor",
        "queue_system.worker:QueueWorker._runs_on_loop",
    ),
    "attempt account": (
        "queue_system.runtime.attempts", "queue_system.runtime.incident", "queue_system.retry", "queue_system.events",
        "queue_system.checks",
        "queue_system.worker:QueueWorker._calculate_effective_timeout",
    ),
    "the call": (
        "queue_system.worker", "queue_system.runtime.calling", "queue_system.runtime.deadlines",
        "queue_system.runtime.returned", "queue_system.runtime.unheeded", "queue_system.runtime.forked",
        "queue_system.runtime.contained",
        "queue_system.runtime.pool", "queue_system.runtime.engine", "queue_system.context", "benchmarks.peers",
    ),
    "outcome and outbox": (
        "queue_system.outcome", "queue_system.errors", "queue_system.runtime.finish", "queue_system.runtime.callbacks",
        "queue_system.conversion",
        "queue_system.runtime.attempts:Attempts.finish", "queue_system.runtime.attempts:Attempts._settlement",
        "queue_system.worker:QueueWorker._finish", "queue_system.worker:QueueWorker._decide",
    ),
    "leases, reaping, heartbeat": (
        "queue_system.runtime.lease", "queue_system.runtime.reaper", "queue_system.runtime.health",
        "queue_system.runtime.engine:Engine._beat", "queue_system.runtime.engine:Engine._describe",
        "queue_system.runtime.engine:Engine._watch",
    ),
    "events": ("queue_system.hooks",),
    "metrics": (
        "telemetry.metrics", "telemetry.families", "telemetry.collector", "telemetry.catalogue", "telemetry.server",
        "telemetry.defaults", "prometheus_client", "queue_system.reader", "queue_system.summary",
    ),
    "spans": (
        "telemetry.tracing", "telemetry.spans", "telemetry.export", "telemetry.otlp", "telemetry.otlp_http",
        "telemetry.otlp_grpc", "opentelemetry",
    ),
    "logs": ("telemetry.logging", "queue_system.log", "logging", "structlog"),
    "redis client and socket": (
        "queue_system.broker.aio", "queue_system.broker.sync", "queue_system.broker.exchange",
        "queue_system.broker.wire", "queue_system.broker.clients", "queue_system.broker.lookup",
        "queue_system.broker.resend",
        "queue_system.broker.scripts", "queue_system.broker.translate", "redis", "hiredis",
        "<method 'send' of '_socket", "<method 'sendall' of '_socket", "<method 'recv' of '_socket",
        "<method 'recv_into' of '_socket",
    ),
    "asyncio": ("asyncio", "selectors", "concurrent"),
    WAITING: ("<method 'poll' of 'select.epoll'",),
}  # fmt: skip
OURS: Final = ("queue_system.", "telemetry.")

_RULES: Final = {pattern: part for part, patterns in PARTS.items() for pattern in patterns}
_console = Console(stderr=True)


@dataclass(frozen=True)
class Row:
    """What a part takes in microseconds, and its calls, for each operation; no calls are known of another thread."""

    part: str
    us: float
    calls: float | None = None


@dataclass(frozen=True)
class Burden:
    """What the profiler adds, in seconds: to the own time of a function for each call, and to that of its caller."""

    own: float
    caller: float


@dataclass(frozen=True)
class Measured:
    """What two workers did: `worker_us` is the CPU for each operation of the one that had no profiler."""

    recording: Recording
    operations: int
    worker_us: float
    machine: str


@dataclass(frozen=True)
class Report:
    """What is shown: a row for each part, and the dearest functions with their parts and microseconds."""

    title: str
    rows: list[Row]
    functions: list[tuple[str, str, float]]


def main() -> int:
    options = parse()
    measured = measure(options.operations, sync=options.sync, spans=options.spans)
    if lost := unmapped(measured.recording.entries):
        _console.print(f"no part in PARTS, so counted as {REST}: {', '.join(lost)}", highlight=False, markup=False)
    made = report(measured, shlex.join(["python", "-m", "benchmarks.profile", *sys.argv[1:]]), options.functions)
    show(made)
    if options.markdown:
        pathlib.Path(options.markdown).write_text(markdown(made))
    return 0


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profile", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sync", action="store_true", help="sync no-ops in 20 threads, not async ones, 100 at once")
    parser.add_argument("--spans", action="store_true", help="every span sampled and exported over OTLP/HTTP")
    parser.add_argument("--operations", type=int, default=OPERATIONS, help=f"default: {OPERATIONS:,}")
    parser.add_argument("--functions", type=int, default=15, help="so many of the dearest functions are listed, too")
    parser.add_argument("--markdown", metavar="FILE", help="write the tables of docs/performance.md there")
    return parser.parse_args(arguments)


def measure(operations: int, *, sync: bool, spans: bool) -> Measured:
    """A worker without the profiler, and one with it."""
    system = System("profile", "ours", variant="spans" if spans else "")
    kind, concurrency = ("sync", 20) if sync else ("async", 100)
    effort = replace(FULL, jobs=operations, fill_seconds=LIMIT_SECONDS, run_seconds=LIMIT_SECONDS)
    with Receiver() as receiver:
        extra = {"BENCH_OTLP": receiver.endpoint, "OTEL_BSP_SCHEDULE_DELAY": "50"}
        worker_us = drain(system, effort, extra, kind=kind, concurrency=concurrency)["worker_us"]
        with step(system, extra) as at:
            enqueue_cost(at, "bulk", kind, operations, LIMIT_SECONDS)
            path = str(at.directory / "profile")
            at.start_worker("noop", kind, concurrency, {"BENCH_PROFILE": path})
            at.wait_for(operations, START_SECONDS + LIMIT_SECONDS, "end")
            at.stop_workers(START_SECONDS)
            return Measured(read(path), operations, worker_us, describe(at.server.version()))


def report(measured: Measured, command: str, most: int) -> Report:
    """The dearest first."""
    entries, operations = measured.recording.entries, measured.operations
    shares = {function: parts_of(function, entries) for function in entries}
    threads = [Row(f"thread {name}", cpu / operations * 1e6) for name, cpu in measured.recording.threads.items()]
    own = scaled(
        {one: seconds for one, seconds in corrected(entries, burden()).items() if WAITING not in shares[one]},
        max(0.0, measured.worker_us - sum(row.us for row in threads)),
    )
    rows = [row for row in [*sums(own, shares, entries, operations), *threads] if row.us >= LEAST_US]
    dearest = sorted(own, key=lambda one: -own[one])[:most]
    return Report(
        f"`{command}` on {measured.machine}.",
        sorted(rows, key=lambda row: (row.calls is None, row.part == REST, -row.us)),
        [(name_of(one), " + ".join(sorted(shares[one], key=lambda part: -shares[one][part])[:2]), own[one])
         for one in dearest],
    )  # fmt: skip


def scaled(own: Mapping[Function, float], to: float) -> dict[Function, float]:
    """The same shares of another sum."""
    total = sum(own.values()) or 1.0
    return {function: seconds / total * to for function, seconds in own.items()}


def sums(
    own: Mapping[Function, float],
    shares: Mapping[Function, Mapping[str, float]],
    entries: Mapping[Function, Entry],
    operations: int,
) -> list[Row]:
    """Of all functions of each part."""
    us, calls = dict.fromkeys((*PARTS, REST), 0.0), dict.fromkeys((*PARTS, REST), 0.0)
    for function, mine in own.items():
        for part, share in shares[function].items():
            us[part] += share * mine
            calls[part] += share * entries[function].calls / operations
    return [Row(part, us[part], calls[part]) for part in us]


def parts_of(
    function: Function, entries: Mapping[Function, Entry], on_the_way: frozenset[Function] = frozenset()
) -> dict[str, float]:
    """The parts to which a function belongs, with its share of each: one, unless only its callers tell."""
    part = part_of(function)
    if part is not None:
        return {part: 1.0}
    entry = entries.get(function)
    callers = {} if entry is None else {one: own for one, (_, own) in entry.callers.items() if one not in on_the_way}
    total = sum(callers.values())
    if total <= 0:
        return {REST: 1.0}
    shares: dict[str, float] = {}
    for caller, own in callers.items():
        for part, share in parts_of(caller, entries, on_the_way | {function}).items():
            shares[part] = shares.get(part, 0.0) + share * own / total
    return shares


def part_of(function: Function) -> str | None:
    """What `PARTS` says of a function."""
    fitting = [pattern for pattern in _RULES if _fits(pattern, name_of(function))]
    return _RULES[max(fitting, key=len)] if fitting else None


def unmapped(functions: Iterable[Function]) -> list[str]:
    """The functions of this project that no part is said to have."""
    return sorted({name_of(one) for one in functions if name_of(one).startswith(OURS) and part_of(one) is None})


@functools.cache
def name_of(function: Function) -> str:
    """`module:Class.function`, or the name of what is written in C."""
    file, line, name = function
    if file == IN_C:
        return name
    return f"{_module(file)}:{_qualified(file).get(line, name)}"


def corrected(entries: Mapping[Function, Entry], each: Burden) -> dict[Function, float]:
    """Own seconds without what the profiler has added to them."""
    called: Counter[Function] = Counter()
    for entry in entries.values():
        for caller, (calls, _) in entry.callers.items():
            called[caller] += calls
    return {
        function: max(0.0, entry.own - entry.calls * each.own - called[function] * each.caller)
        for function, entry in entries.items()
    }


def burden(calls: int = 100_000, tries: int = 3) -> Burden:
    """Measured on an empty function: what it takes under the profiler that it does not take without."""

    def empty() -> None:
        pass

    def caller() -> None:
        for _ in range(calls):
            empty()

    def once() -> Burden:
        began = time.perf_counter()
        caller()
        plain_seconds = time.perf_counter() - began
        profile = cProfile.Profile()
        profile.runcall(caller)
        entries = entries_of(pstats.Stats(profile).stats)  # type: ignore[attr-defined]  # not in its stub
        own = {function[2]: entry.own for function, entry in entries.items()}
        return Burden(own["empty"] / calls, max(0.0, own["caller"] - plain_seconds) / calls)

    return min((once() for _ in range(tries)), key=lambda one: one.own + one.caller)


def part_rows(made: Report) -> list[list[str]]:
    total = sum(row.us for row in made.rows)
    shown = [*made.rows, Row("in all", total, sum(row.calls or 0.0 for row in made.rows))]
    return [
        [row.part, f"{100 * row.us / total:.1f} %", f"{row.us:.1f}", "" if row.calls is None else f"{row.calls:.1f}"]
        for row in shown
    ]


def function_rows(made: Report) -> list[list[str]]:
    return [[f"`{name}`", f"{us:.2f}", part] for name, part, us in made.functions]


def markdown(made: Report) -> str:
    """The tables, and what they were measured on."""
    parts = [made.title, table(PART_HEADS, part_rows(made))]
    parts += [table(FUNCTION_HEADS, function_rows(made))] if made.functions else []
    return "\n\n".join(parts) + "\n"


def show(made: Report, console: Console | None = None) -> None:
    """The same on a terminal."""
    console = console or Console()
    console.print(made.title, highlight=False, markup=False)
    console.print(plain("where a worker's CPU goes", PART_HEADS, part_rows(made)))
    if made.functions:
        console.print(plain("the dearest functions", FUNCTION_HEADS, function_rows(made)))


def _fits(pattern: str, name: str) -> bool:
    """Whether a name is the pattern's own, or lies below it."""
    if not name.startswith(pattern):
        return False
    return pattern.startswith("<") or name[len(pattern) : len(pattern) + 1] in {"", ".", ":"}


def _module(file: str) -> str:
    """Its dotted name. The innermost place counts: an environment may lie within the project."""
    places = (ROOT, sysconfig.get_path("platlib"), sysconfig.get_path("purelib"), sysconfig.get_path("stdlib"))
    around = [place for place in map(str, places) if file.startswith(place + os.sep)]
    if not around:
        return file
    inside = pathlib.Path(file).relative_to(max(around, key=len)).with_suffix("").parts
    return ".".join(inside).removesuffix(".__init__")


@functools.cache
def _qualified(file: str) -> dict[int, str]:
    """The first line of each function in a file (that of its first decorator), and its name with its class's."""
    path = pathlib.Path(file)
    names: dict[int, str] = {}
    if path.is_file():
        _collect(ast.parse(path.read_text("utf-8")), (), names)
    return names


def _collect(node: ast.AST, within: Sequence[str], names: dict[int, str]) -> None:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            first = min([child.lineno, *[decorator.lineno for decorator in child.decorator_list]])
            names[first] = ".".join((*within, child.name))
        inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        _collect(child, (*within, child.name) if inside else within, names)  # type: ignore[attr-defined]


if __name__ == "__main__":
    sys.exit(main())
