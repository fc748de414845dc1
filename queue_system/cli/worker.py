"""``queue-system worker``."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Annotated, Any, Final

import typer

from queue_system.checks import check_seconds
from queue_system.cli import logs, signals
from queue_system.cli.exits import OK, RESTART, UsageError
from queue_system.cli.options import Prefix, RedisUrl
from queue_system.errors import BrokerUnavailableError
from queue_system.events import MAX_MEMORY, MAX_OPERATIONS, TASKS_ABANDONED, THREADS_ABANDONED, TOLD_TO_STOP
from queue_system.garbage import tune_gc
from queue_system.imports import is_identifier_path
from queue_system.registry import default_registry
from queue_system.settings import Settings
from queue_system.worker import QueueWorker

CONNECT_INTERVAL: Final = 0.5
EXIT_LEAST: Final = 1.0
"""Seconds for the interpreter to end though the drain has used up the grace. Threads that never return, and `atexit`
handlers, could hold it up for ever.
"""

_TRACEBACK_LINES: Final = 6

_WHY: Final = {
    TOLD_TO_STOP: "",
    THREADS_ABANDONED: ", too many of its threads never return: restart it",
    TASKS_ABANDONED: ", too many of its tasks do not heed their cancellation: restart it",
    MAX_OPERATIONS: ", after its --max-operations",
    MAX_MEMORY: ", at its --max-memory",
}


def worker(
    modules: Annotated[list[str], typer.Argument(metavar="MODULE", help="Modules with processors, e.g. app.tasks")],
    *,
    max_workers: Annotated[
        int | None, typer.Option(metavar="N", help="Async operations at once (default: 5)", show_default=False)
    ] = None,
    thread_pool_size: Annotated[
        int | None, typer.Option(metavar="N", help="Sync operations at once (default: 20)", show_default=False)
    ] = None,
    work_timeout: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            help="For an attempt of an async function without a timeout of its own (default: 30)",
            show_default=False,
        ),
    ] = None,
    grace: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS", help="For running operations to finish at a stop (default: 30)", show_default=False
        ),
    ] = None,
    lease: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            help="After which the operations of a dead worker are taken over (default: 10)",
            show_default=False,
        ),
    ] = None,
    exit_timeout: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            help="For atexit handlers and threads to end after the drain, within the grace (default: 3)",
            show_default=False,
        ),
    ] = None,
    abandon_after: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            help="After which a thread that still runs its operation counts as abandoned (default: 600)",
            show_default=False,
        ),
    ] = None,
    max_abandoned: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Drain and exit with 75 when so many threads are abandoned; 0: never (default: all)",
            show_default=False,
        ),
    ] = None,
    max_operations: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Drain and exit with 0 after so many operations (default: no limit)", show_default=False
        ),
    ] = None,
    max_memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Drain and exit with 0 when the process takes so much, e.g. 512MiB (default: no limit)",
            show_default=False,
        ),
    ] = None,
    queues: Annotated[
        list[str] | None,
        typer.Option("--queue", metavar="NAME", help="Serve this queue only; may be repeated", show_default=False),
    ] = None,
    log_format: Annotated[
        str | None, typer.Option(metavar="FORMAT", help="console or json (default: console)", show_default=False)
    ] = None,
    log_level: Annotated[
        str | None,
        typer.Option(metavar="LEVEL", help="debug, info, warning or error (default: info)", show_default=False),
    ] = None,
    metrics_port: Annotated[
        int | None,
        typer.Option(
            metavar="PORT",
            help="Serve /metrics, /livez and /readyz; 0 for a free port (default: do not)",
            show_default=False,
        ),
    ] = None,
    metrics_host: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Where to serve them (default: 127.0.0.1)", show_default=False),
    ] = None,
    otlp_endpoint: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="Send spans there (default: OTEL_EXPORTER_OTLP_ENDPOINT, or not)", show_default=False
        ),
    ] = None,
    otlp_protocol: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="http/protobuf or grpc (default: http/protobuf)", show_default=False),
    ] = None,
    trace_sample_ratio: Annotated[
        float | None,
        typer.Option(
            metavar="RATIO", help="Share of the traces to keep, 0 to 1; retries always (default: 1)", show_default=False
        ),
    ] = None,
    service_name: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT", help="Of the spans (default: OTEL_SERVICE_NAME, or queue-system)", show_default=False
        ),
    ] = None,
    wait_for_redis: Annotated[
        float,
        typer.Option(min=0, metavar="SECONDS", help="Try to connect for so long at the start", show_default=False),
    ] = 0.0,
    redis_url: RedisUrl = None,
    prefix: Prefix = None,
) -> None:
    """Process operations until SIGTERM, SIGHUP, Ctrl-C or a limit, then drain; a second signal stops at once.

    The modules are imported, with the working directory on the path.

    Their @processor functions are registered, their plain functions may be called by name.
    """
    check_seconds("--wait-for-redis", wait_for_redis, zero=True, error=UsageError)
    settings = Settings.load(
        redis_url=redis_url,
        queue_prefix=prefix,
        max_workers=max_workers,
        thread_pool_size=thread_pool_size,
        work_timeout=work_timeout,
        grace=grace,
        exit_timeout=exit_timeout,
        lease=lease,
        abandon_after=abandon_after,
        max_abandoned=max_abandoned,
        max_operations=max_operations,
        max_memory=max_memory,
        queues=queues,
        log_format=log_format,
        log_level=log_level,
        metrics_port=metrics_port,
        metrics_host=metrics_host,
        otlp_endpoint=otlp_endpoint,
        otlp_protocol=otlp_protocol,
        trace_sample_ratio=trace_sample_ratio,
        service_name=service_name,
    )
    stop = signals.take()
    try:
        stop.interrupts = True
        if not stop.asked:
            import_modules(modules)
    except signals.StoppedError:
        raise typer.Exit(OK) from None
    finally:
        stop.interrupts = False
    if stop.asked:  # before the imports, or a module has caught it
        raise typer.Exit(OK)
    logs.configure(settings)
    with settings.config(modules=modules) as config:
        queue_worker = QueueWorker(
            config,
            settings.max_workers,
            settings.work_timeout,
            settings.thread_pool_size,
            queues=settings.queues,
            lease=settings.lease,
            grace=settings.grace,
            abandon_after=settings.abandon_after,
            max_abandoned=settings.max_abandoned,
            max_operations=settings.max_operations,
            max_memory=settings.max_memory,
        )
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            code = runner.run(_serve(queue_worker, settings, wait_for_redis, stop))
    raise typer.Exit(code)


def import_modules(modules: Sequence[str]) -> None:
    """Import the modules, with the working directory first on the path, as ``python -m`` has it.

    Raises:
        UsageError: one of them is no module name, is not there, or fails; with the last lines of its traceback.
    """
    directory = os.getcwd()  # noqa: PTH109  sys.path has strings
    if directory not in sys.path:
        sys.path.insert(0, directory)
    for module in modules:
        if not is_identifier_path(module):
            raise UsageError(f"{module!r} is not a module name: write it as for import, e.g. app.tasks")
        try:
            importlib.import_module(module)
        except (Exception, SystemExit) as error:
            raise UsageError(f"cannot import {module}: {_last_lines(error)}") from error


async def _serve(worker: QueueWorker, settings: Settings, wait_for_redis: float, stop: signals.StopSignals) -> int:
    """Start the worker, wait for a signal or its own end, drain it; the exit code."""
    asked, loop = asyncio.Event(), asyncio.get_running_loop()
    stop.install()
    stop.tell(lambda: loop.call_soon_threadsafe(asked.set))
    with logs.observed(worker, settings) as observed:
        await _start(worker, asked, wait_for_redis)
        if worker.state == "running":
            tune_gc(worker.max_workers, worker.thread_pool_size)
            known = len(default_registry.names())
            processors = f"{known} processor{'' if known == 1 else 's'}"
            _say(f"worker {worker.worker_id} ready: {worker.config.clients.address}, {processors}{observed}")
            took = await _drain_in_time(worker, asked)
            _say(f"worker {worker.worker_id} drained in {took:.1f} s{_WHY[worker.stop_reason]}")
    code = RESTART if worker.stop_reason in (THREADS_ABANDONED, TASKS_ABANDONED) else OK
    _limit_exit(code, max(EXIT_LEAST, min(settings.exit_timeout, settings.grace - worker.drained_in)))
    return code


async def _drain_in_time(worker: QueueWorker, asked: asyncio.Event) -> float:
    """Wait until the worker drains, as a signal or a limit of its own has it; how many seconds that took."""
    ended, told = asyncio.create_task(worker.wait_stopped()), asyncio.create_task(asked.wait())
    await asyncio.wait([ended, told], return_when=asyncio.FIRST_COMPLETED)
    told.cancel()
    await worker.stop()
    await ended
    return worker.drained_in


async def _start(worker: QueueWorker, asked: asyncio.Event, wait_for_redis: float) -> None:
    """Start the worker as soon as Redis is there, within the limit, unless a stop is asked for before."""
    deadline = time.monotonic() + wait_for_redis
    while not asked.is_set():
        try:
            await worker.start()
        except BrokerUnavailableError as error:
            if error.kind in {"auth", "protocol"} or time.monotonic() >= deadline:
                raise
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asked.wait(), CONNECT_INTERVAL)
        else:
            return


def _say(line: str) -> None:
    print(line, flush=True)


def _limit_exit(code: int, seconds: float) -> None:
    def end() -> None:
        time.sleep(seconds)
        os._exit(code)

    threading.Thread(target=end, name="queue-system-exit", daemon=True).start()


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """That of uvloop when it is installed; None for asyncio's own."""
    try:
        uvloop: Any = importlib.import_module("uvloop")
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


def _last_lines(error: BaseException) -> str:
    """The error in one line, and below it where in the module it came up."""
    summary = traceback.format_exception_only(error)[-1].strip()
    trace = _own_frames(error.__traceback__)
    if trace is None:
        return f"{summary} (looked for it in the working directory and among what is installed)"
    lines = "".join(traceback.format_tb(trace)).rstrip().splitlines()[-_TRACEBACK_LINES:]
    return "\n".join([summary, *lines])


def _own_frames(trace: TracebackType | None) -> TracebackType | None:
    """The frames from the imported module on, without those of the import itself."""
    while trace is not None and (
        trace.tb_frame.f_code.co_filename.startswith("<frozen importlib")
        or trace.tb_frame.f_globals.get("__name__") in (__name__, "importlib")
    ):
        trace = trace.tb_next
    return trace
