"""``queue-system explain``."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Final

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from queue_system.cli.exits import REFUSED
from queue_system.cli.failures import facts_table, history_view, trace_link, trace_view
from queue_system.cli.options import AsJson, Prefix, RedisUrl, TraceUrl
from queue_system.cli.terminal import console, duration, plain, print_json
from queue_system.explain import UNKNOWN, Explanation
from queue_system.explain import explain as explain_operation
from queue_system.settings import Settings

_STYLES: Final = {"ready": "cyan", "delayed": "cyan", "leased": "green", "done": "green", UNKNOWN: "yellow"}
_NAMES: Final = {"leased": "in flight", "system_error": "system error"}


def explain(
    operation_id: Annotated[str, typer.Argument(metavar="ID", help="Id of the operation")],
    *,
    trace_url: TraceUrl = None,
    redis_url: RedisUrl = None,
    prefix: Prefix = None,
    as_json: AsJson = False,
) -> None:
    """Say where an operation is, and why, with its history.

    The exit code is 1 when nothing is known of it.
    """
    settings = Settings.load(redis_url=redis_url, queue_prefix=prefix, trace_url=trace_url)
    with settings.config(telemetry=None) as config:
        found = explain_operation(config, operation_id)
    if as_json:
        link = trace_link(found.trace_id, settings.trace_url)
        print_json(found.to_dict() if link is None else found.to_dict() | {"trace_url": link})
    else:
        out = console()
        out.print(explanation_view(found, out.width, settings.trace_url))
    if found.state == UNKNOWN:
        raise typer.Exit(REFUSED)


def explanation_view(found: Explanation, width: int, trace_url: str | None = None) -> RenderableType:
    """The state and its reasons, then what is known, then the attempts."""
    style = _STYLES.get(found.state, "red")
    head = Text.assemble((f"{_NAMES.get(found.state, found.state)}  ", f"bold {style}"), plain(found.summary, "bold"))
    parts: list[RenderableType] = [head, *(plain(reason, keep="\n") for reason in found.reasons)]
    if found.queue:
        parts += ["", facts_table(_facts(found, trace_url)), *history_view(found.history, width)]
    return Group(*parts)


def _facts(found: Explanation, trace_url: str | None) -> list[tuple[str, RenderableType]]:
    of = "" if found.max_attempts is None else f" of {found.max_attempts}"
    counts = ((found.deliveries, "deliveries"), (found.crashes, "workers lost"), (found.exhaustions, "pool exhausted"))
    told = "".join(f", {name}: {count}" for count, name in counts if count)
    times = (("accepted", found.accepted_at), ("due", found.due_at), ("claimed", found.claimed_at))
    return [
        ("id", plain(found.operation_id)),
        ("processor", plain(found.processor or "unknown")),
        ("queue", plain(f"{found.priority}:{found.queue}")),
        *((name, _time(at)) for name, at in (*times, ("given up", found.given_up_at)) if at is not None),
        *([("worker", plain(found.worker))] if found.worker else []),
        ("attempts", f"{found.attempts}{of}{told}"),
        *([("trace", trace_view(found.trace_id, trace_url))] if found.trace_id else []),
    ]


def _time(at: datetime) -> str:
    seconds = (datetime.now(UTC) - at).total_seconds()
    distance = f"{duration(seconds)} ago" if seconds >= 0 else f"in {duration(-seconds)}"
    return f"{at:%Y-%m-%d %H:%M:%S} UTC, {distance}"
