"""What someone who can write to Redis puts into an operation's hash: kept, and nothing else is hindered."""

from __future__ import annotations

import json

import pytest
from scaffold import MODULE, add, given_up, redis_of

from queue_system import QueueManager
from queue_system.explain import explain
from support import running, until_metrics

BODY = json.dumps(
    {"v": 1, "operation_id": "evil", "processor": "work", "processor_module": MODULE, "queue": "mail",
     "priority": "normal", "entity": {"evil": True}}
).encode()  # fmt: skip
QUEUE = "normal:mail"
NUMBERS = ["nan", "text", "1e308", "1.5", "", "-5", "9" * 40]


class Place:
    """A queue with good operations in front of and behind a hostile one."""

    def __init__(self, config) -> None:
        self.config = config
        self.redis, self.keys = redis_of(config), config.keys
        self.done: list[dict] = []

        async def work(entity):
            self.done.append(entity)

        add(config, work)

    def good(self) -> None:
        QueueManager(self.config).enqueue_batch([{"n": n} for n in range(5)], f"{MODULE}:work", queue_name="mail")

    def write(self, **fields) -> None:
        mapping = {"st": "ready", "q": QUEUE, "b": BODY, "ts": 1, "rd": 1} | fields
        self.redis.hset(self.keys.operation("evil"), mapping=mapping)

    async def settled(self) -> None:
        """With a lease that is longer than the test's patience: nobody may have had to wait for one to expire."""
        async with running(self.config, lease=60.0):
            await until_metrics(self.config, processed=10, timeout=10.0)
        assert sorted(entity["n"] for entity in self.done) == sorted([*range(5), *range(5)])

    def kept(self, reason: str) -> None:
        (entry,) = given_up(self.config, system_errors=True)
        assert (entry.operation_id, entry.raw, entry.reason) == ("evil", BODY, reason)
        assert explain(self.config, "evil").state == "system_error"


@pytest.fixture
def place(config) -> Place:
    return Place(config)


@pytest.mark.parametrize("field", ["at", "cr", "dc", "ex", "fa", "rd", "ts"])
@pytest.mark.parametrize("value", NUMBERS)
async def test_a_number_that_is_none(place, field, value):
    place.good()
    place.write(**{field: value})
    place.redis.rpush(place.keys.ready("mail", "normal"), "evil")
    place.good()
    await place.settled()
    place.kept("bad_fields")


@pytest.mark.parametrize(
    "queue", ["leases", "failures", "system_errors", "metrics", "op:evil", "urgent:x", "normal:a b", "\n"]
)
async def test_another_key_as_the_queue_of_what_is_due(place, queue):
    """Pushing to it would make that key a list, for ever: the leases, for one, do not exist while nothing is leased."""
    place.write(st="delayed", q=queue)
    place.redis.zadd(place.keys.delayed, {"evil": 1})
    place.good()
    place.good()
    await place.settled()
    place.kept("bad_queue")
    assert place.redis.type(place.keys.leases) in {b"none", b"zset"}


async def test_another_key_as_the_queue_of_what_is_ready(place):
    """Where it was found counts: there it would go back to."""
    place.good()
    place.write(q="leases")
    place.redis.rpush(place.keys.ready("mail", "normal"), "evil")
    place.good()
    async with running(place.config, lease=60.0):
        await until_metrics(place.config, processed=11, timeout=10.0)
    assert place.redis.type(place.keys.leases) in {b"none", b"zset"}


@pytest.mark.parametrize("queue", ["leases", "workers", "op:evil"])
async def test_another_key_as_the_queue_of_what_a_dead_worker_held(place, queue):
    place.write(st="leased", q=queue, tk=1)
    place.redis.zadd(place.keys.leases, {"evil": 1})
    place.good()
    place.good()
    async with running(place.config, lease=60.0):
        await until_metrics(place.config, processed=10, system_errors=1, timeout=10.0)
    place.kept("bad_fields")


@pytest.mark.parametrize("delayed", [True, False])
async def test_a_key_of_another_type(place, delayed):
    place.redis.set(place.keys.operation("evil"), b"\xffbytes")
    if delayed:
        place.redis.zadd(place.keys.delayed, {"evil": 1})
    place.good()
    if not delayed:
        place.redis.rpush(place.keys.ready("mail", "normal"), "evil")
    place.good()
    await place.settled()
    broken = f"{place.keys.prefix}broken:evil"
    assert place.redis.get(broken) == b"\xffbytes"
    assert 0 < place.redis.ttl(broken) <= place.config.backup_ttl
    assert [entry.reason for entry in given_up(place.config, system_errors=True)] == ["wrong_type"]


async def test_a_queue_that_is_no_list(place):
    """It holds up neither the others nor the counts."""
    place.redis.set(f"{place.keys.prefix}high:evil", "x")
    place.redis.hset(place.keys.registry, "high:evil", "m")
    place.redis.hset(place.keys.registry, "normal:a\x1b[2J", "ma")
    place.redis.incr(place.keys.registry_version)
    place.good()
    place.good()
    await place.settled()
    status = QueueManager(place.config).get_queue_status()
    assert status[f"{place.keys.prefix}high:evil"] == 0
    assert not any("\x1b" in name for name in status)
    depth = place.config.broker.run(place.config.commands.depth())
    assert {row.queue for row in depth.queues} == {"evil", "mail"}


async def test_counters_that_were_overwritten(place):
    place.redis.hset(place.keys.metrics, mapping={"processed": "text", "enqueued": "nan"})
    place.redis.hset(place.keys.depths, f"l:{QUEUE}", "text")
    place.good()
    place.good()
    await place.settled()


async def test_a_suspect_for_ever(place):
    """How long a suspect runs alone is a field of its hash as well."""
    place.write(cr="1", al="9" * 14)
    place.redis.rpush(place.keys.ready("mail", "normal"), "evil")
    limits = {"async_slots": 5, "sync_slots": 5, "lease": 5.0, "retention": 60.0}
    call = place.config.commands.claim(only=["normal:mail"], suspect=True, **limits)
    claimed = place.config.broker.run(call)
    assert [one.operation_id for one in claimed.deliveries] == ["evil"]
    assert claimed.alone_for == 60.0
