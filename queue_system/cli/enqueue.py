"""``queue-system enqueue``."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any, Final

import typer

from queue_system.checks import check_seconds
from queue_system.cli.exits import UsageError
from queue_system.cli.options import AsJson, Prefix, RedisUrl
from queue_system.cli.terminal import console, plain, print_json
from queue_system.manager import QueueManager
from queue_system.settings import Settings

STDIN: Final = "-"


def enqueue(
    processor: Annotated[
        str, typer.Argument(metavar="MODULE:FUNC", help="The function; only the worker needs to find it")
    ],
    entity: Annotated[str, typer.Argument(metavar="JSON", help="A JSON object to hand to it, or - to read stdin")],
    *,
    priority: Annotated[
        str | None, typer.Option(metavar="PRIORITY", help="high, normal or low (default: normal)", show_default=False)
    ] = None,
    queue: Annotated[
        str | None, typer.Option(metavar="NAME", help="Its queue (default: the function's name)", show_default=False)
    ] = None,
    delay: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="From now until it is ready", show_default=False)
    ] = 0.0,
    timeout: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS", help="For an attempt of an async function (default: the worker's)", show_default=False
        ),
    ] = None,
    operation_id: Annotated[
        str | None, typer.Option(metavar="ID", help="Not accepted twice (default: a new one)", show_default=False)
    ] = None,
    dedup_key: Annotated[
        str | None,
        typer.Option(metavar="KEY", help="Not accepted again within an hour of an operation with the same key"),
    ] = None,
    on_success: Annotated[str | None, typer.Option(metavar="MODULE:FUNC", help="Called with the result")] = None,
    on_failure: Annotated[str | None, typer.Option(metavar="MODULE:FUNC", help="Called when it is given up")] = None,
    redis_url: RedisUrl = None,
    prefix: Prefix = None,
    as_json: AsJson = False,
) -> None:
    """Put one operation into the queue.

    A duplicate is no error: it is told, with the id of the operation that is there, and the exit code is 0.
    """
    check_seconds("--delay", delay, zero=True, error=UsageError)
    if timeout is not None:
        check_seconds("--timeout", timeout, error=UsageError)
    settings = Settings.load(redis_url=redis_url, queue_prefix=prefix)
    data = parse_entity(sys.stdin.read() if entity == STDIN else entity)
    options: dict[str, Any] = {
        "priority": priority,
        "queue_name": queue,
        "operation_id": operation_id,
        "deduplication_key": dedup_key,
        "timeout": timeout,
        "on_success": on_success,
        "on_failure": on_failure,
    }
    given = {name: value for name, value in options.items() if value is not None}
    with settings.config() as config:
        result = QueueManager(config).enqueue(data, processor, delay=delay, **given)
    if as_json:
        print_json(result)
    else:
        console().print(plain(describe(result, delay)), soft_wrap=True)


def parse_entity(text: str) -> Any:
    """The JSON in `text`; that it is an object is checked where it is enqueued.

    Raises:
        UsageError: it is not JSON; says where it stops to be.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"""the entity is not JSON: {error} (quote it for the shell: '{{"id": 1}}')""") from error


def describe(result: dict[str, Any], delay: float) -> str:
    """One line for people about what `QueueManager.enqueue` returned."""
    place = f"{result['processor']} in {result['priority']}:{result['queue']}"
    if result["status"] == "duplicate":
        what = "id" if result["reason"] == "operation_id" else "deduplication key"
        known = result["processor"] and result["queue"]
        where = f" ({result['processor']} in {result['priority']}:{result['queue']})" if known else ""
        return f"duplicate: operation {result['duplicate_of']} holds this {what}{where}; nothing was enqueued"
    due = f", ready in {delay:g} s" if result["status"] == "scheduled" else ""
    return f"{result['status']} {result['operation_id']}  {place}{due}"
