"""What the demo shows while it works: bars in a terminal, a line a second elsewhere."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Final, Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.text import Text

from queue_system.demo.feed import KINDS, LANES, Feed, Lane
from queue_system.demo.files import PRIORITIES

_FRAME: Final = 0.1
_LINE: Final = 1.0
_BAR_WIDTH: Final = 50


class View(Protocol):
    """Something that goes on, to be looked at."""

    def line(self) -> str:
        """How it stands, as plain text."""

    def picture(self) -> RenderableType:
        """How it stands, as bars."""


class WorkView:
    """The work of the queue: a bar for each lane, the counts, and what did not go well lately."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        self._bars = _Bars()

    def line(self) -> str:
        """See `View`."""
        return f"{self._feed.seconds:4.0f} s  {'; '.join(map(self._shares, KINDS))}"

    def picture(self) -> RenderableType:
        """See `View`."""
        feed = self._feed
        for lane in LANES:
            self._bars.set(str(lane), feed.done[lane], feed.enqueued[lane])
        latest = [Text(line, style="dim", overflow="ellipsis", no_wrap=True) for line in feed.latest]
        return Group(self._bars.picture(), Text(feed.summary()), *latest)

    def _shares(self, is_async: bool) -> str:
        lanes = (Lane(is_async, priority) for priority in PRIORITIES)
        shares = (f"{lane.priority} {self._feed.done[lane]}/{self._feed.enqueued[lane]}" for lane in lanes)
        return f"{KINDS[is_async]}: {', '.join(shares)}"


class LoopView:
    """The plain loop: one bar. `advance` is called after each of its `total` steps."""

    def __init__(self, total: int) -> None:
        self._done = 0
        self._total = total
        self._bars = _Bars()

    def advance(self) -> None:
        """Another step is done."""
        self._done += 1

    def line(self) -> str:
        """See `View`."""
        return f"plain loop: {self._done:,} of {self._total:,} files"

    def picture(self) -> RenderableType:
        """See `View`."""
        self._bars.set("plain loop", self._done, self._total)
        return self._bars.picture()


class _Bars:
    """Bars by name, each with its count."""

    def __init__(self) -> None:
        columns = (TextColumn("{task.description:<12}"), BarColumn(_BAR_WIDTH), TextColumn("{task.fields[count]}"))
        self._progress = Progress(*columns)
        self._tasks: dict[str, TaskID] = {}

    def set(self, name: str, done: int, total: int) -> None:
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(name, count="")
        self._progress.update(self._tasks[name], completed=done, total=total, count=f"{done:,} of {total:,}")

    def picture(self) -> RenderableType:
        return self._progress.get_renderable()


@asynccontextmanager
async def shown(view: View, console: Console) -> AsyncIterator[None]:
    """Show the view for the length of the block. Painting is a task of the event loop, beside the work."""
    if not console.is_interactive:
        async with _repeated(lambda: console.print(Text(view.line()), soft_wrap=True), _LINE):
            yield
        return
    with Live(console=console, auto_refresh=False) as live:
        async with _repeated(lambda: live.update(view.picture(), refresh=True), _FRAME):
            yield


@asynccontextmanager
async def _repeated(paint: Callable[[], None], interval: float) -> AsyncIterator[None]:
    """Paint every `interval` seconds, and once at the end."""

    async def keep_painting() -> None:
        while True:
            paint()
            await asyncio.sleep(interval)

    task = asyncio.get_running_loop().create_task(keep_painting())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        paint()
