"""Imports a module that an operation names, in a thread, with a time limit.

Importing runs the module's code, which may take seconds, wait for something, or never end; the event loop must not wait
for it. Nobody can end a thread. So what does not end in time keeps its thread, and its package is not imported a second
time as long as it hangs: that would only wait for the first one's lock, in a thread more for each operation.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Final, Generic, TypeVar

from queue_system.errors import ImportRefusedError
from queue_system.runtime.incident import stack_of

T = TypeVar("T")

IMPORT_TIMEOUT: Final = 30.0


class _Import(Generic[T]):
    """One import: `over` when it has ended, or when it has taken too long."""

    def __init__(self, module: str, find: Callable[[], T], loop: asyncio.AbstractEventLoop) -> None:
        self.module = module
        self.find = find
        self.over: asyncio.Future[None] = loop.create_future()
        self.ended = self.hangs = False
        self.began = time.monotonic()
        self.found: T | None = None
        self.error: BaseException | None = None

    def result(self) -> T | None:
        if self.error is None:
            return self.found
        if isinstance(self.error, Exception):
            raise self.error
        raise ImportRefusedError(f"importing {self.module} raised {type(self.error).__name__}") from self.error


class Importer:
    """Runs imports, each in a thread of its own; of one package not two at once. For one event loop.

    Args:
        limit: seconds that an import may take.
        on_hung: told, once for each, of an import that takes longer: the module, and the stack of its thread.
    """

    def __init__(self, limit: float, on_hung: Callable[[str, str], None]) -> None:
        self._limit = limit
        self._on_hung = on_hung
        self._running: dict[str, _Import[Any]] = {}

    async def run(self, module: str, find: Callable[[], T]) -> T | None:
        """The result of `find`, which imports the module.

        Raises:
            ImportRefusedError: as `find`; or it did not end in time, or another import of that package has not.
        """
        package = _locked_by(module)
        while (other := self._running.get(package)) is not None:
            if other.hangs:
                waited = time.monotonic() - other.began
                raise ImportRefusedError(
                    f"{module} was not imported: importing {other.module} has not ended for {waited:.0f} s. "
                    "See its stack in this worker's log; restart the worker when it is mended"
                )
            await asyncio.wait([other.over])
        return await self._run(package, _Import(module, find, asyncio.get_running_loop()))

    async def _run(self, package: str, one: _Import[T]) -> T | None:
        loop = asyncio.get_running_loop()
        thread = threading.Thread(target=self._work, args=(package, one, loop), name="queue-system-import", daemon=True)
        self._running[package] = one
        try:
            thread.start()
        except BaseException:
            self._end(package, one)
            raise
        timer = loop.call_later(self._limit, self._give_up, one, thread)
        try:
            await asyncio.wait([one.over])
        finally:
            if one.ended:
                timer.cancel()
        if not one.ended:
            raise ImportRefusedError(
                f"importing {one.module} has not ended within {self._limit:g} s: name the module where the worker is "
                "started, so that it is imported first, and keep it from running or waiting when it is imported"
            )
        return one.result()

    def _work(self, package: str, one: _Import[Any], loop: asyncio.AbstractEventLoop) -> None:
        try:
            one.found = one.find()
        except BaseException as error:  # noqa: BLE001  SystemExit, too, is the module's
            one.error = error
        try:
            loop.call_soon_threadsafe(self._end, package, one)
        except RuntimeError:
            return  # the loop is closed: nobody waits any more

    def _end(self, package: str, one: _Import[Any]) -> None:
        one.ended = True
        if self._running.get(package) is one:
            del self._running[package]
        if not one.over.done():
            one.over.set_result(None)

    def _give_up(self, one: _Import[Any], thread: threading.Thread) -> None:
        if one.ended:
            return
        one.hangs = True
        one.over.set_result(None)
        self._on_hung(one.module, stack_of(thread.ident or 0))


def _locked_by(module: str) -> str:
    """What an import of it may have to wait for: the whole of its package, unless it is loaded already."""
    return module if module in sys.modules else module.partition(".")[0]
