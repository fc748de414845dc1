"""Long-running tasks under one contract: idempotent `start` and `stop`, started again when they fail."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

logger = logging.getLogger("queue_system.loops")

RESTART_DELAY: Final = 0.2
MAX_RESTART_DELAY: Final = 5.0
CANCEL_INTERVAL: Final = 0.1
CANCEL_TRIES: Final = 10


class SupervisedLoop:
    """One coroutine function that runs until it is stopped.

    Whatever it raises, a `BaseException` or a cancellation that is not its own included, `on_failure` is told its name
    and the error, and it is started again after a delay that doubles from 0.2 s to 5 s while it fails at once. When it
    returns, it has ended.
    """

    def __init__(
        self, name: str, run: Callable[[], Awaitable[None]], on_failure: Callable[[str, BaseException], None]
    ) -> None:
        self.name = name
        self._run = run
        self._on_failure = on_failure
        self._task: asyncio.Task[None] | None = None

    @property
    def alive(self) -> bool:
        """Whether it runs, or waits to be started again."""
        return self._task is not None and not self._task.done()

    def start(self) -> None:
        """Start it; nothing happens when it runs already."""
        if not self.alive:
            self._task = asyncio.get_running_loop().create_task(self._supervise(), name=self.name)

    async def stop(self) -> None:
        """Cancel it and wait until it has ended; again and again, for a client that connects may swallow it.

        For a second at most: a processor may swallow it, too, and never end.
        """
        for _ in range(CANCEL_TRIES):
            if self._task is None or self._task.done():
                break
            self._task.cancel()
            await asyncio.wait([self._task], timeout=CANCEL_INTERVAL)
        self._task = None

    async def _supervise(self) -> None:
        delay, clock = RESTART_DELAY, asyncio.get_running_loop()
        while True:
            began = clock.time()
            try:
                await self._run()
            except BaseException as error:
                if self._is_stopped_by(error):
                    raise
                self._tell(error)
            else:
                return
            if self._task is not None and self._task.cancelling():
                return  # what it raised was its answer to being stopped
            if clock.time() - began > MAX_RESTART_DELAY:
                delay = RESTART_DELAY
            await asyncio.sleep(delay)
            delay = min(2 * delay, MAX_RESTART_DELAY)

    def _is_stopped_by(self, error: BaseException) -> bool:
        """Whether it is the end of the task itself: its cancellation, or that of a coroutine which nobody runs."""
        if isinstance(error, asyncio.CancelledError):
            return self._task is None or self._task.cancelling() > 0
        return isinstance(error, GeneratorExit) and not self._is_running()

    def _is_running(self) -> bool:
        try:
            return self._task is not None and asyncio.current_task() is self._task
        except RuntimeError:
            return False  # no event loop runs in this thread: the coroutine is being closed

    def _tell(self, error: BaseException) -> None:
        try:
            self._on_failure(self.name, error)
        except BaseException:
            logger.exception("the failure of %s could not be told", self.name)
