"""The checker of liveness: whenever work is ready and slots are free, a worker claims, or none says that it is alive.

Each worker of a lab says every `SAY_INTERVAL` what its ``/livez`` would: one that is silent (stopped, killed, hung)
fails that probe, too. The checker looks beside the scenario at Redis and at all of them. A worker is excused as long as
it says that Redis cannot serve it: that is what ``/readyz`` is for, since a new process could not do more. So it is
while Redis tells the checker the same.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import redis

from queue_system import QueueWorker
from queue_system.broker.messages import KIND_ASYNC, KIND_SYNC
from queue_system.keys import Keys

LIMIT: Final = 15.0
"""Seconds within which a worker must claim, or say that it is not alive."""

SAY_INTERVAL: Final = 0.3
LOOK_INTERVAL: Final = 0.5
SILENT_AFTER: Final = 3.0
_READ_TIMEOUT: Final = 2.0


@dataclass(frozen=True, slots=True)
class Sign:
    """What a worker says of itself. `slots` are those of async and of sync operations that are free."""

    name: str
    alive: bool
    excused: bool
    slots: tuple[int, int]

    def may_claim(self, kind: str) -> bool:
        """Whether it is to claim what is ready in a queue of this kind."""
        if not self.alive or self.excused:
            return False
        return (kind == KIND_SYNC or self.slots[0] > 0) and (kind == KIND_ASYNC or self.slots[1] > 0)


@dataclass(frozen=True, slots=True)
class Scene:
    """What there is at one moment: `ready` has the kinds of the queues that are not empty, `claimed` a mark that is
    another one after each claim.
    """  # noqa: D205

    ready: frozenset[str]
    claimed: str
    workers: tuple[Sign, ...]


class Judge:
    """Finds standstills in what it is shown. Pure.

    Args:
        limit: seconds.
    """

    def __init__(self, limit: float = LIMIT) -> None:
        self.problems: list[str] = []
        self._limit = limit
        self._claimed: str | None = None
        self._since: float | None = None

    def see(self, now: float, scene: Scene | None) -> None:
        """Take a look; None when Redis did not answer, or cannot serve."""
        if scene is None:
            self._since = None
            return
        idle = [each.name for each in scene.workers if any(map(each.may_claim, scene.ready))]
        if not idle or scene.claimed != self._claimed:
            self._since = None
        elif self._since is not None and now - self._since > self._limit:
            self.problems.append(
                f"work was ready and slots were free, but nothing was claimed for {now - self._since:.1f} s,"
                f" and these workers say that they are alive: {', '.join(idle)}"
            )
            self._since = None  # told once, and again when it lasts
        if idle and self._since is None:
            self._since = now
        self._claimed = scene.claimed


class Worker(Protocol):
    """Whoever has a worker in a process of its own."""

    def sign(self) -> Sign | None:
        """What it says of itself; None when it says nothing."""
        ...


class Checker:
    """Looks in a thread of its own until it is stopped.

    Args:
        connect: makes a client of the server.
        keys: of the queue.
        workers: asked for those that there are.
        limit: see `Judge`.
    """

    def __init__(
        self,
        connect: Callable[[float], redis.Redis],
        keys: Keys,
        workers: Callable[[], Iterable[Worker]],
        limit: float = LIMIT,
    ) -> None:
        self._connect = connect
        self._keys = keys
        self._workers = workers
        self._judge = Judge(limit)
        self._ending = threading.Event()
        self._broken: list[str] = []
        self._thread = threading.Thread(target=self._run, name="chaos-liveness", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> list[str]:
        """End it; says what it has found. A checker that has broken down is a problem as well."""
        self._ending.set()
        self._thread.join(timeout=30)
        hung = ["the checker of liveness hangs"] if self._thread.is_alive() else []
        return [*self._judge.problems, *self._broken, *hung]

    def _run(self) -> None:
        try:
            with contextlib.closing(self._connect(_READ_TIMEOUT)) as client:
                while not self._ending.wait(LOOK_INTERVAL):
                    self._judge.see(time.monotonic(), self._scene(client))
        except Exception as error:  # noqa: BLE001  whatever it is, it must be seen that nobody looks any more
            self._broken.append(f"the checker of liveness broke down: {type(error).__name__}: {error}")

    def _scene(self, client: redis.Redis) -> Scene | None:
        try:
            # A write that is carried out even when memory is full, as a claim is: can Redis serve at all?
            client.delete(f"{self._keys.prefix}liveness:none")
            ready, claimed = self._ready(client), self._claimed(client)
        except (redis.RedisError, OSError):
            return None
        signs = [worker.sign() for worker in self._workers()]
        return Scene(ready, claimed, tuple(sign for sign in signs if sign is not None))

    def _ready(self, client: redis.Redis) -> frozenset[str]:
        queues: dict[str, str] = client.hgetall(self._keys.registry)
        pipeline = client.pipeline(transaction=False)
        for queue in queues:
            pipeline.llen(self._keys.prefix + queue)
        lengths = pipeline.execute(raise_on_error=False)
        # A key of that name that is no list has an error in place of its length.
        return frozenset(kind for kind, length in zip(queues.values(), lengths, strict=True) if is_some(length))

    def _claimed(self, client: redis.Redis) -> str:
        try:
            return str(client.get(f"{self._keys.prefix}token"))  # each claim that takes something takes a new token
        except redis.ResponseError as error:
            return str(error)


def is_some(length: Any) -> bool:
    """Whether it is the length of a list that is not empty."""
    return isinstance(length, int) and length > 0


def sign_of(worker: QueueWorker, name: str = "") -> Sign:
    """What a worker of this process says of itself."""
    health, engine = worker.health(), worker._engine  # noqa: SLF001  no public interface has its free slots
    slots = engine.intake.free()
    free = (slots.for_async, slots.for_sync) if engine.fetcher.accepting else (0, 0)
    excused = engine.fetcher.record.is_away or health.ready_checks.get("redis") != "ok"
    return Sign(name, health.alive, excused, free)


def say(worker: QueueWorker, path: Path) -> None:
    """Write what this process's worker says of itself, again and again, for `read_sign`. In a thread of its own."""
    draft = path.with_suffix(".draft")
    while worker.state != "stopped":
        if worker.state != "new":
            draft.write_text(json.dumps(asdict(sign_of(worker)) | {"at": time.monotonic()}))
            draft.replace(path)
        time.sleep(SAY_INTERVAL)


def read_sign(path: Path, name: str) -> Sign | None:
    """What was written there last, unless it is older than `SILENT_AFTER`."""
    try:
        said = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    if time.monotonic() - said["at"] > SILENT_AFTER:
        return None
    return Sign(name, bool(said["alive"]), bool(said["excused"]), tuple(said["slots"]))
