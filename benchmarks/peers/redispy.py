"""redis-py's own round trip, in the place of a system: what a producer can reach at most."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import redis

from benchmarks.limits import BODY
from benchmarks.peers.common import REDIS, Peer, Producer, Role, run


def produce() -> Producer:
    client = redis.Redis.from_url(REDIS)
    client.delete("limit")

    def one(_: Callable[..., Any], __: dict[str, Any]) -> None:
        client.lpush("limit", BODY)

    return Producer(one, close=client.close)


def work(_: Role) -> None:
    raise SystemExit("there is nothing to work on")


if __name__ == "__main__":
    run(Peer(package="redis", kinds=("sync", "async"), settings={}, produce=produce, work=work))
