"""``queue-system status``."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Final

import typer
from rich import box
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from queue_system.cli.options import AsJson, Prefix, RedisUrl
from queue_system.cli.terminal import console, plain, print_json, to_json
from queue_system.config import QueueConfig
from queue_system.errors import QueueError
from queue_system.keys import CALLBACK_QUEUE, PRIORITIES, Keys
from queue_system.manager import QueueManager
from queue_system.settings import Settings

INTERVAL: Final = 1.0

_OPERATIONS: Final = ("enqueued", "processed", "failed", "retried", "timeouts", "deduplicated", "system_errors")
_WORKERS: Final = ("workers", "thread_pool_size", "thread_pool_utilization", "thread_pool_exhaustion", "success_rate")
_PERCENT: Final = frozenset({"thread_pool_utilization", "success_rate"})
_TROUBLE: Final = frozenset({"failed", "timeouts", "system_errors", "thread_pool_exhaustion"})


def status(
    *,
    watch: Annotated[bool, typer.Option("--watch", help="Redraw every second until Ctrl-C")] = False,
    redis_url: RedisUrl = None,
    prefix: Prefix = None,
    as_json: AsJson = False,
) -> None:
    """Show the queues, what is in flight, what was given up, and the metrics."""
    with Settings.load(redis_url=redis_url, queue_prefix=prefix).config(telemetry=None) as config:
        ask = QueueManager(config).get_queue_status
        if watch:
            with contextlib.suppress(KeyboardInterrupt):
                _stream(ask) if as_json else _watch(ask, config)
        elif as_json:
            print_json(ask())
        else:
            console().print(status_view(ask(), config.keys))


def status_view(status: dict[str, Any], keys: Keys) -> RenderableType:
    """The status as tables: queues by priority, totals, metrics."""
    queues = {keys.split_ready(key): count for key, count in _queues_of(status, keys).items()}
    metrics = Table.grid(padding=(0, 6))
    metrics.add_row(_metrics_table(status["metrics"], _OPERATIONS), _metrics_table(status["metrics"], _WORKERS))
    return Group(_queue_table(queues), "", _totals(status, sum(queues.values()), keys), "", metrics)


def _queues_of(status: dict[str, Any], keys: Keys) -> dict[str, int]:
    own = tuple(f"{keys.prefix}{priority}:" for priority in PRIORITIES)
    return {key: count for key, count in status.items() if key.startswith(own)}


def _queue_table(queues: dict[tuple[str, str], int]) -> RenderableType:
    if not queues:
        return Text("no queues yet: nothing was enqueued here", "dim")
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold")
    table.add_column("queue", overflow="ellipsis", no_wrap=True, min_width=16)
    for priority in PRIORITIES:
        table.add_column(priority, justify="right", min_width=8)
    for name in sorted({name for name, _ in queues}, key=lambda name: (name == CALLBACK_QUEUE, name)):
        counts = (queues.get((name, priority)) for priority in PRIORITIES)
        label = Text("callbacks", "italic") if name == CALLBACK_QUEUE else plain(name)
        table.add_row(label, *(Text("-", "dim") if count is None else _number(count) for count in counts))
    return table


def _totals(status: dict[str, Any], ready: int, keys: Keys) -> RenderableType:
    """One line: where everything is that has not ended, and what was given up."""
    line = Text()
    for name, count, style in (
        ("ready", ready, "cyan"),
        ("delayed", status["delayed"], "cyan"),
        ("in flight", status["in_flight"], "green"),
        ("failures", status[keys.failures], "red"),
        ("system errors", status[keys.system_errors], "red"),
    ):
        line.append(f"{name} ", "bold").append(f"{count:,}", style if count else "dim").append("    ")
    return line


def _metrics_table(metrics: dict[str, Any], names: tuple[str, ...]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column()
    table.add_column(justify="right", min_width=10)
    for name in names:
        value = metrics.get(name, 0)
        text = Text(f"{value:g} %") if name in _PERCENT else _number(value, "red" if name in _TROUBLE else "")
        table.add_row(Text(name.replace("_", " "), "dim"), text)
    return table


def _number(value: Any, style: str = "") -> Text:
    text = f"{value:,}" if isinstance(value, int | float) else str(value)
    return plain(text, style if value else "dim")


def _watch(ask: Callable[[], dict[str, Any]], config: QueueConfig) -> None:
    """Redraw for ever; where there is no terminal, print one view after the other."""
    out = console()
    if not out.is_terminal:
        for view in _views(ask, config.keys):
            out.print(view)
        return
    with Live(console=out, auto_refresh=False) as live:
        for view in _views(ask, config.keys):
            live.update(view, refresh=True)


def _views(ask: Callable[[], dict[str, Any]], keys: Keys) -> Iterator[RenderableType]:
    """A view each second. When Redis goes away, the last one again, with the reason below."""
    view = status_view(ask(), keys)
    note = Text()
    while True:
        yield Group(view, "", note or Text(f"{time.strftime('%H:%M:%S')}  Ctrl-C ends", "dim"))
        time.sleep(INTERVAL)
        try:
            view, note = status_view(ask(), keys), Text()
        except QueueError as error:
            note = plain(str(error), "red")


def _stream(ask: Callable[[], dict[str, Any]]) -> None:
    """One JSON document a line, each second."""
    while True:
        print(to_json(ask(), indent=None), flush=True)
        time.sleep(INTERVAL)
