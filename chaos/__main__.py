"""``python -m chaos [NAME...]``: runs the scenarios, prints a table, and exits with 1 when a promise was broken.

``CHAOS_SECONDS`` is about how long all of it takes: 300 by default, 60 or less for the short version.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.table import Table

from chaos.lab import MissingError
from chaos.report import Report
from chaos.scenario import DEFAULT_SECONDS, Plan, Scale, Scenario, all_scenarios

SECONDS_VARIABLE: Final = "CHAOS_SECONDS"
SHORT_SECONDS: Final = 60.0

# Seconds after which a scenario is broken off, whatever it waits for: so many, and so many times its share of the time.
_LEAST_LIMIT: Final = 120.0
_SHARES: Final = 20.0


def chosen_scale(environment: dict[str, str]) -> Scale:
    """The scale that ``CHAOS_SECONDS`` asks for."""
    text = environment.get(SECONDS_VARIABLE) or str(DEFAULT_SECONDS)
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise typer.BadParameter(f"{SECONDS_VARIABLE}={text!r}: give a number of seconds above 0")
    return Scale.short() if seconds <= SHORT_SECONDS else Scale.lasting(seconds)


def main(
    names: Annotated[list[str] | None, typer.Argument(help="scenarios to run; all by default")] = None,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON instead of a table")] = False,
    only_list: Annotated[bool, typer.Option("--list", help="print the names of the scenarios")] = False,
) -> None:
    """Break workers, Redis and the network, and check what was promised."""
    scenarios = all_scenarios()
    if unknown := set(names or ()) - set(scenarios):
        raise typer.BadParameter(f"no scenario {', '.join(sorted(unknown))}; there are {', '.join(scenarios)}")
    chosen = [each for name, each in scenarios.items() if not names or name in names]
    if only_list:
        print("\n".join(f"{each.name:24} {each.fault}" for each in chosen))
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what runs is ended on the way out
    signal.signal(signal.SIGALRM, _too_long)
    reports = run_all(chosen, chosen_scale(dict(os.environ)), Console(stderr=True))
    if as_json:
        print(json.dumps({name: report.to_dict() for name, report in reports.items()}, indent=2))
    else:
        show(reports, Console())
    raise typer.Exit(0 if all(report.passed for report in reports.values()) else 1)


def run_all(scenarios: list[Scenario], scale: Scale, progress: Console) -> dict[str, Report]:
    """Run them, one after the other. One that breaks down is a problem of its own, and the rest goes on."""
    reports = {}
    for each in scenarios:
        began = time.monotonic()
        plan = each.plan(scale)
        try:
            signal.setitimer(signal.ITIMER_REAL, _LEAST_LIMIT + _SHARES * scale.seconds)
            reports[each.name] = report = each.run(plan)
        except MissingError as error:
            reports[each.name] = report = _left_out(plan, error)
        except Exception as error:  # noqa: BLE001  whatever went wrong belongs in the table
            progress.print(traceback.format_exc(), markup=False, highlight=False)
            reports[each.name] = report = _broken_down(plan, error)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0.0)
        verdict = "passed" if report.passed else "FAILED"
        progress.print(f"{each.name}: {verdict} in {time.monotonic() - began:.1f} s", markup=False, highlight=False)
    return reports


def _too_long(*_: object) -> None:
    raise TimeoutError("a call hangs that has no limit of its own")


def show(reports: dict[str, Report], console: Console) -> None:
    """The table, then the further figures and the problems."""
    table = Table("fault", "operations", "lost", "extra runs", "recovery", "promises")
    for report in reports.values():
        recovery = "-" if report.recovery is None else f"{report.recovery:.2f} s"
        verdict = "kept" if report.passed else f"[red]{len(report.problems)} broken[/red]"
        table.add_row(
            report.fault, f"{report.operations:,}", str(report.lost), str(report.extra_runs), recovery, verdict
        )
    console.print(table)
    for name, report in reports.items():
        further = ", ".join(f"{key} {value}" for key, value in report.details.items())
        console.print(f"{name}: {further}", markup=False, highlight=False)
        for problem in report.problems:
            console.print(f"  BROKEN {problem}", style="red", markup=False, highlight=False)


def _left_out(plan: Plan, error: MissingError) -> Report:
    """On a user's machine no promise is broken; where everything must be there, one is."""
    in_ci = os.environ.get("CI", "").lower() == "true"
    problems = (f"{error} is missing, and CI must have it",) if in_ci else ()
    return plan.report(operations=0, lost=0, extra_runs=0, details={"left out, missing": str(error)}, problems=problems)


def _broken_down(plan: Plan, error: Exception) -> Report:
    return plan.report(
        operations=0, lost=0, extra_runs=0, problems=(f"the scenario broke down: {type(error).__name__}: {error}",)
    )


if __name__ == "__main__":
    typer.run(main)
