"""What the property test has found, in its shortest form."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from queue_system.broker.commands import Commands
from queue_system.broker.messages import Accepted, Call, Completion, Delivery, NewOperation
from queue_system.broker.sync import SyncBroker
from queue_system.keys import Keys
from queue_system.summary import unaccounted

MINUTE = 60.0


class Rig:
    """One queue, ``normal:mail``, and the calls that these tests make."""

    def __init__(self, client: Any, prefix: str) -> None:
        self.client, self.keys = client, Keys(prefix)
        self.commands, self.broker = Commands(self.keys), SyncBroker(client, "test")

    def run(self, call: Call[Any]) -> Any:
        return self.broker.run(call)

    def enqueue(self, operation_id: str) -> None:
        call = self.commands.enqueue("mail", "normal", "m", [NewOperation(operation_id, b"body")])
        assert self.run(call) == [(Accepted.QUEUED, operation_id)]

    def claim(self) -> Delivery:
        claimed = self.run(self.commands.claim(async_slots=1, sync_slots=1, lease=MINUTE, retention=MINUTE))
        return claimed.deliveries[0]

    def complete(self, delivery: Delivery) -> bool:
        done = [Completion(delivery.operation_id, delivery.token, "o")]
        (applied,) = self.run(self.commands.complete(done, done_ttl=0, again=False))
        return bool(applied)

    def retry(self, delivery: Delivery) -> bool:
        call = self.commands.retry(
            delivery.operation_id, delivery.token, delay=0, exhausted=False, counters=[], record=b"", again=False
        )
        return bool(self.run(call))

    def fail(self, delivery: Delivery) -> bool:
        call = self.commands.fail(
            delivery.operation_id,
            delivery.token,
            system_error=False,
            attempted=True,
            counters=["failed"],
            error=b"{}",
            record=b"",
            retention=MINUTE,
            callback=None,
            again=False,
        )
        return bool(self.run(call))

    def release(self, delivery: Delivery) -> bool:
        return bool(self.run(self.commands.release(delivery.operation_id, delivery.token)))

    def renew(self, delivery: Delivery) -> bool:
        return self.run(self.commands.renew([(delivery.operation_id, delivery.token)], MINUTE)) == []

    def let_lease_run_out(self, delivery: Delivery) -> bool:
        self.client.zadd(self.keys.leases, {delivery.operation_id: 1}, xx=True)
        call = self.commands.reap(max_crashes=2, interval=MINUTE, lease=MINUTE, retention=MINUTE)
        return bool(self.run(call).returned)

    def unaccounted(self) -> int:
        return unaccounted(self.run(self.commands.status()))


@pytest.fixture
def rig(client, prefix) -> Iterator[Rig]:
    rig = Rig(client, prefix)
    yield rig
    rig.broker.close()


@pytest.mark.parametrize("act", [Rig.complete, Rig.retry, Rig.fail, Rig.release, Rig.renew])
def test_a_token_is_stale_for_a_later_operation_of_the_same_id(rig, act):
    # Deliveries were counted anew for each operation, and the count was the token: both were number 1.
    rig.enqueue("report")
    late = rig.claim()
    assert rig.complete(late)
    rig.enqueue("report")
    current = rig.claim()
    assert not act(rig, late)
    assert rig.complete(current)


@pytest.mark.parametrize("give_back", [Rig.release, Rig.let_lease_run_out])
def test_an_operation_written_by_hand_goes_back_to_its_queue(rig, give_back):
    # Without a field that names the queue the release broke halfway, and the reaper dropped the operation.
    rig.enqueue("other")
    assert rig.complete(rig.claim())
    rig.client.hset(rig.keys.operation("by-hand"), mapping={"st": "ready", "b": "body"})
    rig.client.rpush(rig.keys.ready("mail", "normal"), "by-hand")
    assert give_back(rig, rig.claim())
    assert rig.client.lrange(rig.keys.ready("mail", "normal"), 0, -1) == [b"by-hand"]
    assert rig.unaccounted() == 0


def test_a_purge_of_failures_spares_a_new_operation_of_the_same_id(rig):
    # The hash of a failure expires by itself, its entry goes with the next reaping: in between the id is free.
    rig.enqueue("report")
    assert rig.fail(rig.claim())
    rig.client.delete(rig.keys.operation("report"))  # as its expiry does
    rig.enqueue("report")
    assert rig.run(rig.commands.purge_oldest_failures()) == 1
    assert rig.claim().body == b"body"
    assert rig.unaccounted() == 0
