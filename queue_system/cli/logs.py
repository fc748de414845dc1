"""What a worker started from the command line logs, and how: to stderr, since stdout is for results."""

from __future__ import annotations

import logging

from queue_system.settings import Settings


def configure(settings: Settings) -> None:
    """Send all logs of the process to stderr, in the form and from the level of the settings.

    An application that has set up the root logger itself, in a module that the worker imports, keeps its set-up.
    """
    from telemetry import configure_logging  # noqa: PLC0415  only a worker pays for it

    if not logging.getLogger().handlers:
        configure_logging(settings.log_format, settings.log_level, name="")


def silence() -> None:
    """Keep logs off the terminal: a command says what went wrong in its one line."""
    logging.getLogger("queue_system").addHandler(logging.NullHandler())
