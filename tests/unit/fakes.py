"""What unit tests use in place of Redis: brokers that answer as they are told, and a listener that remembers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

from queue_system import AsyncQueueManager, QueueConfig, QueueManager
from queue_system.broker.messages import Call, Meanwhile, nothing
from queue_system.events import (
    Event,
)
from queue_system.hooks import Hooks
from queue_system.operation import Operation, decode_operation
from queue_system.registry import Registry

Answer = Callable[[Call[Any]], Any]


class FakeBroker:
    """Notes each call; its reply, which the call parses, is what `answer` returns or raises."""

    def __init__(self, answer: Answer = lambda _: []) -> None:
        self.answer = answer
        self.calls: list[Call[Any]] = []
        self.closed = False

    def carry_out(self, call: Call[Any]) -> Any:
        self.calls.append(call)
        return call.parse(self.answer(call))

    def run(self, call: Call[Any]) -> Any:
        return self.carry_out(call)

    def run_many(self, calls: Sequence[Call[Any]], meanwhile: Meanwhile = nothing) -> list[Any]:
        meanwhile()
        return [self.carry_out(call) for call in calls]

    def close(self) -> None:
        self.closed = True

    def named(self, name: str) -> list[Call[Any]]:
        return [call for call in self.calls if call.name == name]


class AsyncFakeBroker(FakeBroker):
    """The same, awaited."""

    version = "7.0.15"
    keeps_order = True
    is_cluster = False

    async def close(self) -> None:
        self.closed = True

    async def server_version(self) -> str:
        return self.version

    async def run(self, call: Call[Any]) -> Any:
        return self.carry_out(call)

    async def run_all(self, calls: Sequence[Call[Any]], meanwhile: Meanwhile = nothing) -> list[Any]:
        return self.run_many(calls, meanwhile)


class Recorder(Hooks):
    """Remembers events."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def on_event(self, event: Event) -> None:
        self.events.append(event)

    def of(self, kind: type[Event]) -> list[Any]:
        return [event for event in self.events if type(event) is kind]


def item(**fields: Any) -> Operation:
    """An operation as a worker claims it."""
    return {
        "v": 1,
        "operation_id": "id-1",
        "processor": "work",
        "processor_module": "app",
        "queue": "mail",
        "priority": "high",
        "entity": {"n": 1},
        **fields,
    }


async def send(entity):
    return entity


def compute(entity):
    return entity


def done(data):
    return data


def gave_up(data):
    return data


class Sent(SimpleNamespace):
    """One operation as it went to Redis: what the script is told beside the body, and the body."""


def sent(broker) -> list[Sent]:
    operations = []
    for call in broker.calls:
        for operation_id, delay, digest, window, body in operations_of(call):
            fields = {"id": operation_id.decode(), "delay": delay, "digest": digest, "window": window}
            decoded = decode_operation(body, max_depth=1000)
            operations.append(Sent(queue=call.args[1], kind=call.args[2], body=decoded, raw=body, **fields))
    return operations


def operations_of(call: Call[Any]) -> list[tuple[Any, ...]]:
    """What a call enqueues: id, delay, dedup digest, dedup window, body."""
    rest = call.args[5:]
    if call.name == "enqueue":
        return [tuple(rest[at : at + 5]) for at in range(0, len(rest), 5)]
    return [(rest[0], 0, "", 0, rest[1])] if call.name == "enqueue_one" else []


def queued(call: Call[Any]) -> list[bytes]:
    """The reply to a call that enqueues, when all of it is queued."""
    return [b"q"] * len(operations_of(call))


class Producer:
    """A manager of either kind, called in the same way; each of its methods returns or raises at once."""

    def __init__(self, kind: str, **options) -> None:
        self.config = QueueConfig(**{"telemetry": None, "registry": Registry(), **options})
        self.answer = queued
        make_broker = FakeBroker if kind == "sync" else AsyncFakeBroker
        self.broker = make_broker(lambda call: self.answer(call))  # noqa: PLW0108  a test may set another answer
        self.config._broker = self.broker
        self.manager = QueueManager(self.config) if kind == "sync" else AsyncQueueManager(self.config)
        if kind == "async":
            self.config.new_async_broker = lambda **_: self.broker

    def __getattr__(self, name: str):
        method = getattr(self.manager, name)

        def call(*args, **kwargs):
            result = method(*args, **kwargs)
            return asyncio.run(result) if asyncio.iscoroutine(result) else result

        return call

    def enqueued(self, *args, **kwargs) -> Sent:
        self.enqueue(*args, **kwargs)
        return sent(self.broker)[-1]
