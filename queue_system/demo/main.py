"""The demo from its start to its end: enqueue, work, gather, check."""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from queue_system import QueueConfig, QueueError, QueueManager, QueueWorker
from queue_system.demo import checks, report
from queue_system.demo.display import LoopView, WorkView, shown
from queue_system.demo.feed import Feed
from queue_system.demo.files import PRIORITIES, SourceFiles, by_priority, find_files
from queue_system.demo.processors import ON_FAILURE, ON_SUCCESS, endless, hopeless, measure, parse, unsteady
from queue_system.demo.totals import Ledger, Totals, plain_loop

EXIT_EQUAL: Final = 0
EXIT_DIFFERENT: Final = 1
EXIT_INTERRUPTED: Final = 130

UNSTEADY_OPERATIONS: Final = 10
MAX_WORKERS: Final = 8
"""Async operations and callbacks at once."""

THREADS: Final = 4
"""Sync operations at once."""

STALLED_AFTER: Final = 30.0
"""Seconds without news after which the demo no longer waits for what is missing."""

SETTLE_WITHIN: Final = 5.0
"""Seconds for the last outcomes to be written to Redis."""

STOP_WITHIN: Final = 5.0
"""Seconds for what runs when the worker is stopped, also on Ctrl-C."""

FAILURES_KEPT_FOR: Final = 3600.0

_POLL: Final = 0.05
_WIDTH: Final = 100  # where there is no terminal to ask


def run(path: Path | None = None, redis_url: str = "embedded://") -> int:
    """Do real work through the queue, and check what came of it against a plain loop.

    Each Python file under `path` is measured by a sync operation and parsed by an async one. Some more operations fail
    twice and then succeed, one times out, one fails for good. The worker runs in this process and is stopped at the
    end. Each run has a prefix of its own in Redis, where its failures stay for an hour and its counters for good.

    Args:
        path: a directory or file; None for the standard library of the running Python. See `files.find_files`.
        redis_url: as for `QueueConfig`; by default a server that lives as long as this process.

    Returns:
        0 when every operation ended as it should and each total equals that of the plain loop, 1 when not (what differs
        has been printed), 130 after Ctrl-C.

    Raises:
        QueueError: no such path, no Python file under it, or no Redis at `redis_url`.
    """
    console = _console()
    feed = Feed()
    files = find_files(path)
    prefix = f"demo:{uuid.uuid4().hex[:8]}:"
    with QueueConfig(
        redis_url=redis_url, queue_prefix=prefix, backup_ttl=FAILURES_KEPT_FOR, telemetry=[feed]
    ) as config:
        demo = Demo(config, files, feed, console)
        try:
            return demo.run()
        except KeyboardInterrupt:
            return demo.interrupted()


class Demo:
    """One run of the demo.

    Args:
        config: the queue, new and empty.
        files: what to work on.
        feed: listens to the queue; `config` has it as its telemetry.
        console: where to print.
    """

    def __init__(self, config: QueueConfig, files: SourceFiles, feed: Feed, console: Console) -> None:
        self.config = config
        self.files = files
        self.feed = feed
        self.console = console
        self.queue = QueueManager(config)
        self.ledger = Ledger()
        config.register_callback(self.ledger.on_success, name=ON_SUCCESS)
        config.register_callback(self.ledger.on_failure, name=ON_FAILURE)

    def run(self) -> int:
        """Everything, in its order; the result is the exit code."""
        report.print_start(self.console, self.files, self.config)
        self.enqueue()
        status, plain = asyncio.run(self.work())
        return self.conclude(status, plain)

    def enqueue(self) -> None:
        """Enqueue everything, before a worker is there: many with `enqueue_batch`, single ones with `enqueue`."""
        began = time.monotonic()
        for priority, paths in by_priority(self.files.paths).items():
            entities = [{"path": str(path)} for path in paths]
            self._expect(self.queue.enqueue_batch(entities, measure, priority=priority))
            self._expect(self.queue.enqueue_batch(entities, parse, priority=priority))
        some = [{"path": str(path)} for path in self.files.paths[:UNSTEADY_OPERATIONS]]
        self._expect(self.queue.enqueue_batch(some, unsteady))
        self._expect([self.queue.enqueue(some[0], endless), self.queue.enqueue(some[0], hopeless)])
        report.print_enqueued(self.console, len(self.ledger.enqueued), time.monotonic() - began)

    async def work(self) -> tuple[dict[str, Any], Totals]:
        """Let a worker do it all, then do the same in a plain loop.

        Returns:
            The status of the queue after the work, and the totals of the plain loop.
        """
        async with shown(WorkView(self.feed), self.console), self._worker():
            self.feed.start()
            await self._until_all_is_heard()
            self.feed.stop()
            status = await self._settled_status()
        loop = LoopView(len(self.files.paths))
        async with shown(loop, self.console):
            return status, await plain_loop(self.files.paths, loop.advance)

    def conclude(self, status: Mapping[str, Any], plain: Totals) -> int:
        """Print what came of it; the result is the exit code."""
        totals, expected = self.ledger.totals().rows(), plain.rows()
        problems = [
            *checks.lost(self.ledger),
            *checks.strays(self.ledger),
            *checks.differences(totals, expected),
            *checks.status_mismatches(status, self.ledger, self.config.keys.failures),
        ]
        report.print_endings(self.console, self.ledger)
        report.print_totals(self.console, totals, expected)
        report.print_status(self.console, status)
        report.print_verdict(self.console, problems, self.ledger.heard, self.feed.seconds)
        report.print_next_steps(self.console, self.config)
        return EXIT_DIFFERENT if problems else EXIT_EQUAL

    def interrupted(self) -> int:
        """Leave no operation behind that is still to be done, and say so; the result is the exit code."""
        with suppress(QueueError):  # without Redis there is nothing to be done about it
            status = self.queue.get_queue_status()
            for priority in PRIORITIES:
                start = f"{self.config.queue_prefix}{priority}:"
                for name in [key.removeprefix(start) for key in status if key.startswith(start)]:
                    self.queue.purge_queue(name, priority)
        report.print_interrupted(self.console, self.ledger)
        return EXIT_INTERRUPTED

    def _expect(self, receipts: Sequence[Mapping[str, Any]]) -> None:
        self.ledger.expect(receipts)
        self.feed.expect(receipts)

    @asynccontextmanager
    async def _worker(self) -> AsyncIterator[None]:
        worker = QueueWorker(self.config, max_workers=MAX_WORKERS, thread_pool_size=THREADS)
        await worker.start()
        try:
            yield
        finally:
            await worker.stop(grace=STOP_WITHIN)

    async def _until_all_is_heard(self) -> None:
        """Wait until the callbacks have told of every operation, as long as there is news from time to time."""
        heard, since = -1, time.monotonic()
        while self.ledger.missing() and time.monotonic() - since < STALLED_AFTER:
            await asyncio.sleep(_POLL)
            if self.ledger.heard != heard:
                heard, since = self.ledger.heard, time.monotonic()

    async def _settled_status(self) -> dict[str, Any]:
        """The status once nothing is left to do but to look at the failures, or after `SETTLE_WITHIN` all the same."""
        deadline = time.monotonic() + SETTLE_WITHIN
        while True:
            status = await asyncio.to_thread(self.queue.get_queue_status)
            given_up = status[self.config.keys.failures] + status[self.config.keys.system_errors]
            if status["total_items"] == given_up and not status["delayed"] and not status["in_flight"]:
                return status
            if time.monotonic() > deadline:
                return status
            await asyncio.sleep(_POLL)


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leave it to the caller what to do when the reader of the output has gone; rich would exit, in any task."""
        raise BrokenPipeError


def _console() -> Console:
    console = _Console(highlight=False)
    return console if console.is_terminal or "COLUMNS" in os.environ else _Console(highlight=False, width=_WIDTH)
