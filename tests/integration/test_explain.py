"""Where an operation is, and why: every place and every reason, as operators see them, on a real Redis."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from scaffold import add, given_up, named, redis_of
from typer.testing import CliRunner

from queue_system import QueueConfig, QueueManager, QueueRetryConfig, QueueWorker
from queue_system.broker.messages import SEARCH_LIMIT
from queue_system.cli import app
from queue_system.explain import Explanation, explain
from support import running, until, until_metrics
from telemetry import TracingListener

ONCE = QueueRetryConfig.fixed(0.01, 1)
LATER = QueueRetryConfig.fixed(60.0, 3)


@pytest.fixture(autouse=True)
def _variables(redis_url, prefix, monkeypatch):
    for name in [name for name in os.environ if name.startswith("QUEUE_SYSTEM_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("QUEUE_SYSTEM_REDIS_URL", redis_url)
    monkeypatch.setenv("QUEUE_SYSTEM_QUEUE_PREFIX", prefix)
    monkeypatch.setenv("COLUMNS", "100")


@pytest.fixture
def gate():
    """Processors wait for it; it opens at the end of a test in any case."""
    opened = threading.Event()
    yield opened
    opened.set()


async def fails(entity):
    raise LookupError(f"no {entity['what']}")


def enqueue(config: QueueConfig, function: Any, entity: dict[str, Any] | None = None, **options: Any) -> str:
    return QueueManager(config).enqueue(entity or {}, function, **options)["operation_id"]


async def until_state(config: QueueConfig, operation_id: str, state: str) -> Explanation:
    found = await until(lambda: (it := explain(config, operation_id)).state == state and it, what=state)
    assert found.operation_id == operation_id
    return found


def run(*args: str) -> Any:
    return CliRunner().invoke(app, list(args))


# Ready


def test_without_a_worker_it_waits_for_one(config):
    before = datetime.now(UTC) - timedelta(seconds=1)
    operation_id = enqueue(config, "app:send", queue_name="mail", priority="high")
    found = explain(config, operation_id)
    assert (found.state, found.ahead, found.summary) == ("ready", 0, "It is first in high:mail.")
    assert found.reasons == ("No worker is alive: none has sent a heartbeat in the last 30 s.",)
    assert (found.queue, found.priority, found.processor) == ("mail", "high", "app:send")
    assert (found.attempts, found.max_attempts, found.deliveries, found.worker) == (0, 5, 0, "")
    assert found.accepted_at == found.due_at
    assert before < found.accepted_at < before + timedelta(minutes=1)
    assert (found.trace_id, found.history, found.error_type) == ("", [], "")


def test_it_waits_behind_others_and_those_of_higher_priority(config):
    for priority, count in (("high", 3), ("normal", 2), ("low", 5)):
        QueueManager(config).enqueue_batch([{}] * count, "app:send", queue_name="mail", priority=priority)
    QueueManager(config).enqueue_batch([{}] * 4, "app:send", queue_name="other", priority="high")
    operation_id = enqueue(config, "app:send", queue_name="mail", priority="normal")
    QueueManager(config).enqueue_batch([{}] * 9, "app:send", queue_name="mail", priority="normal")
    found = explain(config, operation_id)
    assert (found.ahead, found.ahead_of_higher_priority) == (2, 7)
    assert found.summary == "It is behind 2 in normal:mail, and 7 of higher priority go before."


def test_only_those_of_its_kind_go_before(config):
    def on_thread(_): ...
    async def on_loop(_): ...

    add(config, on_thread, on_loop)
    QueueManager(config).enqueue_batch([{}] * 3, on_thread, priority="high")
    QueueManager(config).enqueue_batch([{}] * 5, on_loop, priority="high")
    assert explain(config, enqueue(config, on_thread)).ahead_of_higher_priority == 3
    assert explain(config, enqueue(config, on_loop)).ahead_of_higher_priority == 5
    assert explain(config, enqueue(config, "app:either", queue_name="mixed")).ahead_of_higher_priority == 8


def test_its_place_is_looked_for_within_a_bound(config):
    QueueManager(config).enqueue_batch([{}] * 3, "app:send", queue_name="mail")
    operation_id = enqueue(config, "app:send", queue_name="mail")
    client, key = redis_of(config), config.get_queue_key("mail")
    client.lpush(key, *[f"other-{n}" for n in range(SEARCH_LIMIT - 4)])
    assert explain(config, operation_id).ahead == SEARCH_LIMIT - 1
    client.lpush(key, "one-more")
    found = explain(config, operation_id)
    assert found.ahead is None
    assert found.summary == "It is behind more than 50,000 in normal:mail."


def test_a_ready_operation_that_is_in_no_list_is_told(config):
    operation_id = enqueue(config, "app:send", queue_name="mail")
    redis_of(config).delete(config.get_queue_key("mail"))
    found = explain(config, operation_id)
    assert (found.state, found.ahead) == ("ready", None)
    assert "not in the list of normal:mail" in found.summary
    assert "Nothing will claim it" in found.reasons[0]


async def test_no_live_worker_serves_its_queue(config):
    operation_id = enqueue(config, "app:send", queue_name="mail")
    async with running(config, queues=["other"]):
        found = await until(lambda: _reason(config, operation_id, "serves the queue"))
    assert found == "No live worker serves the queue mail: the 1 worker serves other queues only."


async def test_the_thread_pool_is_full(config, gate):
    def waits(_):
        gate.wait()

    add(config, waits)
    async with running(config, thread_pool_size=2, lease=0.6):
        ids = [enqueue(config, waits) for _ in range(12)]
        full = "The thread pool is full: the 2 threads of the 1 worker that serves it are all busy."
        await until(lambda: _reason(config, ids[-1], full))
        gate.set()


async def test_all_worker_tasks_are_busy(config):
    async def waits(_):
        await asyncio.sleep(30)

    add(config, waits)
    worker = QueueWorker(config, 2, lease=0.6)
    await worker.start()
    ids = [enqueue(config, waits) for _ in range(3)]
    busy = "The 2 worker tasks of the 1 worker that serves it are all busy."
    await until(lambda: _reason(config, ids[2], busy))
    await worker.stop(grace=0)


async def test_a_worker_that_is_being_stopped_takes_nothing(config, gate):
    def waits(_):
        gate.wait()

    add(config, waits)
    worker = QueueWorker(config, lease=0.6)
    await worker.start()
    enqueue(config, waits)
    await until(lambda: worker.stats().pool.active == 1)
    stopping = asyncio.create_task(worker.stop(grace=20))
    await until(lambda: worker.state == "draining")
    operation_id = enqueue(config, waits)
    await until(lambda: _reason(config, operation_id, "The 1 worker that serves it will take no more: stopping."))
    gate.set()
    await stopping


def _reason(config: QueueConfig, operation_id: str, text: str) -> str | None:
    return next((reason for reason in explain(config, operation_id).reasons if text in reason), None)


# Delayed


def test_it_was_enqueued_with_a_delay(config):
    found = explain(config, enqueue(config, "app:send", delay=290))
    assert found.state == "delayed"
    assert found.summary.startswith("It is delayed until ")
    assert found.summary.endswith(" UTC, in 4 min.")
    assert found.reasons == ("It was enqueued with a delay.",)
    assert found.due_at - found.accepted_at == timedelta(seconds=290)


async def test_it_waits_for_its_next_attempt(config):
    add(config, fails)
    async with running(config) as worker:
        operation_id = enqueue(config, fails, {"what": "sugar"}, retry_config=LATER)
        found = await until_state(config, operation_id, "delayed")
    assert found.reasons == ("Attempt 1 of 3 ended with LookupError: no sugar.",)
    assert (found.reason, found.error_type, found.error_message) == ("error", "LookupError", "no sugar")
    assert (found.attempts, found.max_attempts, found.deliveries) == (1, 3, 1)
    assert found.worker == worker.worker_id
    assert [(record["attempt"], record["worker"]) for record in found.history] == [(1, worker.worker_id)]
    assert found.due_at > found.claimed_at >= found.accepted_at


async def test_no_worker_knows_its_processor(config):
    async with running(config):
        operation_id = enqueue(config, "nowhere_to_be_found:nothing", queue_name="mail")
        found = await until_state(config, operation_id, "delayed")
    assert found.reason == "unknown_processor"
    (reason,) = found.reasons
    assert "does not know nowhere_to_be_found:nothing" in reason
    assert reason.endswith("it waits for one that does (delivery 1 of 20).")
    assert (found.attempts, found.deliveries) == (0, 1)


async def test_a_due_operation_that_nobody_promotes_is_told(config):
    operation_id = enqueue(config, "app:send", delay=0.05)
    found = await until(lambda: (it := explain(config, operation_id)) and "is due since" in it.summary and it)
    assert found.state == "delayed"
    assert found.reasons[0].startswith("No worker is alive")


# In flight


async def test_it_is_in_flight(config, gate):
    def waits(_):
        gate.wait()

    add(config, waits)
    async with running(config, lease=7.5) as worker:
        operation_id = enqueue(config, waits)
        found = await until_state(config, operation_id, "leased")
        assert found.worker == worker.worker_id
        assert found.summary.endswith(f"s: attempt 1 of 5, by {worker.worker_id}.")
        assert 0 < found.lease_expires_in <= 7.5
        assert datetime.now(UTC) - found.claimed_at < timedelta(minutes=1)
        assert found.reasons[0].startswith("That worker has sent its last heartbeat ")
        gate.set()


async def test_its_worker_is_gone(config):
    operation_id = enqueue(config, "app:send", queue_name="mail")
    _claim_as_a_worker_that_dies(config, "mail", lease=60.0)
    found = explain(config, operation_id)
    assert (found.state, found.worker) == ("leased", "gone-1")
    assert found.reasons[0].startswith(
        "That worker is gone: others take it over when its lease is over; its lease ends"
    )


async def test_a_lost_worker_is_part_of_the_story(config):
    operation_id = enqueue(config, "app:send", queue_name="mail")
    _claim_as_a_worker_that_dies(config, "mail", lease=0.01)
    found = await until(lambda: (it := explain(config, operation_id)).lease_expires_in < 0 and it)
    assert "its lease is over since" in found.reasons[0]
    call = config.commands.reap(max_crashes=3, interval=1, lease=1, retention=60)
    assert config.broker.run(call).returned == 1
    found = explain(config, operation_id)
    assert (found.state, found.crashes) == ("ready", 1)
    assert found.reasons[-1] == "Its worker was lost once."


async def test_a_suspect_is_told_to_run_alone(config):
    operation_id = enqueue(config, "app:send", queue_name="mail")
    _claim_as_a_worker_that_dies(config, "mail", lease=0.01)
    await until(lambda: explain(config, operation_id).lease_expires_in < 0)
    assert config.broker.run(config.commands.reap(max_crashes=1, interval=1, lease=1, retention=60)).returned == 1
    told = explain(config, operation_id).reasons[-1]
    assert told == "Its worker was lost once. It runs next when a worker holds nothing else."


def _claim_as_a_worker_that_dies(config: QueueConfig, queue: str, *, lease: float) -> None:
    call = config.commands.claim(
        only=[f"normal:{queue}"], async_slots=1, sync_slots=1, lease=lease, retention=60, worker="gone-1"
    )
    assert len(config.broker.run(call).deliveries) == 1


# Ended


async def test_it_was_given_up(config):
    add(config, fails)
    async with running(config):
        operation_id = enqueue(config, fails, {"what": "sugar"}, retry_config=ONCE)
        found = await until_state(config, operation_id, "failed")
    assert found.summary.endswith("after 1 attempt: error.")
    assert found.reasons == (
        "LookupError: no sugar",
        f"To run it again: queue-system failures retry {operation_id}",
    )
    assert (found.reason, found.error_type, found.error_message) == ("error", "LookupError", "no sugar")
    (entry,) = given_up(config)
    assert (found.given_up_at, found.history) == (entry.failed_at, entry.history)


async def test_it_was_rejected(config):
    async with running(config):
        operation_id = enqueue(config, "os:system", queue_name="mail")
        found = await until_state(config, operation_id, "system_error")
    assert "without calling a processor" in found.summary
    assert found.error_type == "ImportRefusedError"
    assert found.reasons[-1].endswith(f"{operation_id} --system-errors")


async def test_it_ended_well_a_moment_ago(make_config):
    async def works(_): ...

    config = make_config(done_ttl=60)
    add(config, works)
    async with running(config) as worker:
        operation_id = enqueue(config, works)
        found = await until_state(config, operation_id, "done")
    assert found.summary.startswith(f"It ended well, by {worker.worker_id}.")


async def test_nothing_is_known_of_it(config):
    async def works(_): ...

    add(config, works)
    async with running(config):
        operation_id = enqueue(config, works)
        await until_metrics(config, processed=1)
    for unknown in (operation_id, "never", "", "\udcff", "a b\n"):
        found = explain(config, unknown)
        assert (found.state, found.summary, found.queue) == ("unknown", "Nothing is known of it.", "")


@pytest.mark.parametrize("kind", ["string", "list", "hash", "state"])
def test_what_is_no_operation_is_told(config, kind):
    client, key = redis_of(config), config.keys.operation("odd")
    write = {
        "string": lambda: client.set(key, "x"),
        "list": lambda: client.rpush(key, "x"),
        "hash": lambda: client.hset(key, "x", "y"),
        "state": lambda: client.hset(key, mapping={"st": "lost", "q": "\xff"}),
    }
    write[kind]()
    found = explain(config, "odd")
    assert found.state == "broken"
    assert "no operation" in found.summary


@pytest.mark.parametrize("state", ["ready", "delayed", "leased", "done", "failed", "system_error"])
def test_garbage_gives_an_explanation_and_no_error(config, state):
    garbage = dict.fromkeys(("b", "ts", "rd", "fl", "dc", "at", "cr", "ex", "err", "hist", "w", "pb"), b"\xff:x y\n{}")
    redis_of(config).hset(config.keys.operation("odd"), mapping=garbage | {"st": state, "q": "normal:mail"})
    redis_of(config).set(config.get_queue_key("mail"), "no list")
    found = explain(config, "odd")
    assert (found.state, found.queue) == (state, "mail")
    assert json.dumps(found.to_dict())
    assert run("explain", "odd").exit_code == 0


# Its trace, its cost, its command


async def test_its_trace_is_that_of_the_last_attempt_or_of_its_enqueueing(make_config):
    config = make_config(telemetry=[TracingListener(TracerProvider())])
    add(config, fails)
    waiting = explain(config, enqueue(config, "app:send", queue_name="mail"))
    assert len(bytes.fromhex(waiting.trace_id)) == 16
    async with running(config, queues=["fails"]):
        operation_id = enqueue(config, fails, {"what": "sugar"}, retry_config=QueueRetryConfig.fixed(0.01, 2))
        found = await until_state(config, operation_id, "failed")
    assert found.trace_id == found.history[-1]["trace"].split("-")[1]
    assert found.trace_id != found.history[0]["trace"].split("-")[1]


def test_it_reads_only_and_costs_the_same_whatever_the_backlog(config):
    client = redis_of(config)
    operation_id = enqueue(config, "app:send", queue_name="mail")
    before = _snapshot(config)
    assert len(before) >= 5
    explain(config, operation_id)
    assert _snapshot(config) == before
    for start in range(0, 3 * SEARCH_LIMIT, 10_000):
        client.lpush(config.get_queue_key("mail"), *range(start, start + 10_000))
    took = []
    for _ in range(5):
        began = time.perf_counter()
        assert explain(config, operation_id).ahead is None
        took.append(time.perf_counter() - began)
    assert min(took) < 0.05


def _snapshot(config: QueueConfig) -> dict[bytes, Any]:
    client = redis_of(config)
    readers = {
        b"hash": client.hgetall,
        b"list": lambda key: client.lrange(key, 0, -1),
        b"zset": lambda key: client.zrange(key, 0, -1, withscores=True),
        b"string": client.get,
    }
    keys = client.scan_iter(f"{config.queue_prefix}*")
    persistent = [key for key in keys if b":sent:" not in key]  # a producer's own, which ends by itself
    return {key: (readers[client.type(key)](key), client.pttl(key)) for key in persistent}


async def test_the_command_tells_people(config):
    add(config, fails)
    async with running(config) as worker:
        operation_id = enqueue(config, fails, {"what": "sugar"}, retry_config=LATER)
        await until_state(config, operation_id, "delayed")
    result = run("explain", operation_id)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0].startswith("delayed  It is delayed until ")
    assert lines[1] == "Attempt 1 of 3 ended with LookupError: no sugar."
    assert f"worker     {worker.worker_id}" in [line.rstrip() for line in lines]
    assert f"processor  {named(fails)}" in [line.rstrip() for line in lines]
    assert "attempts" in lines
    assert max(map(len, lines)) <= 100


async def test_the_command_tells_programs(config):
    operation_id = enqueue(config, "app:send", queue_name="mail")
    result = run("explain", operation_id, "--json")
    assert json.loads(result.stdout) == explain(config, operation_id).to_dict()


def test_the_command_makes_its_trace_a_link(make_config, monkeypatch):
    config = make_config(telemetry=[TracingListener(TracerProvider())])
    operation_id = enqueue(config, "app:send", queue_name="mail")
    trace_id = explain(config, operation_id).trace_id
    link = f"http://jaeger:16686/trace/{trace_id}"
    assert f"trace      {trace_id}" in run("explain", operation_id).stdout
    assert link in run("explain", operation_id, "--trace-url", "http://jaeger:16686/trace/{trace_id}").stdout
    monkeypatch.setenv("QUEUE_SYSTEM_TRACE_URL", "http://jaeger:16686/trace/{trace_id}")
    assert json.loads(run("explain", operation_id, "--json").stdout)["trace_url"] == link


def test_the_command_is_1_when_nothing_is_known():
    result = run("explain", "nope")
    assert result.exit_code == 1
    assert result.stdout.startswith("unknown  Nothing is known of it.")
    assert json.loads(run("explain", "nope", "--json").stdout)["state"] == "unknown"


def test_what_a_terminal_would_obey_is_written_out(config):
    operation_id = enqueue(config, "app:send", queue_name="mail")
    error = {"reason": "\x1b[31mred", "type": "E", "message": "\x1b]0;title\x07"}
    redis_of(config).hset(
        config.keys.operation(operation_id),
        mapping={"st": "failed", "w": "1 \x1b[2Jworker", "err": json.dumps(error), "hist": '{"error": "\\u001b[1m"}'},
    )
    result = run("explain", operation_id)
    assert "\x1b" not in result.stdout
    assert "\\x1b[2Jworker" in result.stdout
