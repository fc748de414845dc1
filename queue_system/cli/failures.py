"""``queue-system failures list|show|retry|purge``."""

from __future__ import annotations

import sys
import time
from datetime import UTC, datetime
from typing import Annotated, Any, Final, TypeAlias

import typer
from rich.console import Group, RenderableType
from rich.highlighter import JSONHighlighter
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from queue_system.cli.exits import EPILOG, REFUSED, NotFoundError, UsageError
from queue_system.cli.options import AsJson, Prefix, RedisUrl, SystemErrors
from queue_system.cli.terminal import console, duration, lines, plain, print_error, print_json, to_json
from queue_system.config import QueueConfig
from queue_system.failures import FailureEntry, FailureStore
from queue_system.settings import Settings

app = typer.Typer(
    name="failures", help="Look at what was given up, run it again, or delete it.", no_args_is_help=True, epilog=EPILOG
)

_INDENT: Final = 2

Ids: TypeAlias = Annotated[list[str] | None, typer.Argument(metavar="ID", help="Ids of operations", show_default=False)]
All: TypeAlias = Annotated[bool, typer.Option("--all", help="All of them")]


@app.command("list", epilog=EPILOG)
def list_(
    *,
    limit: Annotated[int, typer.Option(min=1, max=10_000, metavar="N", help="How many at most")] = 50,
    offset: Annotated[int, typer.Option(min=0, metavar="N", help="How many of the newest to pass over")] = 0,
    system_errors: SystemErrors = False,
    redis_url: RedisUrl = None,
    prefix: Prefix = None,
    as_json: AsJson = False,
) -> None:
    """List them, newest first."""
    with _config(redis_url, prefix) as config:
        store = FailureStore(config, system_errors=system_errors)
        entries, total = store.list(limit, offset), store.count()
    if as_json:
        print_json([entry.to_dict() for entry in entries])
        return
    noun = _noun(total, system_errors)
    if not entries:
        console().print(f"no {_noun(0, system_errors)}" if total == 0 else f"none here: there are {total:,} {noun}")
        return
    out = console()
    out.print(entries_table(entries, time.time(), out.width), soft_wrap=True)
    out.print(f"{len(entries):,} of {total:,} {noun}; see one with: queue-system failures show ID", style="dim")


@app.command(epilog=EPILOG)
def show(
    operation_id: Annotated[str, typer.Argument(metavar="ID", help="Id of the operation")],
    *,
    system_errors: SystemErrors = False,
    redis_url: RedisUrl = None,
    prefix: Prefix = None,
    as_json: AsJson = False,
) -> None:
    """Show one with its entity, its error and all its attempts."""
    with _config(redis_url, prefix) as config:
        entry = FailureStore(config, system_errors=system_errors).get(operation_id)
    if entry is None:
        raise NotFoundError(_missing(operation_id, system_errors=system_errors))
    if as_json:
        print_json(entry.to_dict())
    else:
        out = console()
        out.print(entry_view(entry, out.width))


@app.command(epilog=EPILOG)
def retry(
    ids: Ids = None,
    *,
    every: All = False,
    limit: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="With --all: how many at most, newest first")
    ] = None,
    system_errors: SystemErrors = False,
    redis_url: RedisUrl = None,
    prefix: Prefix = None,
    as_json: AsJson = False,
) -> None:
    """Put them back into their queues, with all their attempts before them again."""
    _check_choice(ids, every=every)
    with _config(redis_url, prefix) as config:
        store = FailureStore(config, system_errors=system_errors)
        if every:
            _report("retried", store.retry_all(limit), [], system_errors=system_errors, as_json=as_json)
            return
        missing = [each for each in _unique(ids) if not store.retry(each)]
    done = len(_unique(ids)) - len(missing)
    _report("retried", done, missing, system_errors=system_errors, as_json=as_json)


@app.command(epilog=EPILOG)
def purge(
    ids: Ids = None,
    *,
    every: All = False,
    yes: Annotated[bool, typer.Option("--yes", help="With --all: do not ask")] = False,
    system_errors: SystemErrors = False,
    redis_url: RedisUrl = None,
    prefix: Prefix = None,
    as_json: AsJson = False,
) -> None:
    """Delete them for good."""
    _check_choice(ids, every=every)
    with _config(redis_url, prefix) as config:
        store = FailureStore(config, system_errors=system_errors)
        if every:
            if not yes:
                _confirm(store.count(), system_errors=system_errors)
            _report("purged", store.purge(), [], system_errors=system_errors, as_json=as_json)
            return
        missing = [each for each in _unique(ids) if not store.purge(each)]
    done = len(_unique(ids)) - len(missing)
    _report("purged", done, missing, system_errors=system_errors, as_json=as_json)


def entries_table(entries: list[FailureEntry], now: float, width: int) -> Text:
    """One line for each entry."""
    rows = [
        (
            entry.operation_id,
            duration(now - entry.failed_at.timestamp()),
            str(entry.attempts),
            _place(entry),
            _error_line(entry),
        )
        for entry in entries
    ]
    return lines(rows, ("id", "age", "tries", "queue", "error"), width, right=("age", "tries"))


def entry_view(entry: FailureEntry, width: int) -> RenderableType:
    """All that is known of an entry."""
    facts = Table.grid(padding=(0, 2))
    for name, value in _facts(entry):
        facts.add_row(Text(name, "bold"), value)
    parts: list[RenderableType] = [facts]
    if entry.history:
        parts += ["", Text("attempts", "bold"), _indented(_history_table(entry.history, width - _INDENT))]
    if entry.traceback:
        parts += ["", Text("traceback", "bold"), _indented(plain(entry.traceback.rstrip(), keep="\n"))]
    return Group(*parts)


def _facts(entry: FailureEntry) -> list[tuple[str, RenderableType]]:
    age = duration((datetime.now(UTC) - entry.failed_at).total_seconds())
    return [
        ("id", plain(entry.operation_id)),
        ("processor", plain(entry.processor or "unknown")),
        ("queue", plain(_place(entry))),
        ("kind", plain(entry.kind)),
        ("given up", f"{entry.failed_at:%Y-%m-%d %H:%M:%S} UTC, {age} ago"),
        ("reason", plain(entry.reason)),
        ("attempts", str(entry.attempts)),
        ("error", plain(_error_line(entry), "red")),
        ("entity", _entity(entry)),
    ]


def _entity(entry: FailureEntry) -> RenderableType:
    if entry.entity is None:
        return plain(f"cannot be decoded; {len(entry.raw):,} bytes: {entry.raw[:200]!r}", "yellow")
    return JSONHighlighter()(Text(to_json(entry.entity)))


def _history_table(history: list[dict[str, Any]], width: int) -> Text:
    rows = []
    for record in history:
        error = f"{record.get('error_type', '')}: {record.get('error', record.get('raw', ''))}".removeprefix(": ")
        cells = (record.get("attempt", "?"), *_times(record), record.get("reason", ""), record.get("worker", ""), error)
        rows.append(tuple(map(str, cells)))
    return lines(rows, ("#", "started", "took", "reason", "worker", "error"), width, right=("#", "took"))


def _indented(content: RenderableType) -> RenderableType:
    return Padding(content, (0, 0, 0, _INDENT), expand=False)


def _times(record: dict[str, Any]) -> tuple[str, str]:
    try:
        started, ended = float(record["started"]), float(record["ended"])
        return f"{datetime.fromtimestamp(started, UTC):%H:%M:%S}", f"{ended - started:.3f} s"
    except (KeyError, TypeError, ValueError, OverflowError, OSError):
        return "?", "?"


def _place(entry: FailureEntry) -> str:
    return f"{entry.priority}:{entry.queue}" if entry.queue else "unknown"


def _error_line(entry: FailureEntry) -> str:
    """The first line of the error's text, after its class."""
    first = (entry.error_message.splitlines() or [""])[0]
    return f"{entry.error_type}: {first}".strip(": ")


def _config(redis_url: str | None, prefix: str | None) -> QueueConfig:
    return Settings.load(redis_url=redis_url, queue_prefix=prefix).config(telemetry=None)


def _check_choice(ids: list[str] | None, *, every: bool) -> None:
    if bool(ids) == every:
        raise UsageError("give the ids of operations, or --all")


def _unique(ids: list[str] | None) -> list[str]:
    return list(dict.fromkeys(ids or ()))


def _confirm(count: int, *, system_errors: bool) -> None:
    if not asked_at_a_terminal():
        raise UsageError("deleting all of them needs --yes where nobody can be asked")
    if not typer.confirm(f"Delete {count:,} {_noun(count, system_errors)} for good?", err=True):
        raise typer.Exit(REFUSED)


def asked_at_a_terminal() -> bool:
    """Whether somebody can answer a question."""
    return sys.stdin.isatty()


def _report(verb: str, done: int, missing: list[str], *, system_errors: bool, as_json: bool) -> None:
    """Tell what was done, and end with an error when some id was not there."""
    if as_json:
        print_json({verb: done, "not_found": missing})
    else:
        console().print(f"{verb} {done:,} {_noun(done, system_errors)}")
        for operation_id in missing:
            print_error(_missing(operation_id, system_errors=system_errors))
    if missing:
        raise typer.Exit(REFUSED)


def _missing(operation_id: str, *, system_errors: bool) -> str:
    other = "without" if system_errors else "with"
    return f"no {_noun(1, system_errors)} has the id {operation_id!r}: look {other} --system-errors, too"


def _noun(count: int, system_errors: bool) -> str:
    noun = "system error" if system_errors else "failure"
    return noun if count == 1 else f"{noun}s"
