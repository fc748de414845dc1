"""``queue-system audit``."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Annotated, Final

import typer
from rich import box
from rich.console import Console, Group, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

from queue_system.audit import DEFAULT_MAX_CRASHES, AuditReport, CheckReport, ProblemReport
from queue_system.audit import Progress as Tell
from queue_system.audit import audit as audit_queue
from queue_system.cli.exits import VIOLATED
from queue_system.cli.options import AsJson, Prefix, RedisUrl
from queue_system.cli.terminal import console, plain, print_json
from queue_system.settings import Settings

_NARROW: Final = 2  # columns that the details are indented by


def audit(
    *,
    examples: Annotated[int, typer.Option("--examples", min=0, help="How many of each kind are shown")] = 10,
    max_crashes: Annotated[
        int, typer.Option("--max-crashes", min=0, help="As the workers have it")
    ] = DEFAULT_MAX_CRASHES,
    redis_url: RedisUrl = None,
    prefix: Prefix = None,
    as_json: AsJson = False,
) -> None:
    """Check on a live Redis that nothing is lost, doubled or left behind, changing nothing.

    It reads every key once, which takes about 45 s for a million operations; workers may go on.
    """
    settings = Settings.load(redis_url=redis_url, queue_prefix=prefix)
    with settings.config(telemetry=None) as config, _progress() as tell:
        report = audit_queue(config, max_crashes=max_crashes, examples=examples, on_progress=tell)
    if as_json:
        print_json(report.to_dict())
    else:
        console().print(report_view(report))
    if not report.ok:
        raise typer.Exit(VIOLATED)


@contextlib.contextmanager
def _progress() -> Iterator[Tell]:
    """A bar on stderr for each part, where somebody looks; it goes away at the end."""
    bars = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    if not bars.console.is_terminal:
        yield lambda *_: None
        return
    parts: dict[str, TaskID] = {}

    def tell(part: str, done: int, expected: int) -> None:
        if part not in parts:
            parts[part] = bars.add_task(part, total=None)
        bars.update(parts[part], completed=done, total=max(done, expected) or None)

    with bars:
        yield tell


def report_view(report: AuditReport) -> RenderableType:
    """Each check with its result, then what is wrong, with examples and what to do."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold")
    for name in ("check", "says", "result"):
        table.add_column(name)
    for check in report.checks:
        table.add_row(Text(check.name), plain(check.title), _result(check))
    parts: list[RenderableType] = [table]
    for check in report.checks:
        for problem in check.problems:
            parts += ["", *_problem_view(check, problem)]
    looked = f"{report.operations:,} operations and {report.keys:,} other keys in {report.seconds:.1f} s"
    parts += ["", *(plain(f"note: {note}", "yellow") for note in report.notes), Text(looked, "dim")]
    return Group(*parts)


def _result(check: CheckReport) -> Text:
    if check.ok:
        return Text("ok", "green")
    return Text(f"{sum(problem.found for problem in check.problems):,} wrong", "bold red")


def _problem_view(check: CheckReport, problem: ProblemReport) -> Iterator[RenderableType]:
    more = f", and {problem.unconfirmed:,} more that were seen once" if problem.unconfirmed else ""
    yield Text(f"{check.name} {problem.name.replace('_', ' ')}: {problem.found:,}{more}", "bold red")
    for example in problem.examples:
        yield plain(f"{' ' * _NARROW}{example.subject}: {example.detail}")
    if left := problem.found - len(problem.examples):
        yield Text(f"{' ' * _NARROW}... and {left:,} more (--examples)", "dim")
    yield plain(f"{' ' * _NARROW}What to do: {problem.advice}", "italic")
