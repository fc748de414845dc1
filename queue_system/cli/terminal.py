"""What the commands print: results on stdout, errors on stderr, and nothing that a payload could forge."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Collection, Sequence
from typing import Any, Final

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

PROGRAM: Final = "queue-system"
_WIDE: Final = 200
"""Columns where nobody looks at a terminal: little is cut in a pipe."""

_GAP: Final = "   "  # between two columns of a table
_LEAST: Final = 10  # columns of a cell that is cut


def console() -> Console:
    """Where results go."""
    looking = Console(highlight=False)
    return looking if looking.is_terminal or "COLUMNS" in os.environ else Console(highlight=False, width=_WIDE)


def print_json(value: Any) -> None:
    """One JSON document, indented."""
    print(to_json(value))


def to_json(value: Any, indent: int | None = 2) -> str:
    r"""JSON as readable as stdout can take it. What a terminal might obey is written as ``\u....``."""
    text = "".join(
        each if each.isprintable() or each == "\n" else json.dumps(each)[1:-1]
        for each in json.dumps(value, ensure_ascii=False, indent=indent)
    )
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return json.dumps(value, indent=indent)
    return text


def print_error(message: str) -> None:
    """One line on stderr; what is below it (such as a traceback's end) is indented."""
    text = printable(message, keep="\n").rstrip().replace("\n", "\n  ")
    print(f"{PROGRAM}: error: {text}", file=sys.stderr)


def printable(text: str, keep: str = "") -> str:
    """The text with control characters, such as a terminal's escape sequences, written out."""
    return "".join(each if each.isprintable() or each in keep else ascii(each)[1:-1] for each in text)


def plain(text: str, style: str = "", keep: str = "") -> Text:
    """Text from outside for rich, which would take a string for its markup."""
    return Text(printable(text, keep), style)


def lines(rows: Sequence[Sequence[str]], names: Sequence[str], width: int, right: Collection[str] = ()) -> Text:
    """A table of one line for each row. Only the last column is cut, to what the others leave of `width` columns."""
    safe = [tuple(map(printable, row)) for row in rows]
    *sizes, _ = (max(map(cell_len, column)) for column in zip(names, *safe, strict=True))
    room = max(width - sum(sizes) - len(sizes) * len(_GAP), _LEAST)
    table = Text(no_wrap=True, overflow="ignore")
    for row, style in ((names, "bold"), *((row, "") for row in safe)):
        for cell, size, name in zip(row, sizes, names, strict=False):
            padding = " " * (size - cell_len(cell))
            table.append(padding + cell if name in right else cell + padding, style).append(_GAP)
        last = Text(row[-1], style or "red")
        last.truncate(room, overflow="ellipsis")
        table.append_text(last).append("\n")
    table.right_crop()
    return table


def duration(seconds: float) -> str:
    """``42s``, ``7m``, ``3h`` or ``5d``."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= size:
            return f"{int(seconds // size)}{unit}"
    return f"{max(0, int(seconds))}s"
