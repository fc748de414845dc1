"""The options that several commands share. None means: from the variable, or the default."""

from __future__ import annotations

from typing import Annotated, TypeAlias

import typer

RedisUrl: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--redis-url",
        metavar="URL",
        help="redis://, rediss://, valkey://, valkeys://, unix:// or embedded://[PATH] (default: redis://localhost:6379/0)",
        show_default=False,
    ),
]
Prefix: TypeAlias = Annotated[
    str | None,
    typer.Option("--prefix", metavar="TEXT", help="In front of every key (default: queue:)", show_default=False),
]
AsJson: TypeAlias = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts")]
TraceUrl: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--trace-url",
        metavar="URL",
        help="Show traces as links, e.g. http://localhost:16686/trace/{trace_id}",
        show_default=False,
    ),
]
SystemErrors: TypeAlias = Annotated[
    bool, typer.Option("--system-errors", help="What no worker could understand or was allowed to run, instead")
]
