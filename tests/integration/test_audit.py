"""The audit from outside: it changes nothing, hinders nobody, and is silent about a queue at work."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections import Counter
from typing import Any

import pytest
from scaffold import add, redis_of
from typer.testing import CliRunner

from queue_system import QueueManager, QueueRetryConfig
from queue_system.audit import audit
from queue_system.audit_rules import CHECKS
from queue_system.broker.messages import AUDIT_STEP
from queue_system.broker.scripts import load_scripts
from queue_system.cli import app, main
from queue_system.errors import ConfigurationError
from support import running, until

SHORT = QueueRetryConfig.fixed(0.05, 2)


@pytest.fixture(autouse=True)
def _variables(redis_url, prefix, monkeypatch):
    for name in [name for name in os.environ if name.startswith("QUEUE_SYSTEM_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("QUEUE_SYSTEM_REDIS_URL", redis_url)
    monkeypatch.setenv("QUEUE_SYSTEM_QUEUE_PREFIX", prefix)
    monkeypatch.setenv("COLUMNS", "120")


def run(*args: str) -> Any:
    return CliRunner().invoke(app, ["audit", *args])


def populate(config) -> list[str]:
    """Operations in several states; the ids of those that are ready."""
    queue = QueueManager(config)
    queue.enqueue_batch([{}] * 5, "app:send", queue_name="mail", delay=60.0)
    queue.enqueue({}, "app:send", queue_name="mail", deduplication_key="k")
    return [each["operation_id"] for each in queue.enqueue_batch([{}] * 20, "app:send", queue_name="mail")]


def everything(config) -> dict[bytes, tuple[Any, bool]]:
    """Each key with its content, and whether it expires. Not DUMP: reading may reorder a hash's fields."""
    client = redis_of(config)
    content = {
        b"string": client.get,
        b"hash": client.hgetall,
        b"list": lambda key: client.lrange(key, 0, -1),
        b"zset": lambda key: client.zrange(key, 0, -1, withscores=True),
    }
    return {
        key: (content[client.type(key)](key), client.pttl(key) >= 0)
        for key in client.scan_iter(match=f"{config.queue_prefix}*", count=1000)
    }


# It changes nothing


def test_it_changes_nothing_even_where_everything_is_wrong(config):
    ids = populate(config)
    client = redis_of(config)
    client.zadd(config.keys.leases, {"nothing": 1, ids[0]: 1})
    client.rpush(config.get_queue_key("mail"), ids[1], "nothing")
    client.expire(config.keys.operation(ids[2]), 600)
    client.set(f"{config.queue_prefix}stranger", 1)
    client.lrem(config.get_queue_key("mail"), 1, ids[3])
    client.hincrby(config.keys.depths, "d:normal:mail", 7)
    before = everything(config)
    report = audit(config, pause=0.0)
    assert sum(len(check.problems) for check in report.checks) >= 6
    assert everything(config) == before


def test_a_user_who_may_only_read_can_audit(config, make_config, redis_url, prefix):
    """Redis holds scripts to the rights of their user: with one write in them this would fail."""
    populate(config)
    name = f"auditor-{prefix.rstrip(':')}"
    rights = ["+@read", "+@connection", "+ping", "+time", "+eval", "+evalsha"]
    client = redis_of(config)
    client.execute_command("ACL", "SETUSER", name, "on", ">secret", f"~{prefix}*", "-@all", *rights)
    try:
        auditor = make_config(redis_url=redis_url.replace("redis://", f"redis://{name}:secret@"))
        redis_of(config).zadd(config.keys.leases, {"nothing": 1})
        found = audit(auditor, pause=0.0)
        assert [problem.name for problem in found.checks[1].problems] == ["stray"]
    finally:
        client.execute_command("ACL", "DELUSER", name)


@pytest.mark.parametrize("name", sorted(name for name in load_scripts() if name.startswith("audit_")))
def test_redis_itself_takes_the_scripts_for_readers(config, name):
    client = redis_of(config)
    if int(client.info("server")["redis_version"].split(".")[0]) < 7:
        pytest.skip("this Redis has no EVAL_RO")
    source, prefix = load_scripts()[name].source, config.queue_prefix
    arguments = {
        "audit_counts": ["60000"],
        "audit_keys": ["metrics", f"dedup:{'0' * 64}"],
        "audit_list": ["normal:mail", "0", "9"],
        "audit_members": ["leased", "0", "10"],
        "audit_operations": ["a"],
        "audit_twice": ["a", "1", "2", "5"],
    }[name]
    keys = [f"{prefix}none-{n}" for n in range(9)]
    client.execute_command("EVAL_RO", source, len(keys), *keys, prefix, *arguments)


# A queue at work


async def test_a_queue_at_work_is_sound(config, make_config):
    """Successes, retries, failures, delays, duplicates and callbacks, with an audit all the time."""
    seen: Counter[str] = Counter()

    async def task(entity):
        seen["run"] += 1
        if entity["n"] % 3 == 0:
            raise LookupError
        await asyncio.sleep(0.001)

    def on_thread(_):
        seen["run"] += 1

    async def told(_): ...

    add(config, task, on_thread)
    config.register_callback(told, name="told", module="tests")
    queue = QueueManager(config)
    auditor = make_config()

    def produce(round_number: int) -> None:
        entities = [{"n": n} for n in range(60)]
        queue.enqueue_batch(entities, task, retry_config=SHORT, on_success=told, on_failure=told)
        queue.enqueue_batch(entities, on_thread, priority="high", delay=0.05)
        queue.enqueue({}, on_thread, deduplication_key=f"key-{round_number % 3}", deduplication_window=0.2)

    async with running(config, max_workers=20):
        for round_number in range(12):
            produce(round_number)
            report = await asyncio.to_thread(audit, auditor, pause=0.01)
            assert [problem for check in report.checks for problem in check.problems] == []
        await until(lambda: not QueueManager(config).get_queue_status()["in_flight"] and seen["run"] > 1000)
    report = audit(auditor)
    assert report.ok
    assert report.operations >= 12 * 20, "the failures"


def test_no_call_makes_much_work_for_redis(config, monkeypatch):
    """Counted in commands, those within scripts included: the time that they take is that of the machine."""
    queue, client = QueueManager(config), redis_of(config)
    for n in range(10):
        queue.enqueue_batch([{"n": n}] * 1000, "app:send", queue_name="mail", delay=60.0 * (n % 2))
    client.zadd(config.keys.leases, {f"nothing-{n}": 1 for n in range(3000)})
    client.delete(config.get_queue_key("mail"))
    run_call, work = config.broker.run, {}

    def commands() -> int:
        return sum(each["calls"] for each in client.info("commandstats").values())

    def counted(call):
        before = commands()
        reply = run_call(call)
        work[call.name] = max(work.get(call.name, 0), commands() - before)
        return reply

    monkeypatch.setattr(config.broker, "run", counted)
    report = audit(config, pause=0.0)
    assert (report.operations, report.checks[1].problems[0].found) == (10_000, 5000)
    assert AUDIT_STEP < max(work.values()) < 8 * AUDIT_STEP
    assert len(work) >= 5, work


# The command


def test_the_command_says_that_all_is_well(config):
    populate(config)
    result = run()
    assert result.exit_code == 0, result.output
    rows = [line.split() for line in result.stdout.splitlines()]
    assert {row[0]: row[-1] for row in rows if row and row[0] in CHECKS} == dict.fromkeys(CHECKS, "ok")
    assert "26 operations and" in result.stdout


def test_the_command_says_what_is_wrong_and_what_to_do(config):
    ids = populate(config)
    client = redis_of(config)
    client.zadd(config.keys.leases, {f"nothing-{n}": 1 for n in range(5)})
    client.expire(config.keys.operation(ids[0]), 600)
    result = run("--examples", "2")
    assert result.exit_code == 3
    text = " ".join(result.stdout.split())
    assert "I2 stray: 5 nothing-" in text
    assert "and 3 more (--examples)" in text
    assert re.search(f"I7 live expires: 1 {ids[0]}: ready, and expires in (5[0-9][0-9]|600) s", text)
    assert "What to do: it will be lost: remove the expiry with PERSIST" in text


def test_the_command_prints_json(config):
    populate(config)
    redis_of(config).set(f"{config.queue_prefix}stranger\x1b", 1)
    result = run("--json")
    assert result.exit_code == 3
    document = json.loads(result.stdout)
    assert (document["ok"], document["operations"], document["complete"]) == (False, 26, True)
    (problem,) = document["checks"][-1]["problems"]
    assert (problem["name"], problem["found"]) == ("unknown_key", 1)
    assert problem["examples"] == [{"subject": "stranger\x1b", "detail": "a string that the queue does not know"}]
    assert "\x1b" not in result.stdout


def test_on_a_terminal_it_shows_how_far_it_is_and_stdout_stays_clean(config, monkeypatch):
    populate(config)
    monkeypatch.setenv("FORCE_COLOR", "1")
    result = run("--json")
    assert json.loads(result.stdout)["ok"] is True
    assert "keys" in result.stderr
    monkeypatch.delenv("FORCE_COLOR")
    assert run("--json").stderr == ""


def test_the_command_uses_the_crashes_that_the_workers_allow(config):
    ids = populate(config)
    redis_of(config).hset(config.keys.operation(ids[0]), mapping={"cr": 6, "dc": 6})
    assert run().exit_code == 3
    assert run("--max-crashes", "5").exit_code == 0


def test_its_exit_codes_are_in_its_help():
    text = " ".join(run("--help").output.split())
    assert "70 internal error, 3 something is wrong." in text


def test_redis_away_is_no_finding(monkeypatch):
    monkeypatch.setenv("QUEUE_SYSTEM_REDIS_URL", "redis://127.0.0.1:1/0")
    assert main(["audit"]) == 69


def test_arguments_out_of_range_are_refused(config):
    for wrong in ({"max_crashes": -1}, {"examples": -1}):
        with pytest.raises(ConfigurationError):
            audit(config, **wrong)
    assert run("--examples", "-1").exit_code == 2
