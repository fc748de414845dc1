"""A worker that dies at a given boundary, and knows all that there are: it finds them by itself, nobody lists them.

A *boundary* is a point at which a worker may die. There are two kinds, each found by machinery:

- ``redis before NAME`` and ``redis after NAME`` for every script and command that it sends: after means that Redis has
  carried it out, and the worker has not seen the reply. Of a pipeline only what comes before the boundary is sent.
- ``into FUNCTION:LINE`` and ``out of FUNCTION:LINE`` for every function of the worker, the runtime and the processors
  below: a coroutine is left and entered at each ``await`` that suspends it, so each of those is a boundary of its own.

Without a target it only counts, and writes what it has counted.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Final

import queue_system
from chaos import processors
from chaos.worker import work_until_terminated
from queue_system import QueueConfig, QueueWorker, outcome
from queue_system.broker.aio import AsyncBroker
from queue_system.broker.messages import Call
from queue_system.broker.sync import SyncBroker
from queue_system.context import OperationContext
from queue_system.registry import Registry

PACKAGE: Final = Path(queue_system.__file__).parent
TRACED: Final = (PACKAGE / "worker.py", *sorted((PACKAGE / "runtime").glob("*.py")), Path(__file__))
SLOW: Final = 60.0
"""Seconds that a slow processor takes in the victim: longer than it lives."""

_NAME: Final = "jobs"
_INTERNAL: Final = ("<genexpr>", "<listcomp>", "<dictcomp>", "<setcomp>", "<lambda>")


class Boundaries:
    """Counts the hits of each boundary, and kills the process at the target's: ``(label, number of the hit)``."""

    def __init__(self, target: tuple[str, int] | None) -> None:
        self.hits: Counter[str] = Counter()
        self._target = target
        self._lock = threading.Lock()

    def reached(self, label: str) -> bool:
        """Count a hit; true when it is the target."""
        with self._lock:
            self.hits[label] += 1
            return self._target == (label, self.hits[label])

    def pass_by(self, label: str) -> None:
        """Count a hit, and die when it is the target."""
        if self.reached(label):
            die()


def die() -> None:
    """As `kill -9` would end it."""
    os.kill(os.getpid(), signal.SIGKILL)


def watch_redis(boundaries: Boundaries) -> None:
    """Make each call of the brokers pass its boundaries."""
    send_async, send_sync, send_many = AsyncBroker._send, SyncBroker._attempt, AsyncBroker._send_many  # noqa: SLF001
    begin_after = AsyncBroker.begin_after

    async def asynchronous(self: AsyncBroker, call: Call[Any], *rest: Any) -> Any:
        boundaries.pass_by(f"redis before {call.name}")
        reply = await send_async(self, call, *rest)
        boundaries.pass_by(f"redis after {call.name}")
        return reply

    def synchronous(self: SyncBroker, call: Call[Any], *rest: Any) -> Any:
        boundaries.pass_by(f"redis before {call.name}")
        reply = send_sync(self, call, *rest)
        boundaries.pass_by(f"redis after {call.name}")
        return reply

    async def many(self: AsyncBroker, calls: Sequence[Call[Any]], *rest: Any) -> list[Any]:
        if len(calls) == 1:
            return await send_many(self, calls, *rest)  # which calls `asynchronous`
        for position, call in enumerate(calls):
            for sent, when in ((position, "before"), (position + 1, "after")):
                if boundaries.reached(f"redis {when} {call.name}"):
                    await send_many(self, calls[:sent], *rest) if sent else None
                    die()
        return await send_many(self, calls, *rest)

    async def after(self: AsyncBroker, wait: Call[Any], call: Call[Any]) -> asyncio.Future[list[Any]]:
        boundaries.pass_by(f"redis before {wait.name}")
        if boundaries.reached(f"redis after {wait.name}"):
            await send_async(self, wait, self._exchange)
            die()
        pending = await begin_after(self, wait, call)
        pending.add_done_callback(lambda _: boundaries.pass_by(f"redis after {call.name} behind {wait.name}"))
        return pending

    AsyncBroker.begin_after = after  # type: ignore[method-assign]
    AsyncBroker._send, SyncBroker._attempt, AsyncBroker._send_many = asynchronous, synchronous, many  # type: ignore[method-assign]  # noqa: SLF001


def watch_steps(boundaries: Boundaries) -> None:
    """Make each function of the worker's path pass its boundaries, in this thread and those to come."""
    modules = {str(path): path.stem for path in TRACED}
    names: dict[CodeType, str | None] = {}

    def name_of(code: CodeType) -> str | None:
        if code not in names:
            module = modules.get(code.co_filename)
            own = code.co_filename == __file__ and code.co_qualname not in JOB_NAMES
            watched = module is not None and not own and not code.co_qualname.endswith(_INTERNAL)
            names[code] = f"{module}.{code.co_qualname}" if watched else None
        return names[code]

    def on_call(frame: FrameType, _: str, __: Any) -> Any:
        name = name_of(frame.f_code)
        if name is None:
            return None
        frame.f_trace_lines = False
        boundaries.pass_by(f"into {name}:{frame.f_lineno}")
        return on_return

    def on_return(frame: FrameType, event: str, _: Any) -> Any:
        if event == "return":
            boundaries.pass_by(f"out of {names[frame.f_code]}:{frame.f_lineno}")
        return on_return

    threading.settrace(on_call)
    sys.settrace(on_call)


async def work(entity: dict[str, Any], context: OperationContext) -> dict[str, Any]:
    """Succeed; fail or hang at the attempts that the entity names."""
    run = processors.ledger().start(context.operation_id, str(context.attempt))
    if context.attempt in entity.get("hangs", ()) or (entity.get("slow") and _is_victim()):
        await asyncio.sleep(SLOW)
    await asyncio.sleep(entity.get("seconds", 0.0))
    if context.attempt in entity.get("fails", ()):
        raise ValueError("it was to fail")
    processors.ledger().end(context.operation_id, run)
    return {"run": run}


def work_sync(entity: dict[str, Any], context: OperationContext) -> dict[str, Any]:
    """The same in a thread."""
    run = processors.ledger().start(context.operation_id, str(context.attempt))
    time.sleep(SLOW if entity.get("slow") and _is_victim() else entity.get("seconds", 0.0))
    if context.attempt in entity.get("fails", ()):
        raise ValueError("it was to fail")
    processors.ledger().end(context.operation_id, run)
    return {"run": run}


async def newer(entity: dict[str, Any], context: OperationContext) -> None:
    """What the victim does not know yet."""
    await work(entity, context)


async def called_back(data: dict[str, Any]) -> None:
    """A callback."""
    processors.ledger().write("callback", data["operation_id"])
    await asyncio.sleep(0)


def called_back_sync(data: dict[str, Any]) -> None:
    """The same in a thread."""
    processors.ledger().write("callback", data["operation_id"])


JOBS: Final[tuple[Callable[..., Any], ...]] = (work, work_sync, newer, called_back, called_back_sync)
JOB_NAMES: Final = frozenset(job.__name__ for job in JOBS)
_VICTIM_VARIABLE: Final = "CHAOS_VICTIM"


def _is_victim() -> bool:
    return _VICTIM_VARIABLE in os.environ


def registry_of(*, victim: bool) -> Registry:
    """What a worker knows: the victim is an older version, without `newer`."""
    registry = Registry()
    for job in JOBS:
        if not (victim and job is newer):
            registry.register(job, name=job.__name__, module=_NAME)
    return registry


def run(settings: dict[str, Any]) -> None:
    """A worker in a fork of the nursery, until SIGTERM.

    Settings: ``redis_url``, ``prefix``, ``ledger``, options of the ``worker``; a victim has ``victim`` (true),
    ``target`` (label and number of the hit, or null) and ``record`` (where to write the counts at the end).
    """
    os.environ[processors.LEDGER_VARIABLE] = settings["ledger"]
    victim = bool(settings.get("victim"))
    boundaries = None
    if victim:
        os.environ[_VICTIM_VARIABLE] = "1"
        outcome.UNKNOWN_DELAY = 0.3  # type: ignore[misc]  # a rolling deploy in a hurry
        target = settings["target"]
        boundaries = Boundaries(None if target is None else (target[0], target[1]))
        watch_redis(boundaries)
        watch_steps(boundaries)
    asyncio.run(_work(settings, registry_of(victim=victim)))
    sys.settrace(None)
    if boundaries is not None and settings["target"] is None:
        Path(settings["record"]).write_text(json.dumps(boundaries.hits))


async def _work(settings: dict[str, Any], registry: Registry) -> None:
    config = QueueConfig(
        redis_url=settings["redis_url"],
        queue_prefix=settings["prefix"],
        done_ttl=3600.0,
        importable_modules=[_NAME],  # where nothing is found: what is not registered is unknown
        telemetry=None,
        registry=registry,
    )
    await work_until_terminated(QueueWorker(config, **settings["worker"]))
