"""Connections of redis-py's that look up their address whenever they connect: it may be another one by then."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeAlias
from urllib.parse import urlsplit

import redis
import redis.asyncio as aioredis
import redis.exceptions as rex

from queue_system.errors import QueueError

Lookup: TypeAlias = Callable[[], str]
"""Gives the URL of the server, of which host and port count. It may block. Raises `QueueError` when there is none."""


class LookupConnection(redis.Connection):
    """Of the synchronous client."""

    def __init__(self, *args: Any, lookup: Lookup, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[no-untyped-call]
        self._lookup = lookup

    def connect(self) -> None:
        """Look up the address, and connect, unless that is done."""
        if self._sock is None:
            self.host, self.port = _place(self._lookup)
        super().connect()  # type: ignore[no-untyped-call]


class AsyncLookupConnection(aioredis.Connection):
    """Of the client for asyncio: others have their turn meanwhile."""

    def __init__(self, *args: Any, lookup: Lookup, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._lookup = lookup

    async def connect(self) -> None:
        """Look up the address, and connect, unless that is done."""
        if not self.is_connected:
            self.host, self.port = await asyncio.to_thread(_place, self._lookup)
        await super().connect()  # type: ignore[no-untyped-call]


def _place(lookup: Lookup) -> tuple[str, int]:
    try:
        parts = urlsplit(lookup())
    except QueueError as error:
        raise rex.ConnectionError(f"Error connecting to the server: {error}") from error
    return str(parts.hostname), int(parts.port or 6379)
