"""With signing keys, a worker runs nothing that no holder of a key has signed for its id and queue."""

from __future__ import annotations

import itertools
import json

import pytest
from scaffold import MODULE, add, add_callbacks, given_up, named, redis_of, stored

import queue_system.worker
from queue_system import QueueManager, QueueRetryConfig
from queue_system.explain import explain
from queue_system.failures import FailureStore
from support import running, until, until_metrics

OLD = "2026-01:" + "o" * 16 + "ld-secret-of-32-characters"
NEW = "2026-07:" + "n" * 16 + "ew-secret-of-32-characters"
FAST = QueueRetryConfig(max_attempts=2, delays=[0.01])


class Jobs:
    """Processors of a test, and what they were called with."""

    def __init__(self, config) -> None:
        self.calls: list[dict] = []
        self.callbacks: list[dict] = []
        self.fails: set[int] = set()

        async def work(entity):
            self.calls.append(entity)
            if entity.get("n") in self.fails:
                raise ValueError("it was to fail")

        async def called_back(data):
            self.callbacks.append(data)

        add(config, work)
        add_callbacks(config, called_back)
        self.work, self.called_back = named(work), named(called_back)


@pytest.fixture
def signed(make_config):
    return make_config(signing_keys=[OLD])


@pytest.fixture
def jobs(signed):
    return Jobs(signed)


@pytest.fixture
def decoded(monkeypatch) -> list[bytes]:
    """What the worker has decoded."""
    seen: list[bytes] = []
    decode = queue_system.worker.decode_operation

    def spy(raw, **limits):
        seen.append(raw)
        return decode(raw, **limits)

    monkeypatch.setattr(queue_system.worker, "decode_operation", spy)
    return seen


def write(config, operation_id: str, body: bytes, queue: str = "normal:mail", **fields) -> None:
    """As someone does who can write to Redis, and has no key."""
    redis, keys = redis_of(config), config.keys
    redis.hset(keys.registry, queue, "a")
    redis.incr(keys.registry_version)
    redis.hset(keys.operation(operation_id), mapping={"st": "ready", "q": queue, "b": body, "ts": 1, "rd": 1} | fields)
    redis.rpush(f"{keys.prefix}{queue}", operation_id)
    redis.zadd(keys.wake, {"0": 0})


def body_of(config, operation_id: str) -> bytes:
    return redis_of(config).hget(config.keys.operation(operation_id), "b")


def forged(operation_id: str = "evil", **more) -> bytes:
    operation = {
        "v": 1, "operation_id": operation_id, "processor": "work", "processor_module": MODULE,
        "queue": "mail", "priority": "normal", "entity": {"n": 666},
    }  # fmt: skip
    return json.dumps(operation | more).encode()


async def test_a_signed_operation_goes_all_its_ways(signed, jobs):
    """Retry, failure with its callback, requeue by hand, delay: each brings the same bytes back to a worker."""
    queue = QueueManager(signed)
    jobs.fails = {1}
    options = {"queue_name": "mail", "retry_config": FAST, "on_failure": jobs.called_back}
    operation_id = queue.enqueue({"n": 1}, jobs.work, **options)["operation_id"]
    body = body_of(signed, operation_id)
    assert body.startswith(b"hs1:2026-01:")
    async with running(signed):
        await until_metrics(signed, failed=1, retried=1, callbacks_processed=1)
        assert [data["operation_id"] for data in jobs.callbacks] == [operation_id]
        (entry,) = given_up(signed)
        assert (entry.entity, entry.raw, entry.processor) == ({"n": 1}, body, jobs.work)
        assert explain(signed, operation_id).processor == jobs.work
        jobs.fails = set()
        assert FailureStore(signed).retry(operation_id)
        await until_metrics(signed, processed=1)
        queue.enqueue({"n": 2}, jobs.work, delay=0.05, on_success=jobs.called_back)
        await until_metrics(signed, processed=2, callbacks_processed=2)
    assert signed.get_metrics()["system_errors"] == 0


async def test_what_a_dead_worker_held_is_still_signed(signed, jobs):
    """Its lease expires, and it goes back through the reaper."""
    operation_id = QueueManager(signed).enqueue({"n": 1}, jobs.work, queue_name="mail")["operation_id"]
    redis, keys = redis_of(signed), signed.keys
    redis.lrem(keys.ready("mail", "normal"), 1, operation_id)
    redis.hset(keys.operation(operation_id), mapping={"st": "leased", "tk": 1, "dc": 1})
    redis.zadd(keys.leases, {operation_id: 1})
    async with running(signed):
        await until_metrics(signed, processed=1, reclaimed=1)
    assert jobs.calls == [{"n": 1}]


def attacks(signed) -> dict[str, tuple[str, bytes, str]]:
    """id, body and queue of what an attacker writes, who has seen one signed operation."""
    QueueManager(signed).enqueue(
        {"n": 1}, f"{MODULE}:work", queue_name="mail", operation_id="seen", delay=3600, priority="low"
    )
    seen = body_of(signed, "seen")
    other = signed.signer.__class__([NEW.replace("2026-07", "2026-01")], scope=signed.queue_prefix)
    return {
        "unsigned": ("evil", forged(), "normal:mail"),
        "signed with another secret": ("evil", other.seal("evil", "normal:mail", forged()), "normal:mail"),
        "signed with an unknown key": (
            "evil",
            signed.signer.__class__([NEW], scope=signed.queue_prefix).seal("evil", "normal:mail", forged()),
            "normal:mail",
        ),
        "a signature of another body": ("evil", seen[: seen.index(b"{")] + forged(), "low:mail"),
        "another id": ("evil", seen, "low:mail"),
        "another queue": ("seen", seen, "low:other"),
        "another priority": ("seen", seen, "high:mail"),
        "of a callback": ("evil", forged(kind="callback", processor="called_back"), "high:__callbacks__"),
        "malformed": ("evil", b"hs1:" + forged(), "normal:mail"),
        "no operation at all": ("evil", b"\xff\x00", "normal:mail"),
    }


ATTACKS = [
    "unsigned",
    "signed with another secret",
    "signed with an unknown key",
    "a signature of another body",
    "another id",
    "another queue",
    "another priority",
    "of a callback",
    "malformed",
    "no operation at all",
]


@pytest.mark.parametrize("attack", ATTACKS)
async def test_what_is_not_signed_for_its_place_is_kept_unread(signed, jobs, decoded, attack):
    operation_id, body, place = attacks(signed)[attack]
    redis_of(signed).zrem(signed.keys.delayed, "seen")
    write(signed, operation_id, body, place)
    queue = QueueManager(signed)
    async with running(signed):
        await until_metrics(signed, system_errors=1)
        queue.enqueue({"n": 2}, jobs.work)  # the queue moves on
        await until_metrics(signed, processed=1)
    (entry,) = given_up(signed, system_errors=True)
    assert (entry.operation_id, entry.raw, entry.reason) == (operation_id, body, "BadSignatureError")
    assert entry.entity is None or attack in {"another queue", "another priority"}
    assert (jobs.calls, jobs.callbacks) == ([{"n": 2}], [])
    assert len(decoded) == 1
    assert "signed" in entry.error_message or "signature" in entry.error_message
    assert "secret" not in f"{entry} {explain(signed, operation_id)}"


async def test_who_puts_it_back_by_hand_does_not_get_it_run(signed, jobs):
    write(signed, "evil", forged())
    store = FailureStore(signed, system_errors=True)
    async with running(signed):
        await until_metrics(signed, system_errors=1)
        assert store.retry("evil")
        await until_metrics(signed, system_errors=2)
    assert jobs.calls == []


async def test_a_forged_operation_that_crashes_workers_gets_no_callback(signed, jobs):
    """Quarantine decodes, too: for the callback."""
    body = forged(on_failure=["called_back", MODULE])
    redis, keys = redis_of(signed), signed.keys
    write(signed, "evil", body, cr=3, st="leased", tk=1)
    redis.delete(keys.ready("mail", "normal"))
    redis.zadd(keys.leases, {"evil": 1})
    async with running(signed):
        await until_metrics(signed, system_errors=1)
    assert jobs.callbacks == []
    assert stored(signed, "evil")["st"] == "system_error"


async def test_a_signed_one_in_quarantine_gets_its_callback(signed, jobs):
    queue = QueueManager(signed)
    queue.enqueue({"n": 1}, jobs.work, queue_name="mail", on_failure=jobs.called_back, operation_id="deadly", delay=60)
    redis, keys = redis_of(signed), signed.keys
    redis.zrem(keys.delayed, "deadly")
    redis.hset(keys.operation("deadly"), mapping={"st": "leased", "tk": 1, "cr": 3})
    redis.zadd(keys.leases, {"deadly": 1})
    async with running(signed):
        await until_metrics(signed, failed=1, callbacks_processed=1)
    assert [data["operation_id"] for data in jobs.callbacks] == ["deadly"]
    assert jobs.calls == []


async def test_the_roll_out_loses_nothing_and_its_end_refuses_what_is_unsigned(make_config):
    """Without keys, then keys that are not required, then required: each step reads the one before."""
    plain, mixed, strict = (
        make_config(**options)
        for options in ({}, {"signing_keys": [OLD], "require_signature": False}, {"signing_keys": [OLD]})
    )
    jobs = Jobs(plain)
    enqueued = 0
    for worker_of, producers in ((plain, (plain, mixed)), (mixed, (plain, mixed)), (strict, (mixed, strict))):
        async with running(worker_of):
            for producer in producers:
                QueueManager(producer).enqueue({"n": enqueued}, jobs.work)
                enqueued += 1
            await until_metrics(plain, processed=enqueued)
    async with running(strict):
        QueueManager(plain).enqueue({"n": 99}, jobs.work)
        await until_metrics(plain, system_errors=1)
    assert [call["n"] for call in jobs.calls] == list(range(enqueued))


async def test_keys_are_rotated_while_operations_wait(make_config):
    steps = [make_config(signing_keys=keys) for keys in ([OLD], [OLD, NEW], [NEW, OLD], [NEW])]
    jobs = Jobs(steps[0])
    processed = 0
    for number, (before, after) in enumerate(itertools.pairwise(steps)):
        for producer in (before, after):
            QueueManager(producer).enqueue({"n": number}, jobs.work)
        if after is steps[-1]:  # what the old key has signed must be gone before that one goes
            assert all(
                b":2026-07:" in body_of(before, raw.decode().rpartition(":")[2])
                for raw in redis_of(before).keys(f"{before.queue_prefix}op:*")
            )
        async with running(after):
            processed += 2
            await until_metrics(after, processed=processed)
    assert len(jobs.calls) == processed
    assert steps[-1].get_metrics()["system_errors"] == 0


async def test_a_replay_is_not_protected_against(signed, jobs):
    """What docs/security.md says that a signature does not do: keep this test and that text in step."""
    queue = QueueManager(signed)
    queue.enqueue({"n": 1}, jobs.work, queue_name="mail", operation_id="paid", delay=0.2)
    body = body_of(signed, "paid")
    async with running(signed):
        await until_metrics(signed, processed=1)
        write(signed, "paid", body)
        await until(lambda: len(jobs.calls) == 2)
    assert jobs.calls == [{"n": 1}, {"n": 1}]
