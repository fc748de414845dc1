"""Rounds of all measurements: every system once, then every system again. Errors are noted, and the run goes on."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from rich.console import Console

from benchmarks.driver import Server, Step, StepError
from benchmarks.machine import describe
from benchmarks.measurements import Effort, Measurement, info
from benchmarks.measurements import limits as measure_limits
from benchmarks.receiver import Receiver
from benchmarks.results import Results
from benchmarks.systems import VARIANTS, InstallError, System

_console = Console(stderr=True)


def run(
    systems: Sequence[System],
    chosen: Sequence[Measurement],
    effort: Effort,
    *,
    rounds: int,
    limits: bool,
    save: str | None,
) -> Results:
    """Measure; `save` is written after each round, so that a run which is cut off leaves what it has."""
    results = Results(command=shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]]), busy=os.getloadavg()[0])
    with Receiver() as receiver:
        extra = {"BENCH_OTLP": receiver.endpoint}
        present = introduce(systems, results, extra)
        for number in range(rounds):
            if limits:
                _say(f"round {number + 1}: limits")
                results.limits.append(measure_limits(effort))
            for measurement in chosen:
                if measurement.once and number:
                    continue
                _say(f"round {number + 1}: {measurement.title}")
                measure(measurement, present, effort, extra, results)
            if save:
                results.save(save)
    return results


def introduce(systems: Sequence[System], results: Results, extra: Mapping[str, str]) -> list[System]:
    """Install what is to be installed, and let each say what it is."""
    present: list[System] = []
    with Server() as server:
        results.machine = describe(server.version())
        for system in systems:
            _say(f"preparing {system.name}")
            try:
                with Step(system, server, extra) as at:
                    results.systems[system.name] = info(at)
            except (InstallError, StepError) as error:
                results.absent[system.name] = str(error)
                _say(f"  absent: {error}")
            else:
                present.append(system)
    return present


def measure(
    measurement: Measurement, systems: Sequence[System], effort: Effort, extra: Mapping[str, str], results: Results
) -> None:
    """One measurement of each system that it is for."""
    taking_part = [system for system in systems if _takes_part(measurement, system, results)]

    def one(system: System) -> None:
        try:
            figures = measurement.run(system, effort, extra)
        except StepError as error:
            results.fail(measurement.name, system.name, str(error))
            _say(f"  {system.name}: {error}")
        else:
            results.add(measurement.name, system.name, figures)
            _say(f"  {system.name}: " + ", ".join(f"{name} {value:,.4g}" for name, value in list(figures.items())[:4]))

    if measurement.name == "recovery":  # mostly waiting, so they wait together
        with ThreadPoolExecutor(len(taking_part) or 1) as pool:
            list(pool.map(one, taking_part))
        return
    for system in taking_part:
        one(system)


def _takes_part(measurement: Measurement, system: System, results: Results) -> bool:
    described = results.systems[system.name]
    if measurement.only_ours and system.name != "ours":
        return False
    if measurement.name == "bulk" and not described["bulk"]:
        return False
    if system in VARIANTS and not measurement.variants:
        return False
    return bool(set(measurement.kinds) & set(described["kinds"]))


def _say(text: str) -> None:
    _console.print(text, highlight=False, markup=False)
