"""Concurrent enqueues of one event loop, sent together: what is asked for while others are on their way goes in one.

Those for the same queue become one call of the script that accepts many: it says for each what became of it. So a group
is one request with one number, which is sent again as a whole, and carried out once. What could be refused for a reason
of its own (a deduplication key, a delay) has a call of its own beside the others, in the same round trip.
"""

from __future__ import annotations

import asyncio
import contextvars
import copy
from collections import deque
from collections.abc import Sequence
from typing import Any, Final

from queue_system.broker.aio import AsyncBroker
from queue_system.broker.commands import Commands
from queue_system.broker.messages import MAX_ENQUEUE, Call, NewOperation
from queue_system.broker.places import CrowdedError
from queue_system.broker.translate import ClosedConnectionError, translate

CONNECTIONS: Final = 4
"""Connections of an asynchronous manager for each event loop, at most."""

MOST_GROUPS: Final = 2
"""Groups that are on their way at once: while Redis has one, the next is written."""

ENOUGH: Final = 16
"""Operations that make a group before the turn of the event loop ends, so that Redis is at work on them meanwhile."""

MOST_BYTES: Final = 1 << 20
"""Of the operations of a group, unless it has one only: so much is in memory twice, and holds up Redis at a time."""

Answer = tuple[Any, Any]
"""As the replies of a round trip of its own: what became of it, see `Commands.enqueue`, and how many confirmed it."""


class _Member:
    """An operation that waits for its group, or for its answer."""

    __slots__ = ("answer", "kind", "name", "operation", "until")

    def __init__(self, name: tuple[str, str], kind: str, operation: NewOperation, until: float) -> None:
        self.name = name
        self.kind = kind
        self.operation = operation
        self.until = until
        self.answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

    def fail(self, error: BaseException) -> None:
        """With an error of its own: whoever is told may add to it, and its traceback grows."""
        if not self.answer.done():
            own = copy.copy(error)
            own.__cause__ = error.__cause__
            self.answer.set_exception(own)


class EnqueueGroups:
    """Groups of one kind. For one event loop.

    Args:
        broker: carries them out.
        commands: of the queue system.
        address: of Redis, for errors.
        patience: seconds for which an operation waits for its group to be sent, at most.
        confirm: asks replicas to confirm what was sent before, if they are to.
        most: groups at once. Those that replicas confirm hold up their connection.
    """

    def __init__(
        self,
        broker: AsyncBroker,
        commands: Commands,
        address: str,
        *,
        patience: float,
        confirm: Call[Any] | None = None,
        most: int = MOST_GROUPS,
    ) -> None:
        self._broker = broker
        self._commands = commands
        self._address = address
        self._patience = patience
        self._confirm = confirm
        self._most = most
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[_Member] = deque()
        self._groups: set[asyncio.Task[None]] = set()
        self._alone = 0  # requests that have nobody to share with: they are sent by who asks
        self._is_due = False
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    @property
    def busy(self) -> bool:
        """Whether anything is on its way, so that others join."""
        return bool(self._alone or self._groups or self._waiting)

    def depart(self) -> None:
        """A request is sent alone. Say `arrived` at its end."""
        self._alone += 1

    def arrived(self) -> None:
        """See `depart`."""
        self._alone -= 1
        self._send_soon()

    def join(self, queue: str, priority: str, kind: str, operation: NewOperation) -> asyncio.Future[Answer]:
        """Send an operation with the next group.

        Returns:
            A future of its `Answer`. When it is cancelled, the group goes on without it, or with it, if it was sent.
            It raises what `AsyncBroker.run` does, and `ClosedError`.
        """
        member = _Member((queue, priority), kind, operation, self._loop.time() + self._patience)
        if self._closed:
            member.fail(translate(ClosedConnectionError(was_sent=False), self._address))
            return member.answer
        self._waiting.append(member)
        if len(self._waiting) >= ENOUGH and len(self._groups) + self._alone < self._most:
            self._send()
        else:
            self._send_soon()
        return member.answer

    def close(self) -> None:
        """Tell those that wait. Those on their way are told by the broker."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        waiting, self._waiting = self._waiting, deque()
        for member in waiting:
            member.fail(translate(ClosedConnectionError(was_sent=False), self._address))

    def _send_soon(self) -> None:
        """At the end of this turn of the event loop, in which others may join."""
        if self._waiting and not self._is_due:
            self._is_due = True
            self._loop.call_soon(self._send_due)

    def _send_due(self) -> None:
        self._is_due = False
        self._send()

    def _send(self) -> None:
        while self._waiting and len(self._groups) + self._alone < self._most:
            members = self._next_group()
            if members:
                # In a context of its own: what one of the callers has in its context is nobody else's.
                task = self._loop.create_task(self._carry_out(members), context=contextvars.Context())
                self._groups.add(task)
                task.add_done_callback(self._ended)
        if self._waiting and self._timer is None:
            self._timer = self._loop.call_at(self._waiting[0].until, self._look_at_the_time)

    def _next_group(self) -> list[_Member]:
        members: list[_Member] = []
        size = 0
        while self._waiting and len(members) < MAX_ENQUEUE:
            member = self._waiting[0]
            size += len(member.operation.body)
            if size > MOST_BYTES and members:
                break
            self._waiting.popleft()
            if not member.answer.done():  # it may have been cancelled
                members.append(member)
        return members

    def _look_at_the_time(self) -> None:
        self._timer = None
        now = self._loop.time()
        while self._waiting and self._waiting[0].until <= now:
            self._waiting.popleft().fail(translate(CrowdedError(self._most, self._patience), self._address))
        if self._waiting:
            self._timer = self._loop.call_at(self._waiting[0].until, self._look_at_the_time)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._groups.discard(task)
        self._send_soon()

    async def _carry_out(self, members: Sequence[_Member]) -> None:
        try:
            await self._exchange(members)
        except Exception as error:  # noqa: BLE001  it is told to each, and nobody else is there to be told
            _fail(members, error)
        except BaseException:  # the task was cancelled: the event loop is about to end
            _fail(members, translate(ClosedConnectionError(was_sent=True), self._address))
            raise

    async def _exchange(self, members: Sequence[_Member]) -> None:
        parts = _parts(members)
        calls: list[Call[Any]] = []
        try:
            for part in parts:
                (queue, priority), kind = part[0].name, part[0].kind
                operations = [member.operation for member in part]
                calls.append(self._commands.enqueue(queue, priority, kind, operations))
            confirm = [] if self._confirm is None else [self._confirm]
            outcomes = await self._broker.run_each([*calls, *confirm])
        finally:
            for call in calls:
                if call.lane is not None:
                    self._commands.lanes.give_back(call.lane)
        confirmed = outcomes.pop() if confirm else 0
        for part, outcome in zip(parts, outcomes, strict=True):
            if isinstance(outcome, BaseException):
                _fail(part, outcome)
            else:
                _answer(part, outcome, confirmed)


def _parts(members: Sequence[_Member]) -> list[list[_Member]]:
    """Those for the same queue together, where none of them can be refused without the others."""
    parts: list[list[_Member]] = []
    shared: dict[tuple[tuple[str, str], str], list[_Member]] = {}
    for member in members:
        if member.operation.delay or member.operation.deduplication_key is not None:
            parts.append([member])
            continue
        part = shared.get((member.name, member.kind))
        if part is None:
            shared[member.name, member.kind] = part = []
            parts.append(part)
        part.append(member)
    return parts


def _answer(members: Sequence[_Member], answers: Sequence[Any], confirmed: Any) -> None:
    for member, answer in zip(members, answers, strict=True):
        if not member.answer.done():
            member.answer.set_result(([answer], confirmed))


def _fail(members: Sequence[_Member], error: BaseException) -> None:
    for member in members:
        member.fail(error)
