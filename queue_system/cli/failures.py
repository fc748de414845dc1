"""``queue-system failures list|show|retry|purge``."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Final, TypeAlias

import typer
from rich.console import Group, RenderableType
from rich.highlighter import JSONHighlighter
from rich.padding import Padding
from rich.style import Style
from rich.table import Table
from rich.text import Text

from queue_system.cli.exits import EPILOG, REFUSED, NotFoundError, UsageError
from queue_system.cli.options import AsJson, Prefix, RedisUrl, SystemErrors, TraceUrl
from queue_system.cli.terminal import console, duration, lines, plain, print_error, print_json, printable, to_json
from queue_system.config import QueueConfig
from queue_system.failures import GROUPED, FailureEntry, FailureGroup, FailureStore
from queue_system.settings import TRACE_ID, Settings

app = typer.Typer(
    name="failures", help="Look at what was given up, run it again, or delete it.", no_args_is_help=True, epilog=EPILOG
)

_INDENT: Final = 2
_GAP: Final = "   "  # between two columns
_LEAST: Final = 10  # columns of what is cut

Ids: TypeAlias = Annotated[list[str] | None, typer.Argument(metavar="ID", help="Ids of operations", show_default=False)]
All: TypeAlias = Annotated[bool, typer.Option("--all", help="All of them")]


@app.command("list", epilog=EPILOG)
def list_(
    *,
    limit: Annotated[int, typer.Option(min=1, max=10_000, metavar="N", help="How many at most")] = 50,
    offset: Annotated[int, typer.Option(min=0, metavar="N", help="How many of the newest to pass over")] = 0,
    group: Annotated[bool, typer.Option("--group", help="Equal errors as one, the most frequent first")] = False,
    system_errors: SystemErrors = False,
    trace_url: TraceUrl = None,
    redis_url: RedisUrl = None,
    prefix: Prefix = None,
    as_json: AsJson = False,
) -> None:
    """List them, newest first."""
    settings = Settings.load(redis_url=redis_url, queue_prefix=prefix, trace_url=trace_url)
    with settings.config(telemetry=None) as config:
        store = FailureStore(config, system_errors=system_errors)
        if group:
            groups, total = store.groups(), store.count()
        else:
            entries, total = store.list(limit, offset), store.count()
    noun = _noun(total, system_errors)
    if group:
        _print_groups(groups, slice(offset, offset + limit), settings.trace_url, f"{total:,} {noun}", as_json=as_json)
        return
    if as_json:
        print_json([_with_link(entry.to_dict(), settings.trace_url) for entry in entries])
        return
    if not entries:
        console().print(f"no {_noun(0, system_errors)}" if total == 0 else f"none here: there are {total:,} {noun}")
        return
    out = console()
    out.print(entries_table(entries, time.time(), out.width, settings.trace_url), soft_wrap=True)
    out.print(f"{len(entries):,} of {total:,} {noun}; see one with: queue-system failures show ID", style="dim")


@app.command(epilog=EPILOG)
def show(
    operation_id: Annotated[str, typer.Argument(metavar="ID", help="Id of the operation")],
    *,
    system_errors: SystemErrors = False,
    trace_url: TraceUrl = None,
    redis_url: RedisUrl = None,
    prefix: Prefix = None,
    as_json: AsJson = False,
) -> None:
    """Show one with its entity, its error and all its attempts."""
    settings = Settings.load(redis_url=redis_url, queue_prefix=prefix, trace_url=trace_url)
    with settings.config(telemetry=None) as config:
        entry = FailureStore(config, system_errors=system_errors).get(operation_id)
    if entry is None:
        raise NotFoundError(_missing(operation_id, system_errors=system_errors))
    if as_json:
        print_json(_with_link(entry.to_dict(), settings.trace_url))
    else:
        out = console()
        out.print(entry_view(entry, out.width, settings.trace_url))


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
            _report("purged", store.purge_all(), [], system_errors=system_errors, as_json=as_json)
            return
        missing = [each for each in _unique(ids) if not store.purge(each)]
    done = len(_unique(ids)) - len(missing)
    _report("purged", done, missing, system_errors=system_errors, as_json=as_json)


def entries_table(entries: Sequence[FailureEntry], now: float, width: int, trace_url: str | None = None) -> Text:
    """One line for each entry; with `trace_url` its id is a link to its trace, in a terminal that has links."""
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
    table = lines(rows, ("id", "age", "tries", "queue", "error"), width, right=("age", "tries"))
    head, *below = table.plain.split("\n")
    start = len(head) + 1
    for entry, line in zip(entries, below, strict=True):
        if link := trace_link(entry.trace_id, trace_url):
            table.stylize(Style(link=link), start, start + len(printable(entry.operation_id)))
        start += len(line) + 1
    return table


def groups_view(groups: Sequence[FailureGroup], now: float, width: int, trace_url: str | None = None) -> Text:
    """Two lines for each group: how often and what; since when, and where to look."""
    counts = [f"{group.count:,}x" for group in groups]
    indent = max(map(len, counts), default=0) + len(_GAP)
    view = Text(no_wrap=True, overflow="ignore")
    for count, group in zip(counts, groups, strict=True):
        first, last = (duration(now - at.timestamp()) for at in (group.first, group.last))
        since = f"{last} ago" if first == last else f"{last} to {first} ago"
        processor = plain(group.processor or "unknown", "bold")
        head = plain(_told(group.error_type, group.error_message) or group.reason, "red")
        head.truncate(max(width - indent - len(processor.plain) - len(_GAP), _LEAST), overflow="ellipsis")
        view.append(count.rjust(indent - len(_GAP)), "bold").append(_GAP).append_text(processor).append(_GAP)
        view.append_text(head).append("\n" + " " * indent)
        view.append(f"{group.fingerprint}{_GAP}{since}{_GAP}such as ", "dim")
        link = trace_link(group.trace_id, trace_url)
        view.append_text(plain(group.example_id, "") if link is None else Text(group.example_id, Style(link=link)))
        view.append("\n")
    view.right_crop()
    return view


def trace_link(trace_id: str, trace_url: str | None) -> str | None:
    """Where a trace can be looked at; None without a trace, or a template."""
    return trace_url.replace(TRACE_ID, trace_id) if trace_id and trace_url else None


def entry_view(entry: FailureEntry, width: int, trace_url: str | None = None) -> RenderableType:
    """All that is known of an entry."""
    parts: list[RenderableType] = [facts_table(_facts(entry, trace_url))]
    parts += history_view(entry.history, width)
    if entry.traceback:
        parts += ["", Text("traceback", "bold"), _indented(plain(entry.traceback.rstrip(), keep="\n"))]
    return Group(*parts)


def facts_table(facts: Sequence[tuple[str, RenderableType]]) -> Table:
    """Names and values below each other."""
    table = Table.grid(padding=(0, 2))
    for name, value in facts:
        table.add_row(Text(name, "bold"), value)
    return table


def history_view(history: list[dict[str, Any]], width: int) -> list[RenderableType]:
    """The attempts of an operation under a heading; nothing when there were none."""
    return ["", Text("attempts", "bold"), _indented(_history_table(history, width - _INDENT))] if history else []


def trace_view(trace_id: str, trace_url: str | None) -> RenderableType:
    """The id of a trace, or the link to it, which a terminal makes clickable though it is longer than a line."""
    link = trace_link(trace_id, trace_url)
    return plain(trace_id) if link is None else Text(link, Style(link=link), overflow="fold")


def _facts(entry: FailureEntry, trace_url: str | None) -> list[tuple[str, RenderableType]]:
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
        ("fingerprint", entry.fingerprint),
        *([("trace", trace_view(entry.trace_id, trace_url))] if entry.trace_id else []),
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
    return _told(entry.error_type, entry.error_message)


def _told(error_type: str, message: str) -> str:
    return f"{error_type}: {(message.splitlines() or [''])[0]}".strip(": ")


def _print_groups(
    groups: Sequence[FailureGroup], shown: slice, trace_url: str | None, total: str, *, as_json: bool
) -> None:
    if as_json:
        print_json([_with_link(group.to_dict(), trace_url) for group in groups[shown]])
        return
    out = console()
    if groups[shown]:
        out.print(groups_view(groups[shown], time.time(), out.width, trace_url), soft_wrap=True)
    seen = sum(group.count for group in groups)
    among = f"the newest {seen:,} of {total}" if seen >= GROUPED else total
    out.print(f"{len(groups):,} group{'' if len(groups) == 1 else 's'} among {among}", style="dim")


def _with_link(values: dict[str, Any], trace_url: str | None) -> dict[str, Any]:
    link = trace_link(values["trace_id"], trace_url)
    return values if link is None else values | {"trace_url": link}


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
