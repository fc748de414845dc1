"""The figures as tables on a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from benchmarks.goals import Goal
from benchmarks.limits import NAMES
from benchmarks.measurements import ALL
from benchmarks.results import Figures, Results

# Figure -> heading and format.
COLUMNS = {
    "per_second": ("a second", ",.0f"),
    "worker_us": ("worker us", ",.0f"),
    "client_us": ("producer us", ",.0f"),
    "redis_us": ("Redis us", ",.1f"),
    "commands": ("commands", ",.1f"),
    "round_trips": ("round trips", ",.2f"),
    "round_trips_per_second": ("redis-py's", ",.0f"),
    "percent": ("%", ",.1f"),
    "bytes": ("bytes", ",.0f"),
    "peak_mb": ("peak MiB", ",.0f"),
    "p50_ms": ("p50 ms", ",.2f"),
    "p99_ms": ("p99 ms", ",.2f"),
    "samples": ("samples", ",.0f"),
    "idle_mb": ("idle MiB", ",.0f"),
    "idle_commands_s": ("idle commands/s", ",.1f"),
    "idle_round_trips_s": ("idle round trips/s", ",.1f"),
    "idle_beyond_s": ("beyond blocking/s", ",.1f"),
    "idle_cpu_percent": ("idle CPU %", ",.1f"),
    "seconds": ("seconds", ",.1f"),
    "missing": ("missing", ",.0f"),
}


def show(results: Results, console: Console | None = None) -> None:
    """All tables."""
    console = console or Console()
    console.print(f"[bold]{results.machine}[/bold]\n{results.command}")
    if results.disturbed:
        console.print(results.disturbed, style="yellow")
    for measurement in ALL:
        figures, errors = results.of(measurement.name), results.errors.get(measurement.name, {})
        if measurement.name == "backlog" and figures:
            console.print(backlog_table(figures["ours"]))
        elif figures or errors:
            console.print(table(measurement.title, figures, errors))
    if results.limits:
        console.print(limits_table(results))
    console.print(settings_table(results))


def table(title: str, figures: dict[str, Figures], errors: dict[str, str]) -> Table:
    """One measurement, fastest first."""
    names = [name for name in COLUMNS if any(name in one for one in figures.values())]
    made = Table(title=title, title_justify="left", title_style="bold")
    made.add_column("system")
    for name in names:
        made.add_column(COLUMNS[name][0], justify="right")
    for system in sorted(figures, key=lambda system: rank(figures[system])):
        style = "bold green" if system.startswith("ours") else ""
        cells = [format(figures[system][name], COLUMNS[name][1]) if name in figures[system] else "" for name in names]
        made.add_row(system, *cells, style=style)
    for system, error in errors.items():
        made.add_row(system, error, style="red")
    return made


def rank(figures: Figures) -> float:
    """The less the better."""
    if "per_second" in figures:
        return -figures["per_second"]
    return figures.get("p50_ms", figures.get("seconds", 0.0) + 1000 * figures.get("missing", 0.0))


def backlog_table(figures: Figures) -> Table:
    made = Table(title="cost as the backlog grows (ours)", title_justify="left", title_style="bold")
    sizes = sorted({int(name.partition("@")[2]) for name in figures})
    made.add_column("each")
    for size in sizes:
        made.add_column(f"{size:,} waiting", justify="right")
    for name in dict.fromkeys(name.partition("@")[0] for name in figures):
        made.add_row(name.replace("_", " "), *[f"{figures[f'{name}@{size}']:,.1f}" for size in sizes])
    return made


def limits_table(results: Results) -> Table:
    made = Table(title="limits", title_justify="left", title_style="bold")
    for heading in ("what", "a second", "how"):
        made.add_column(heading, justify="right" if heading == "a second" else "left")
    for name, how in NAMES.items():
        value = results.limit(name)
        if value is not None:
            made.add_row(name, f"{value:,.0f}", how)
    return made


def settings_table(results: Results) -> Table:
    made = Table(title="settings", title_justify="left", title_style="bold")
    for heading in ("system", "version", "settings"):
        made.add_column(heading)
    for name, described in results.systems.items():
        versions = ", ".join(f"{package} {version}" for package, version in described["versions"].items())
        made.add_row(name, versions, "\n".join(f"{purpose}: {text}" for purpose, text in described["settings"].items()))
    for name, why in results.absent.items():
        made.add_row(name, "absent", why, style="red")
    return made


def show_goals(goals: Sequence[Goal], console: Console | None = None) -> None:
    """The goals that this run can tell of."""
    made = Table(title="goals", title_justify="left", title_style="bold")
    for heading in ("", "goal", "bound", "figure", "held?"):
        made.add_column(heading, justify="right" if heading in {"bound", "figure"} else "left")
    for goal in goals:
        if goal.figure is None:
            continue
        bound = f"{'>=' if goal.at_least else '<='} {goal.bound:,g} {goal.unit}".strip()
        figure = f"{goal.figure:,.2f} {goal.unit}".strip()
        text = f"{goal.text} ({goal.against})" if goal.against else goal.text
        made.add_row(goal.number, text, bound, figure, "yes" if goal.held else "NO", style="" if goal.held else "red")
    (console or Console()).print(made)


def plain(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table of text whose first column says what, and the others how much."""
    made = Table(title=title, title_justify="left", title_style="bold")
    for number, heading in enumerate(heads):
        made.add_column(heading, justify="right" if number else "left")
    for row in rows:
        made.add_row(*row)
    return made
