"""What a worker does with the signals that ask it to stop. Imports next to nothing, since it comes before all else.

A process without an `init` in front of it (the first of a container) never sees a signal that it has no handler for: so
the handlers are there before the modules of the application, and this package's own, are imported.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

_DRAIN: tuple[int, ...] = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)
)  # there is no SIGHUP on Windows


class StoppedError(BaseException):
    """A stop was asked for while the application's modules were imported. No `Exception`, so that they let it pass."""


class StopSignals:
    """The first SIGTERM, SIGHUP or SIGINT asks for a stop; a second one ends the process at once.

    The handlers are Python's own and not the event loop's: a processor that blocks the loop cannot hold them up.

    Attributes:
        asked: whether a stop was asked for.
        interrupts: whether the first one interrupts the main thread with `StoppedError`.
    """

    def __init__(self) -> None:
        self.asked = False
        self.interrupts = False
        self._heard: Callable[[], object] | None = None

    def install(self, *, interrupt: bool = True) -> None:
        """Handle them from now on; only in the main thread. SIGHUP stays ignored where it is (``nohup``).

        Without `interrupt`, Ctrl-C stays Python's own.
        """
        for number in (*_DRAIN, signal.SIGINT) if interrupt else _DRAIN:
            if number == signal.SIGINT or signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self.received)

    def tell(self, heard: Callable[[], object]) -> None:
        """Call that at the first signal; at once if it has come already."""
        self._heard = heard
        if self.asked:
            heard()

    def received(self, number: int, _: FrameType | None = None) -> None:
        """The handler."""
        if self.asked:
            os.write(2, b"queue-system: stopped at once; what was running is taken over by others\n")
            os._exit(128 + number)
        self.asked = True
        if self._heard is not None:
            self._heard()
        elif self.interrupts:
            raise StoppedError


_early: StopSignals | None = None


def hold(arguments: Sequence[str]) -> None:
    """Handle what asks a worker to stop from now on, if the command is to start one.

    Processes that a processor spawns import the command, too, with its arguments in `sys.argv`, and are no workers.
    """
    global _early  # noqa: PLW0603  handlers belong to the process
    ours = sys.orig_argv[-len(arguments) :] == list(arguments)
    if ours and list(arguments[:1]) == ["worker"] and threading.current_thread() is threading.main_thread():
        _early = StopSignals()
        _early.install(interrupt=False)


def take() -> StopSignals:
    """Those that `hold` has installed, once; else new ones."""
    global _early
    signals, _early = _early or StopSignals(), None
    if threading.current_thread() is threading.main_thread():
        signals.install(interrupt=False)
    return signals


def _in_child() -> None:
    """A child is not the worker: what was to stop that one ends this one, and does not wake the other's event loop."""
    ours = False
    for number in (*_DRAIN, signal.SIGINT):
        handler: Any = signal.getsignal(number)
        if isinstance(getattr(handler, "__self__", None), StopSignals):
            ours = True
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    if ours:
        signal.set_wakeup_fd(-1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
