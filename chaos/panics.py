"""Processors that end in every way that is not an `Exception`, and in some that are hard to tell of."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

from chaos.processors import ledger
from queue_system.context import OperationContext

MODULES: Final = ["chaos.panics", "chaos.processors"]
"""What a worker of this scenario may import."""


class Panic(BaseException):
    """What a panic in an extension module looks like."""


class UnprintableError(Exception):
    """An error whose text cannot be had."""

    def __str__(self) -> str:
        raise Panic("no text")

    __repr__ = __str__


class LeavesAtPrintError(Exception):
    """An error that ends the program when it is printed."""

    def __str__(self) -> str:
        raise SystemExit(3)


def _panic() -> None:
    raise Panic("panicked")


def _group() -> None:
    raise BaseExceptionGroup("several", [Panic("one"), ValueError("two")])


def _unprintable() -> None:
    raise UnprintableError


def _leaves_at_print() -> None:
    raise LeavesAtPrintError


def _generator_exit() -> None:
    raise GeneratorExit


def _system_exit() -> None:
    raise SystemExit(2)


def _interrupt() -> None:
    raise KeyboardInterrupt


def _cancelled() -> None:
    raise asyncio.CancelledError("by nobody")


ENDS: Final[dict[str, Callable[[], None]]] = {
    "panic": _panic,
    "group": _group,
    "unprintable": _unprintable,
    "leaves_at_print": _leaves_at_print,
    "generator_exit": _generator_exit,
    "system_exit": _system_exit,
    "interrupt": _interrupt,
    "cancelled": _cancelled,
}
"""How an attempt may end, by name."""


async def end_badly(entity: dict[str, Any], context: OperationContext) -> None:
    """End as ``entity["how"]`` says, after a step of the event loop."""
    ledger().start(context.operation_id, str(context.attempt))
    await asyncio.sleep(0)
    ENDS[entity["how"]]()


async def end_badly_in_group(entity: dict[str, Any], context: OperationContext) -> None:
    """The same out of a task group."""
    ledger().start(context.operation_id, str(context.attempt))

    async def part() -> None:
        await asyncio.sleep(0)
        ENDS[entity["how"]]()

    async with asyncio.TaskGroup() as group:
        group.create_task(part())


def end_badly_sync(entity: dict[str, Any], context: OperationContext) -> None:
    """The same in a thread."""
    ledger().start(context.operation_id, str(context.attempt))
    ENDS[entity["how"]]()


async def call_back_badly(data: dict[str, Any]) -> None:
    """A callback that panics."""
    ledger().write("callback", data["operation_id"])
    await asyncio.sleep(0)
    raise Panic("in a callback")
