"""The figures as Markdown, for docs/performance.md: nothing is copied by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from benchmarks.goals import Goal
from benchmarks.limits import NAMES
from benchmarks.results import Results

_COLUMNS: Final[dict[str, tuple[str, str, str]]] = {
    "enqueue /s": ("enqueue", "per_second", ",.0f"),
    "in bulk /s": ("bulk", "per_second", ",.0f"),
    "no-ops /s": ("drain_100", "per_second", ",.0f"),
    "at 10 /s": ("drain_10", "per_second", ",.0f"),
    "sync /s": ("drain_sync", "per_second", ",.0f"),
    "10 ms async /s": ("work_async", "per_second", ",.0f"),
    "10 ms threads /s": ("work_sync", "per_second", ",.0f"),
    "p50 ms": ("latency", "p50_ms", ",.2f"),
    "p99 ms": ("latency", "p99_ms", ",.2f"),
    "worker us": ("drain_100", "worker_us", ",.0f"),
    "Redis us": ("drain_100", "redis_us", ",.0f"),
    "round trips": ("drain_100", "round_trips", ",.2f"),
    "idle MiB": ("latency", "idle_mb", ",.0f"),
    "waiting, bytes": ("enqueue", "bytes", ",.0f"),
}


def markdown(results: Results, goals: Sequence[Goal]) -> str:
    """All that the document shows of one run."""
    parts = [
        f"`{results.command}` on {results.machine}.",
        results.disturbed,
        systems_table(results),
        recovery_table(results),
    ]
    parts += [backlog_table(results), limits_table(results), goals_table(goals), settings_table(results)]
    return "\n\n".join(part for part in parts if part) + "\n"


def systems_table(results: Results) -> str:
    names = sorted(results.systems, key=lambda name: -(results.figure("drain_100", name) or 0.0))
    columns = [title for title, (measurement, _, _) in _COLUMNS.items() if results.of(measurement)]

    def cell(system: str, title: str) -> str:
        measurement, figure, form = _COLUMNS[title]
        value = results.figure(measurement, system, figure)
        return "" if value is None else format(value, form)

    return table(["system", *columns], [[_bold(name), *[cell(name, title) for title in columns]] for name in names])


def recovery_table(results: Results) -> str:
    rows = []
    for measurement, settings in (("recovery", "default"), ("recovery_lease_5", "lease of 5 s")):
        for system, figures in sorted(results.of(measurement).items(), key=lambda item: item[1]["missing"]):
            lost = figures["missing"]
            outcome = f"{lost:.0f} missing" if lost else "all done"
            rows.append([_bold(system), settings, outcome, f"{figures['seconds']:.1f}"])
    return table(["`kill -9`", "settings", "of 1,000", "after s"], rows) if rows else ""


def backlog_table(results: Results) -> str:
    figures = results.of("backlog").get("ours", {})
    sizes = sorted({int(name.partition("@")[2]) for name in figures})
    names = dict.fromkeys(name.partition("@")[0] for name in figures)
    rows = [[name.replace("_", " "), *[f"{figures[f'{name}@{size}']:,.1f}" for size in sizes]] for name in names]
    return table(["each, at a backlog of", *[f"{size:,}" for size in sizes]], rows) if rows else ""


def limits_table(results: Results) -> str:
    known = [(name, results.limit(name), how) for name, how in NAMES.items()]
    rows = [[name, f"{value:,.0f}", how] for name, value, how in known if value is not None]
    return table(["limit of this machine", "a second", "how"], rows) if rows else ""


def goals_table(goals: Sequence[Goal]) -> str:
    rows = [
        [
            goal.text + (f" ({goal.against})" if goal.against else ""),
            f"{'at least' if goal.at_least else 'at most'} {goal.bound:,g} {goal.unit}".strip(),
            f"{goal.figure:,.2f} {goal.unit}".strip(),
            "yes" if goal.held else "no",
        ]
        for goal in goals
        if goal.figure is not None
    ]
    return table(["goal", "bound", "figure", "held"], rows) if rows else ""


def settings_table(results: Results) -> str:
    rows = []
    for name, described in results.systems.items():
        versions = ", ".join(f"{package} {version}" for package, version in described["versions"].items())
        rows.append([name, versions, "; ".join(f"{key}: {text}" for key, text in described["settings"].items())])
    rows += [[name, "absent", why] for name, why in results.absent.items()]
    return table(["system", "versions", "settings"], rows) if rows else ""


def _bold(name: str) -> str:
    return f"**{name}**" if name == "ours" else name


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    return "\n".join([line(heads), "|" + "---|" * len(heads), *[line(row) for row in rows]])
