"""A TCP proxy that is bad on purpose: it stands between a client and Redis, and does what networks do.

It runs an event loop in a thread of its own, and is told what to do from any thread::

    with Proxy(server.port, seed=7) as proxy:
        config = QueueConfig(redis_url=proxy.url)
        proxy.drop_replies = 0.05
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any, Final, Self

_HOST: Final = "127.0.0.1"
_CHUNK: Final = 65_536
_LIMIT_SECONDS: Final = 10.0


class Proxy:
    """Passes bytes on, unless told otherwise.

    Args:
        target: the port of 127.0.0.1 to pass connections on to; `target` may be changed (new connections follow).
        seed: of the dice.

    Attributes:
        drop_replies: probability, for each round trip, that the request goes through, the reply is swallowed and the
            connection is cut.
        delay: seconds that each piece of a reply is kept.
        did: how often it did what: ``connections``, ``refused``, ``requests``, ``replies``, ``replies_dropped``,
            ``swallowed_bytes``, ``cut``.
        port: where it listens; kept while it refuses.
    """

    def __init__(self, target: int, *, seed: int = 1) -> None:
        self.target = target
        self.drop_replies = 0.0
        self.delay = 0.0
        self.did: Counter[str] = Counter()
        self.port = 0
        self._dice = random.Random(seed)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="chaos-proxy", daemon=True)
        self._server: asyncio.Server | None = None
        self._links: set[_Link] = set()
        self._swallow_new = False

    @property
    def url(self) -> str:
        """The address, for `QueueConfig`."""
        return f"redis://{_HOST}:{self.port}/0"

    @property
    def open_links(self) -> int:
        """How many connections pass through it now."""
        return len(self._links)

    def __enter__(self) -> Self:
        self._thread.start()
        self._call(self._listen())
        return self

    def __exit__(self, *_: object) -> None:
        self._call(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_LIMIT_SECONDS)
        self._loop.close()

    def refuse(self) -> None:
        """Cut all connections and refuse new ones, like a port where nobody listens."""
        self._call(self._refuse())

    def accept(self) -> None:
        """Listen again after `refuse`, pass everything after `partition`."""
        self._swallow_new = False
        self._call(self._listen())

    def cut(self) -> int:
        """Cut all connections that are open; says how many."""
        return self._call(self._each(_Link.cut))

    def half_open(self) -> int:
        """From now on swallow every byte on the connections that are open, and tell nobody. New ones pass."""
        return self._call(self._each(_Link.swallow))

    def partition(self) -> int:
        """The same for new connections as well: they are made, and nothing comes through, until `accept`."""
        self._swallow_new = True
        return self.half_open()

    def _call(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(_LIMIT_SECONDS)

    async def _listen(self) -> None:
        if self._server is None:
            self._server = await asyncio.start_server(self._serve, _HOST, self.port, limit=_CHUNK, reuse_address=True)
            self.port = self._server.sockets[0].getsockname()[1]

    async def _refuse(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        await self._each(_Link.cut)

    async def _close(self) -> None:
        await self._refuse()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        if tasks:  # each ends by itself, now that its connections are gone
            await asyncio.wait(tasks, timeout=_LIMIT_SECONDS / 2)

    async def _each(self, act: Callable[[_Link], None]) -> int:
        links = list(self._links)
        for link in links:
            act(link)
        return len(links)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.did["connections"] += 1
        try:
            server = await asyncio.open_connection(_HOST, self.target, limit=_CHUNK)
        except OSError:
            self.did["refused"] += 1
            writer.transport.abort()
            return
        link = _Link(self, (reader, writer), server, swallowing=self._swallow_new)
        self._links.add(link)
        try:
            await link.run()
        finally:
            self._links.discard(link)

    def rolls(self, probability: float) -> bool:
        """Whether the dice say so."""
        return probability > 0 and self._dice.random() < probability


Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class _Link:
    """One connection through the proxy: two pumps."""

    def __init__(self, proxy: Proxy, client: Stream, server: Stream, *, swallowing: bool) -> None:
        self._proxy, self._client, self._server = proxy, client, server
        self._swallowing = swallowing
        self._aborted = asyncio.Event()
        self._asked = False  # a request went through, and nothing of its reply did

    async def run(self) -> None:
        """Pump until one side closes, then close the other."""
        pumps = {asyncio.ensure_future(self._requests()), asyncio.ensure_future(self._replies())}
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            self._abort()

    def cut(self) -> None:
        """Close both sides at once."""
        self._proxy.did["cut"] += 1
        self._abort()

    def swallow(self) -> None:
        """Pass nothing on any more, and stay connected."""
        self._swallowing = True

    async def _requests(self) -> None:
        async for data in _chunks(self._client[0]):
            if self._swallows(data):
                continue
            self._asked = True
            self._proxy.did["requests"] += 1
            self._server[1].write(data)
            await self._server[1].drain()
        await self._hang_if_swallowing()

    async def _replies(self) -> None:
        async for data in _chunks(self._server[0]):
            if self._swallows(data):
                continue
            if self._asked:
                self._asked = False
                self._proxy.did["replies"] += 1
                if self._proxy.rolls(self._proxy.drop_replies):
                    self._proxy.did["replies_dropped"] += 1
                    self._abort()
                    return
            if self._proxy.delay:
                await asyncio.sleep(self._proxy.delay)
            self._client[1].write(data)
            await self._client[1].drain()
        await self._hang_if_swallowing()

    def _swallows(self, data: bytes) -> bool:
        if self._swallowing:
            self._proxy.did["swallowed_bytes"] += len(data)
        return self._swallowing

    async def _hang_if_swallowing(self) -> None:
        """Not even the end of a swallowed connection gets to the other side: that one keeps its half for good."""
        if self._swallowing:
            await self._aborted.wait()

    def _abort(self) -> None:
        self._aborted.set()
        for _, writer in (self._client, self._server):
            writer.transport.abort()


async def _chunks(reader: asyncio.StreamReader) -> Any:
    with contextlib.suppress(OSError):
        while data := await reader.read(_CHUNK):
            yield data
