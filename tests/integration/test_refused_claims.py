"""Redis refuses the claims for a while: that is told, health follows, and then work goes on as if nothing had been."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import redis
from scaffold import add, named

from queue_system import QueueConfig, QueueManager
from queue_system.embedded import EmbeddedServer
from queue_system.events import BrokerError, Event
from queue_system.hooks import Hooks
from queue_system.runtime import health, progress
from support import running, until

Change = Callable[[], object]


class Told(Hooks):
    def __init__(self) -> None:
        self.reasons: list[str] = []

    def on_event(self, event: Event) -> None:
        if isinstance(event, BrokerError) and event.operation == "claim":
            self.reasons.append(event.reason)


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def admin(redis_server: EmbeddedServer) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_server.url) as client:
        yield client


@pytest.fixture
def worker_config(
    make_config: Callable[..., QueueConfig], redis_url: str, prefix: str, admin: redis.Redis, told: Told
) -> Iterator[QueueConfig]:
    """That of a user of its own, whose rights a test may take away."""
    user = prefix.strip(":")
    admin.acl_setuser(user, enabled=True, nopass=True, keys=["*"], channels=["*"], categories=["+@all"])
    yield make_config(redis_url=redis_url.replace("//", f"//{user}:any@"), telemetry=None, listeners=[told])
    admin.acl_deluser(user)


@pytest.fixture(params=["right", "delayed"])
def fault(
    request: pytest.FixtureRequest, admin: redis.Redis, worker_config: QueueConfig, prefix: str
) -> tuple[Change, Change, str]:
    """How to make Redis refuse claims, how to mend it, and what Redis says of it."""
    user, container = prefix.strip(":"), f"{prefix}{request.param}"
    if request.param == "right":
        return (
            lambda: admin.execute_command("ACL", "SETUSER", user, "-zrange"),
            lambda: admin.execute_command("ACL", "SETUSER", user, "+zrange"),
            "a right",
        )
    return lambda: admin.set(container, "a text"), lambda: admin.delete(container), "WRONGTYPE"


async def test_work_goes_on_once_claims_are_accepted_again(worker_config, config, told, fault, monkeypatch):
    monkeypatch.setattr(health, "PROGRESS_LIMIT", 0.2)
    monkeypatch.setattr(progress, "LOOK_INTERVAL", 0.05)
    monkeypatch.setattr(progress, "PATIENCE", 2.5)
    break_it, mend_it, words = fault
    done: list[int] = []

    async def work(entity):
        done.append(entity["n"])

    add(worker_config, work)
    queue = QueueManager(config)
    async with running(worker_config) as worker:
        await until(lambda: worker.health().ready, what="ready")
        break_it()
        queue.enqueue_batch([{"n": number} for number in range(3)], named(work))
        found = await until(lambda: not (now := worker.health()).ready and now, what="not ready")
        assert "claims are refused" in found.ready_checks["claims"]
        assert words in found.ready_checks["claims"]
        found = await until(lambda: not (now := worker.health()).alive and now, what="not alive")
        assert "work is ready and slots are free, but nothing was claimed" in found.alive_checks["progress"]
        assert len(told.reasons) >= 2
        assert all(words in reason for reason in told.reasons)
        assert done == []
        mend_it()
        await until(lambda: sorted(done) == [0, 1, 2], what="all done")
        await until(lambda: worker.health().ready, what="ready again")


async def test_an_idle_worker_is_dead_only_when_there_is_work_for_it(worker_config, config, fault, monkeypatch):
    monkeypatch.setattr(health, "PROGRESS_LIMIT", 0.0)
    monkeypatch.setattr(progress, "PATIENCE", 2.5)
    monkeypatch.setattr(progress, "LOOK_INTERVAL", 0.05)
    break_it, mend_it, _ = fault

    async def work(entity):
        pass

    add(worker_config, work)
    async with running(worker_config, queues=["mine"]) as worker:
        looks = worker._engine.progress
        await until(lambda: worker.health().ready, what="ready")
        QueueManager(config).enqueue({}, named(work), queue_name="of-others")
        break_it()
        await until(lambda: worker._engine.fetcher.record.overdue_for > progress.PATIENCE, what="overdue")
        await looks.look()
        assert worker.health().alive
        assert not worker.health().ready
        mend_it()
        await until(lambda: worker.health().ready, what="ready again")
