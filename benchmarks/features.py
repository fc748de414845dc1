"""What each feature costs: microseconds of CPU of the worker, of Redis and of the producer, for each operation.

    python -m benchmarks.features [--only NAMES] [--quick] [--rounds 3] [--json FILE] [--markdown FILE]

One producer enqueues no-ops one by one, then one worker process (100 at once; sync: 20 threads) drains them. CPU is
that from the first operation that has run to the last, and a moment more. Rows take turns within a round, and medians
over the rounds are shown; a difference is that to the default row of the same round. About two minutes.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from rich.console import Console

from benchmarks.driver import START_SECONDS, Server, Step, StepError
from benchmarks.machine import describe, names_of
from benchmarks.markdown import table
from benchmarks.measurements import Figures, enqueue_cost, watched
from benchmarks.receiver import Receiver
from benchmarks.results import Results
from benchmarks.systems import System
from benchmarks.tables import plain

LIMIT_SECONDS: Final = 60.0  # for one step to enqueue, and to drain
JOBS: Final = 5_000
QUICK_JOBS: Final = 3_000
MEASUREMENT: Final = "features"


@dataclass(frozen=True)
class Feature:
    """A row. `variant` is what `benchmarks.peers.ours` knows; `runs`: so many functions run for each operation."""

    name: str
    title: str
    variant: str = ""
    kind: str = "async"
    concurrency: int = 100
    runs: int = 1

    @property
    def system(self) -> System:
        return System(self.name, "ours", variant=self.variant)


DEFAULT: Final = Feature("metrics", "metrics and logs (the default)")
FEATURES: Final = (
    Feature("off", "nothing on (`telemetry=None`)", "off"),
    DEFAULT,
    Feature("unsampled", "spans that the sampler drops", "unsampled"),
    Feature("spans", "every span sampled and exported over OTLP/HTTP", "spans"),
    Feature("signed", "signed bodies", "signed"),
    Feature("retry", "a `retry_config` on each operation", "retry"),
    Feature("context", "a processor that takes (entity, context)", "context"),
    Feature("callback", "an `on_success` callback, its own run included", "callback", runs=2),
    Feature("done_ttl", "`done_ttl=60`", "done_ttl"),
    Feature("dedup", "a deduplication key on each operation", "dedup"),
    Feature("large", "entities of 10 kB", "large"),
    Feature("sync", "sync, in 20 threads", kind="sync", concurrency=20),
)
# Figure -> heading and format.
COLUMNS: Final = {
    "worker_us": ("worker us", ",.1f"),
    "worker_us_added": ("+/-", "+,.1f"),
    "redis_us": ("Redis us, drain", ",.1f"),
    "redis_us_added": ("+/-", "+,.1f"),
    "client_us": ("producer us", ",.1f"),
    "client_us_added": ("+/-", "+,.1f"),
    "client_redis_us": ("Redis us, enqueue", ",.1f"),
    "client_redis_us_added": ("+/-", "+,.1f"),
}
COMPARED: Final = tuple(name for name in COLUMNS if not name.endswith("_added"))

_console = Console(stderr=True)


def main() -> int:
    options = parse()
    jobs = QUICK_JOBS if options.quick else JOBS
    results = run(chosen(options.only), jobs, options.rounds or (1 if options.quick else 3))
    show(results)
    if options.json:
        results.save(options.json)
    if options.markdown:
        pathlib.Path(options.markdown).write_text(markdown(results))
    return int(bool(results.errors))


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.features", description=(__doc__ or "").splitlines()[0])
    names = [feature.name for feature in FEATURES]
    parser.add_argument(
        "--only", type=names_of(names), help=f"of {', '.join(names)}; {DEFAULT.name} is always there; default: all"
    )
    parser.add_argument("--rounds", type=int, help="default: 3, with --quick 1")
    parser.add_argument("--quick", action="store_true", help=f"one round, {QUICK_JOBS:,} operations each, not {JOBS:,}")
    parser.add_argument("--json", metavar="FILE", help="write all figures there")
    parser.add_argument("--markdown", metavar="FILE", help="write the table of docs/performance.md there")
    return parser.parse_args(arguments)


def chosen(only: Sequence[str] | None) -> list[Feature]:
    """Those named in `only`, and the default, which they are compared with; without it all."""
    return [feature for feature in FEATURES if not only or feature is DEFAULT or feature.name in only]


def run(features: Sequence[Feature], jobs: int, rounds: int) -> Results:
    """All rows, in turns. What goes wrong is noted, and the run goes on."""
    results = Results(command=shlex.join(["python", "-m", "benchmarks.features", *sys.argv[1:]]),
                      busy=os.getloadavg()[0])  # fmt: skip
    with Server() as server, Receiver() as receiver:
        results.machine = describe(server.version())
        # So that what is left of a batch of spans is exported before the worker's CPU is read.
        extra = {"BENCH_OTLP": receiver.endpoint, "OTEL_BSP_SCHEDULE_DELAY": "50"}
        for number in range(rounds):
            figures: dict[str, Figures] = {}
            for feature in features:
                _say(f"round {number + 1}: {feature.name}")
                try:
                    figures[feature.name] = measure(feature, server, jobs, extra)
                except StepError as error:
                    results.fail(MEASUREMENT, feature.name, str(error))
                    _say(f"  {error}")
            for name, one in compared(figures).items():
                results.add(MEASUREMENT, name, one)
    return results


def measure(feature: Feature, server: Server, jobs: int, extra: Mapping[str, str]) -> Figures:
    """One row: enqueue, start the worker, watch."""
    server.flush()
    with Step(feature.system, server, extra) as at:
        enqueued = enqueue_cost(at, "single", feature.kind, jobs, LIMIT_SECONDS)
        total = int(enqueued["count"]) * feature.runs
        at.start_worker("noop", feature.kind, feature.concurrency)
        at.wait_for(1, START_SECONDS, "start")
        drained = watched(at, total, LIMIT_SECONDS)
        at.wait_for(total, 0.0, "end")
    return {
        "worker_us": drained["worker_us"] * feature.runs,
        "redis_us": drained["redis_us"] * feature.runs,
        "client_us": enqueued["client_us"],
        "client_redis_us": enqueued["redis_us"],
        "per_second": drained["per_second"] / feature.runs,
    }


def compared(figures: Mapping[str, Figures]) -> dict[str, Figures]:
    """The figures of one round, and what they add to those of the default row."""
    base = figures.get(DEFAULT.name)
    if base is None:
        return dict(figures)
    return {
        name: one | {f"{figure}_added": one[figure] - base[figure] for figure in COMPARED if name != DEFAULT.name}
        for name, one in figures.items()
    }


def rows(results: Results, *, short: bool = False) -> list[list[str]]:
    """Title (or name, which is short) and figures of each row; one that failed has its error."""
    medians = results.of(MEASUREMENT)
    made = []
    for feature in FEATURES:
        title, figures = feature.name if short else feature.title, medians.get(feature.name)
        if figures is not None:
            cells = [format(figures[name], form) if name in figures else "" for name, (_, form) in COLUMNS.items()]
            made.append([title, *cells])
        elif error := results.errors.get(MEASUREMENT, {}).get(feature.name):
            made.append([title, error, *[""] * (len(COLUMNS) - 1)])
    return made


def heads() -> list[str]:
    return ["for each operation", *[heading for heading, _ in COLUMNS.values()]]


def markdown(results: Results) -> str:
    """The table, and what it was measured on."""
    parts = [f"`{results.command}` on {results.machine}.", results.disturbed, table(heads(), rows(results))]
    return "\n\n".join(part for part in parts if part) + "\n"


def show(results: Results, console: Console | None = None) -> None:
    """The same on a terminal."""
    console = console or Console()
    console.print(results.machine, highlight=False)
    if results.disturbed:
        console.print(results.disturbed, style="yellow")
    console.print(plain("what each feature costs", heads(), rows(results, short=True)))


def _say(text: str) -> None:
    _console.print(text, highlight=False, markup=False)


if __name__ == "__main__":
    sys.exit(main())
