"""The exit codes of every command, and which error gives which."""

from __future__ import annotations

from typing import Final

from queue_system.errors import (
    BrokerUnavailableError,
    ConfigurationError,
    QueueError,
    UnresolvableFunctionError,
    UnsupportedServerError,
)

OK: Final = 0
REFUSED: Final = 1
USAGE: Final = 2
UNAVAILABLE: Final = 69  # EX_UNAVAILABLE of sysexits.h
INTERNAL: Final = 70  # EX_SOFTWARE
INTERRUPTED: Final = 130  # 128 + SIGINT, as a shell says it
BROKEN_PIPE: Final = 141  # 128 + SIGPIPE

EPILOG: Final = (
    "Exit codes: 0 ok, 1 refused or not found, 2 usage, 69 Redis unavailable, 70 internal error.\n\n"
    "Flags win over QUEUE_SYSTEM_* variables, e.g. QUEUE_SYSTEM_REDIS_URL for --redis-url."
)


class NotFoundError(QueueError):
    """There is nothing of the id that was given."""


class UsageError(QueueError):
    """The command was called in a wrong way."""


def exit_code(error: QueueError) -> int:
    """The exit code for an error."""
    if isinstance(error, BrokerUnavailableError | UnsupportedServerError):
        return UNAVAILABLE
    if isinstance(error, UsageError | ConfigurationError | UnresolvableFunctionError):
        return USAGE
    return REFUSED
