"""The exit codes of every command, and which error gives which."""

from __future__ import annotations

from typing import Final

from queue_system.errors import (
    BrokerUnavailableError,
    ConfigurationError,
    NotDurableError,
    QueueError,
    UnresolvableFunctionError,
    UnsupportedServerError,
)

OK: Final = 0
REFUSED: Final = 1
USAGE: Final = 2
VIOLATED: Final = 3  # by what `audit` has found
UNAVAILABLE: Final = 69  # EX_UNAVAILABLE of sysexits.h
INTERNAL: Final = 70  # EX_SOFTWARE
RESTART: Final = 75  # EX_TEMPFAIL: a worker has drained, since its threads never return, and wants to be started again
INTERRUPTED: Final = 130  # 128 + SIGINT, as a shell says it
BROKEN_PIPE: Final = 141  # 128 + SIGPIPE

_CODES: Final = "Exit codes: 0 ok, 1 refused or not found, 2 usage, 69 Redis unavailable, 70 internal error"
_FLAGS: Final = "Flags win over QUEUE_SYSTEM_* variables, e.g. QUEUE_SYSTEM_REDIS_URL for --redis-url."
EPILOG: Final = f"{_CODES}.\n\n{_FLAGS}"
WORKER_EPILOG: Final = f"{_CODES}, 75 too many threads never return: start it again.\n\n{_FLAGS}"
AUDIT_EPILOG: Final = f"{_CODES}, 3 something is wrong.\n\n{_FLAGS}"


class NotFoundError(QueueError):
    """There is nothing of the id that was given."""


class UsageError(QueueError):
    """The command was called in a wrong way."""


def exit_code(error: QueueError) -> int:
    """The exit code for an error."""
    if isinstance(error, BrokerUnavailableError | NotDurableError | UnsupportedServerError):
        return UNAVAILABLE
    if isinstance(error, UsageError | ConfigurationError | UnresolvableFunctionError):
        return USAGE
    return REFUSED
