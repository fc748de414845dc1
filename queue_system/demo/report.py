"""What the demo says before and after its work."""

from __future__ import annotations

import platform
import shlex
import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from queue_system import QueueConfig
from queue_system.demo.checks import ENDINGS
from queue_system.demo.files import SourceFiles
from queue_system.demo.totals import Ledger

_TEMPORARY: Final = "embedded://"
_STATUS_WIDTH: Final = 92


def print_start(console: Console, files: SourceFiles, config: QueueConfig) -> None:
    """What is about to happen, and where."""
    library = f": the standard library of Python {platform.python_version()} without its tests"
    left_out = f" ({files.left_out:,} names that cannot be read are left out)" if files.left_out else ""
    _print(console, f"{len(files.paths):,} Python files{library if files.is_standard_library else ''}{left_out}")
    _print(console, f"  in {files.root}")
    server = "a server of this program's own" if config.clients.address == _TEMPORARY else config.clients.address
    _print(console, f"  Redis: {server}, keys {config.queue_prefix}*")


def print_enqueued(console: Console, count: int, seconds: float) -> None:
    """How many operations wait now."""
    _print(console, f"{count:,} operations enqueued in {seconds:.2f} s; now the worker starts\n")


def print_endings(console: Console, ledger: Ledger) -> None:
    """One line for each processor: what it is for, and how its operations ended."""
    table = _table("processor", "what its operations do")
    for heading in ("enqueued", "succeeded", "failed"):
        table.add_column(heading, justify="right")
    counts = [
        Counter(ledger.enqueued.values()),
        Counter(data["processor"] for data in ledger.succeeded.values()),
        Counter(data["processor"] for data in ledger.failed.values()),
    ]
    for name, ending in ENDINGS.items():
        table.add_row(name, ending.what, *(f"{count[name]:,}" for count in counts))
    console.print(table)


def print_totals(console: Console, queue: Mapping[str, int | str], plain: Mapping[str, int | str]) -> None:
    """The totals of the queue beside those of the plain loop."""
    table = _table("total")
    table.add_column("queue", justify="right")
    table.add_column("plain loop", justify="right")
    table.add_column()
    for label, value in plain.items():
        equal = queue.get(label) == value
        verdict = Text("equal", style="green") if equal else Text("DIFFERENT", style="bold red")
        table.add_row(label, _shown(queue.get(label)), _shown(value), verdict)
    console.print(table)


def print_status(console: Console, status: Mapping[str, Any]) -> None:
    """The status as `get_queue_status` returns it, with several metrics on a line."""
    _print(console, "queue.get_queue_status() says")
    _print(console, "\n".join(_status_lines(status)))


def print_verdict(console: Console, problems: Sequence[str], ended: int, seconds: float) -> None:
    """Whether everything is accounted for, or what is not; and how fast it was."""
    console.print()
    if problems:
        console.print(Text("Not as it should be:", style="bold red"))
        for problem in problems:
            _print(console, f"  {problem}")
    else:
        console.print(Text("Every operation is accounted for, and all totals are equal.", style="bold green"))
    _print(console, f"{ended:,} operations in {seconds:.1f} s: {ended / seconds:,.0f} per second")


def print_interrupted(console: Console, ledger: Ledger) -> None:
    """What had been done by then."""
    _print(console, "Interrupted: the worker has stopped, and what was waiting is discarded.")
    _print(console, f"{ledger.heard:,} of {len(ledger.enqueued):,} operations had ended.")


def print_next_steps(console: Console, config: QueueConfig) -> None:
    """What to try now, each with its command."""
    _print(console, "\nNext")
    for command, purpose in _next_steps(config):
        _print(console, f"  {command}")
        console.print(Text(f"      {purpose}", style="dim"), soft_wrap=True)


def _next_steps(config: QueueConfig) -> Iterator[tuple[str, str]]:
    address = shlex.quote(config.clients.address)
    yield "queue-system demo PATH", "the same with files of your own"
    if address == _TEMPORARY:
        address = "embedded:///tmp/queue-system"
        yield f"queue-system demo --redis-url {address}", "the same, and the data is kept for a look at the failures"
    else:
        where = f"--redis-url {address} --prefix {config.queue_prefix}"
        yield f"queue-system failures list {where}", "what was given up, with error, traceback and all attempts"
    yield f"queue-system worker your_module --redis-url {address}", "a worker for the processors in your_module.py"
    yield (
        f"""queue-system enqueue your_module:function '{{"n": 1}}' --redis-url {address}""",
        "an operation for it, from another terminal",
    )
    yield f"queue-system status --watch --redis-url {address}", "and what becomes of it"


def _status_lines(status: Mapping[str, Any]) -> Iterator[str]:
    yield "{"
    for name, value in status.items():
        if isinstance(value, Mapping):
            entries = ", ".join(f"{key!r}:\0{entry!r}" for key, entry in value.items())
            lines = textwrap.wrap(entries, _STATUS_WIDTH, break_long_words=False, break_on_hyphens=False)
            yield f"  {name!r}: {{"
            yield from (f"    {line}".replace("\0", " ") for line in lines)
            yield "  },"
        else:
            yield f"  {name!r}: {value!r},"
    yield "}"


def _table(*headings: str) -> Table:
    return Table(*headings, box=box.SIMPLE_HEAD, pad_edge=False)


def _print(console: Console, text: str) -> None:
    console.print(Text(text), soft_wrap=True)


def _shown(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)
