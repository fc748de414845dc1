"""What the engine makes of a lease that Redis says is gone."""

import pytest
from fakes import AsyncFakeBroker, FakeBroker, Recorder

from queue_system.broker.commands import Commands
from queue_system.events import LeaseLost, OperationInfo, WorkerTaskFailed
from queue_system.keys import Keys
from queue_system.outcome import Success
from queue_system.runtime.engine import Engine, EngineSettings
from queue_system.runtime.finish import Settlement
from queue_system.runtime.recycle import Recycling
from queue_system.utils import CircuitBreaker

INFO = OperationInfo("a", "mail", "high", "work", "operation", is_async=True, attempt=1, headers={})


@pytest.fixture
def hooks():
    return Recorder()


@pytest.fixture
async def engine(hooks):
    settings = EngineSettings(
        worker_id="me",
        max_workers=2,
        thread_pool_size=2,
        lease=10.0,
        max_crashes=3,
        stall_limit=60.0,
        done_ttl=0.0,
        retention=60.0,
        max_bytes=1000,
        max_depth=10,
    )
    return Engine(
        settings,
        recycling=Recycling(),
        on_enough=lambda _: None,
        commands=Commands(Keys("q:")),
        hooks=hooks,
        breaker=CircuitBreaker("redis"),
        new_broker=lambda _: AsyncFakeBroker(),
        new_sync_broker=FakeBroker,
        command_timeout=1.0,
        worker_loop=lambda _: None,
        on_quarantine=lambda _: None,
        on_unheeded=lambda _: None,
    )


async def test_a_lost_lease_is_told_once_and_kept_no_more(engine, hooks):
    engine.leases.add([("a", 1)])
    engine._lease_lost("a", 1)
    engine._lease_lost("a", 1)
    assert hooks.of(LeaseLost) == [LeaseLost("a")]
    assert not engine.leases.keeps("a", 1)


async def test_an_operation_that_waits_for_its_outcome_to_be_written_has_not_lost_its_lease(engine, hooks):
    engine.leases.add([("a", 1)])
    engine.outbox.put(Settlement(("a", 1), Success(None), INFO))
    engine._lease_lost("a", 1)
    assert hooks.of(LeaseLost) == []


async def test_nor_has_one_whose_outcome_was_written_while_the_renewal_came_back(engine, hooks):
    engine.leases.add([("a", 1)])
    settled = Settlement(("a", 1), Success(None), INFO)
    engine.outbox.put(settled)
    engine.outbox.settle(engine.outbox.take(), [True])
    engine._lease_lost("a", 1)  # from the lease thread, a moment too late
    assert hooks.of(LeaseLost) == []


async def test_what_fails_in_a_stop_is_told_and_the_rest_follows(engine, hooks, monkeypatch):
    async def fail(*_):
        raise LookupError("ours")

    stopped = []
    monkeypatch.setattr(engine.fetcher, "stop_claiming", fail)
    monkeypatch.setattr(engine.fetcher, "flush", fail)
    monkeypatch.setattr(engine.leases, "stop", lambda: stopped.append("leases"))
    monkeypatch.setattr(engine.pool, "shutdown", lambda: stopped.append("pool"))
    await engine.stop(1.0)
    assert stopped == ["leases", "pool"]
    # The brokers of these tests have nothing that could be awaited when they are closed.
    told = [event for event in hooks.of(WorkerTaskFailed) if "ours" in event.reason]
    assert told == [WorkerTaskFailed("stop", "LookupError: ours")] * 3
    assert engine.ending


async def test_the_lease_thread_and_the_tasks_are_part_of_what_must_run(engine):
    checks = engine.health("running").alive_checks
    assert checks["loops"] == "down: beat, fetch-0, fetch-1, wait, reap, progress, leases"
    assert checks["tasks"] == "down: worker-0, worker-1, worker-2"
    engine.ending = True
    assert engine.health("draining").alive


async def test_a_lesson_that_fails_is_told(engine, hooks):
    async def fail(_):
        raise SystemExit("no broker")

    engine._broker.run = fail
    await engine._teach(("mail", "high", "s"))
    assert hooks.of(WorkerTaskFailed) == [WorkerTaskFailed("learn", "SystemExit: no broker")]
