"""A process that a processor forks with `os.fork`, and that comes back from the processor, ends there.

It would go on as the worker otherwise: run the jobs that wait in its copy of the pool, and write their outcomes.
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback

forks = 0
"""How often this process and those before it were forked: whoever finds another number than before is in a child."""


def _in_child() -> None:
    global forks  # noqa: PLW0603  it belongs to the process
    forks += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)


def end(error: BaseException | None) -> None:
    """End this process as Python would: 0, the code of a `SystemExit`, or 1 and a traceback after another error."""
    code = 0
    with contextlib.suppress(BaseException):  # e.g. stderr is closed, or the error cannot be printed
        if isinstance(error, SystemExit) and isinstance(error.code, int | None):
            code = error.code or 0
        elif error is not None:
            code = 1
            traceback.print_exception(error)
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)
