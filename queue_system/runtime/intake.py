"""What was claimed and waits, for a moment, for the task that will take it; and how much more may be claimed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import msgspec

from queue_system.broker.messages import KIND_MIXED, Delivery
from queue_system.runtime.account import BusyAccount
from queue_system.runtime.isolation import Isolation
from queue_system.runtime.lane import Lane
from queue_system.runtime.waiting import Slots


class Claim(msgspec.Struct, gc=False):
    """A delivery and the side that its slot is taken from.

    `kind` is what its queue was said to hold. `settled`: its outcome was decided. `handed_over`: the task that took
    it does not free its slot.
    """

    delivery: Delivery
    sync: bool
    kind: str = KIND_MIXED
    settled: bool = False
    handed_over: bool = False
    key: tuple[str, int] = ("", 0)
    """Id and fencing token: the same operation may, after a lost lease, be here twice."""

    def __post_init__(self) -> None:
        self.key = self.delivery.operation_id, self.delivery.token


class Intake:
    """Two lanes with their slots: async operations for the worker tasks, sync ones for the thread pool.

    Args:
        async_slots: how many async operations may be held at once.
        sync_slots: asked how many sync operations may be held now.
        on_free: called whenever a slot became free, or nothing waits on a lane any more.
        isolation: closes the intake while a suspect runs alone, or is to.
        others_wait: see `Lane`.
    """

    def __init__(
        self,
        async_slots: int,
        sync_slots: Callable[[], int],
        on_free: Callable[[], None],
        isolation: Isolation,
        others_wait: Callable[[], bool] = lambda: False,
    ) -> None:
        self._async_slots = async_slots
        self._sync_slots = sync_slots
        self._on_free = on_free
        self._isolation = isolation
        self._async_lane: Lane[Claim] = Lane(others_wait, on_free)
        self._sync_lane: Lane[Claim] = Lane(on_empty=on_free)
        self.async_held = 0
        self.sync_held = 0
        self.account = BusyAccount(async_slots)

    @property
    def held(self) -> int:
        """How many operations are claimed and not yet done with."""
        return self.async_held + self.sync_held

    @property
    def waiting(self) -> int:
        """How many async operations no task has taken yet."""
        return len(self._async_lane)

    def free(self) -> Slots:
        """How many may be claimed now."""
        if self._isolation.closed(self.held):
            return Slots(0, 0)
        return Slots(
            max(0, self._async_slots - self.async_held),
            max(0, self._sync_slots() - self.sync_held),
            self._isolation.may_take(self.held),
        )

    def put(self, claims: Sequence[Claim]) -> None:
        """Take a slot for each of these, and queue them on their lanes."""
        sync = sum(claim.sync for claim in claims)
        self.sync_held += sync
        self.async_held += len(claims) - sync
        self.account.change(self.async_held)
        self._sync_lane.extend(claim for claim in claims if claim.sync)
        self._async_lane.extend(claim for claim in claims if not claim.sync)

    def next(self, *, sync: bool) -> Awaitable[Claim]:
        """The next claim of a lane."""
        return (self._sync_lane if sync else self._async_lane).get()

    def switch(self, claim: Claim, *, sync: bool) -> None:
        """The function is of the other kind than its queue said: move the slot."""
        if claim.sync is not sync:
            self._count(claim, -1)
            claim.sync = sync
            self._count(claim, 1)
            self._on_free()

    def requeue(self, claim: Claim) -> None:
        """Hand a claim, whose slot is taken, to the tasks of its lane."""
        (self._sync_lane if claim.sync else self._async_lane).put(claim)

    def done(self, claim: Claim) -> None:
        """Free the claim's slot."""
        self._isolation.ended(claim.delivery.token)
        self._count(claim, -1)
        self._on_free()

    def drain(self) -> list[Claim]:
        """Take out everything that no task has taken yet."""
        return self._async_lane.drain() + self._sync_lane.drain()

    def _count(self, claim: Claim, change: int) -> None:
        if claim.sync:
            self.sync_held += change
        else:
            self.async_held += change
            self.account.change(self.async_held)
