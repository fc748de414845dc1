"""The command `queue-system`: a worker, and what an operator does with a queue.

Exit codes are in `exits`. Results go to stdout; errors are one line on stderr.
"""

from __future__ import annotations

import sys

from queue_system.cli import signals

signals.hold(sys.argv[1:])  # what follows takes a while

import contextlib  # noqa: E402  see above
import os  # noqa: E402
import traceback  # noqa: E402
from collections.abc import Sequence  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Annotated, Any, Final  # noqa: E402

import typer  # noqa: E402

from queue_system import __version__  # noqa: E402
from queue_system.cli import audit, enqueue, exits, explain, failures, logs, status, worker  # noqa: E402
from queue_system.cli.options import RedisUrl  # noqa: E402
from queue_system.cli.terminal import PROGRAM, print_error  # noqa: E402
from queue_system.errors import QueueError  # noqa: E402
from queue_system.settings import Settings  # noqa: E402

__all__ = ["app", "main"]

app = typer.Typer(
    name=PROGRAM,
    help="A Redis-based queue: start workers, enqueue operations, see what happens to them.",
    epilog=exits.EPILOG,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command(epilog=exits.WORKER_EPILOG)(worker.worker)
app.command(epilog=exits.EPILOG)(enqueue.enqueue)
app.command(epilog=exits.EPILOG)(status.status)
app.command(epilog=exits.EPILOG)(explain.explain)
app.command(epilog=exits.AUDIT_EPILOG)(audit.audit)
app.add_typer(failures.app)

# typer has click inside since 0.2x and beside it before: this is the class of usage errors in both.
_CLICK_ERROR: Final[Any] = next(each for each in typer.BadParameter.__mro__ if each.__name__ == "ClickException")


@app.command(epilog=exits.EPILOG)
def demo(
    path: Annotated[
        Path | None,
        typer.Argument(metavar="[PATH]", help="Directory of Python files (default: the standard library)"),
    ] = None,
    redis_url: RedisUrl = None,
) -> None:
    """See it work: one operation for each Python file below PATH, and totals that are checked.

    Without --redis-url or QUEUE_SYSTEM_REDIS_URL it starts a Redis of its own.
    """
    from queue_system.demo import run  # noqa: PLC0415  only who wants it pays for it

    settings = Settings.load(redis_url=redis_url)
    url = settings.redis_url if "redis_url" in settings.model_fields_set else "embedded://"
    raise typer.Exit(run(path, url))


@app.command(epilog=exits.EPILOG)
def version() -> None:
    """Print the version."""
    print(f"{PROGRAM} {__version__}")


def main(args: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    Args:
        args: what stands after the program's name; None for `sys.argv`.
    """
    try:
        logs.silence()
        code = app(args=args, prog_name=PROGRAM, standalone_mode=False)
        sys.stdout.flush()
    except (BrokenPipeError, SystemExit) as error:
        # Who read the output has left. On that typer ends the program itself, with a code that means another thing.
        if not isinstance(error, BrokenPipeError) and not isinstance(error.__context__, BrokenPipeError):
            raise
        _discard_output()
        return exits.BROKEN_PIPE
    except (KeyboardInterrupt, typer.Abort):
        return exits.INTERRUPTED
    except Exception as error:  # noqa: BLE001  each becomes a line and a code
        return _tell(error)
    return code if isinstance(code, int) else exits.OK


def _tell(error: Exception) -> int:
    if isinstance(error, QueueError):
        print_error(str(error))
        return exits.exit_code(error)
    if isinstance(error, _CLICK_ERROR):
        if problem := _usage_problem(error):
            print_error(problem)
        return exits.USAGE
    traceback.print_exception(error)
    print_error(f"internal error, please report it: {type(error).__name__}: {error}")
    return exits.INTERNAL


def _usage_problem(error: Any) -> str:
    """What is wrong, in one line; nothing where the help was shown because nothing was asked for."""
    problem = " ".join(error.format_message().split())
    context = getattr(error, "ctx", None)
    return f"{problem} (try: {context.command_path} --help)" if problem and context is not None else problem


def _discard_output() -> None:
    """Keep the interpreter from complaining when it flushes stdout at its end."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
