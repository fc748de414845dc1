import logging
from types import SimpleNamespace

import pytest
import redis.exceptions as rex
from fakes import FakeBroker, Producer, compute, done, gave_up

from queue_system import (
    BrokerUnavailableError,
    CircuitOpenError,
    ConfigurationError,
    QueueConfig,
    QueueWorker,
    UnresolvableFunctionError,
    UnsupportedServerError,
)
from queue_system.broker.clients import UrlClients
from queue_system.events import (
    BreakerChanged,
)
from queue_system.imports import ImportPolicy
from queue_system.registry import Registry


def make_config(**options) -> QueueConfig:
    return QueueConfig(**{"telemetry": None, "registry": Registry()} | options)


def with_totals(*totals, **options):
    """A configuration whose Redis answers each increment with one of these totals; and its broker."""
    config, left = make_config(**options), iter(totals)
    config._broker = FakeBroker(lambda _: str(next(left)).encode())
    return config, config._broker


def test_defaults():
    config = make_config()
    assert config.clients.address == "redis://localhost:6379/0"
    assert (config.queue_prefix, config.backup_ttl) == ("queue:", 604_800)
    assert (config.connection_timeout, config.max_connection_retries) == (5.0, 3)
    assert (config.done_ttl, config.deduplication_window) == (0.0, 3600.0)
    assert (config.max_operation_bytes, config.max_depth) == (262_144, 100)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("queue_prefix", ["", "a b", None]),
        ("backup_ttl", [0, -1, "7d", None, float("inf"), 1e300]),
        ("connection_timeout", [0, -1, True, float("nan")]),
        ("max_connection_retries", [0, -1, 2.5, "3", True]),
        ("done_ttl", [-1, None]),
        ("deduplication_window", [0, -1]),
        ("max_operation_bytes", [0, 0.5, None]),
        ("max_depth", [0, "deep"]),
        ("importable_modules", ["app", [5], ["a b"]]),
        ("telemetry", ["all", [print]]),
        ("redis_url", ["localhost", "http://h", 5]),
        ("redis_client", ["redis://h"]),
    ],
)
def test_a_setting_out_of_its_range_is_told_by_name(name, values):
    for value in values:
        with pytest.raises(ConfigurationError, match=name):
            make_config(**{name: value})


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("max_workers", [0, -1, 1.5, "5", True]),
        ("work_timeout", [0, -1, "30", None, float("nan")]),
        ("thread_pool_size", [0, -1, None]),
        ("lease", [0, -1, float("inf")]),
        ("grace", [-1, float("nan")]),
        ("max_crashes", [-1, 0.5]),
        ("stall_limit", [0, -1]),
    ],
)
def test_so_is_an_argument_of_the_worker(name, values):
    for value in values:
        with pytest.raises(ConfigurationError, match=name):
            QueueWorker(make_config(), **{name: value})
    with pytest.raises(ConfigurationError, match="bad queue name"):
        QueueWorker(make_config(), queues=["mail", "a b"])


def test_keys():
    config = make_config(queue_prefix="{q}:")
    assert config.get_queue_key("mail") == "{q}:normal:mail"
    assert config.get_queue_key("mail", "high") == "{q}:high:mail"
    assert config.get_registry_key() == "{q}:registry"
    assert config.get_callback_key("done") == "done"
    assert config.get_callback_key("done", "app.tasks") == "app.tasks:done"


@pytest.mark.parametrize("arguments", [("a b",), ("mail", "urgent")])
def test_there_is_no_key_of_a_bad_name(arguments):
    with pytest.raises(ConfigurationError):
        make_config().get_queue_key(*arguments)


def test_a_registered_callback_is_found():
    config = make_config(importable_modules=[])
    config.register_callback(done)
    config.register_callback(lambda data: data, name="short", module="app")
    assert config.find_callback("done", "fakes").function is done
    assert config.find_callback("short", "app").function("x") == "x"
    assert config.find_callback("short", None).function("x") == "x"


def test_registering_again_does_nothing_and_a_taken_name_is_refused():
    config = make_config()
    for _ in range(2):
        config.register_callback(done)
        config.register_callback(done, name="after", module="app")
    with pytest.raises(ConfigurationError, match="is taken by"):
        config.register_callback(gave_up, name="after", module="app")
    assert config.find_callback("after", "app").function is done


def test_a_callback_that_has_no_name_needs_one():
    with pytest.raises(UnresolvableFunctionError, match="it is a lambda"):
        make_config().register_callback(lambda data: data)


def test_a_registered_processor_may_serve_as_callback():
    config = make_config(importable_modules=[])
    config.registry.register(compute)
    assert config.find_callback("compute", "fakes").function is compute


def test_an_import_policy_of_ones_own_is_used():
    policy = ImportPolicy([])
    assert make_config(importable_modules=policy)._resolver._policy is policy


# --- metrics ---


@pytest.mark.parametrize(
    ("value", "command"),
    [
        (1, ["HINCRBY", "queue:metrics", "seen", 1]),
        (-3, ["HINCRBY", "queue:metrics", "seen", -3]),
        (0.5, ["HINCRBYFLOAT", "queue:metrics", "seen", 0.5]),
        ("draining", ["HSET", "queue:metrics", "seen", "draining"]),
        (True, ["HSET", "queue:metrics", "seen", "True"]),
    ],
)
def test_a_number_is_added_and_a_text_is_set(value, command):
    config, broker = with_totals(5)
    config.update_metric("seen", value)
    (call,) = broker.calls
    assert [call.name, *call.args] == command


@pytest.mark.parametrize(
    ("metric", "value", "total", "logged"),
    [
        ("seen", 1, 1, True),
        ("seen", 1, 2, False),
        ("seen", 1, 10, True),
        ("seen", 1, 11, False),
        ("seen", 1, 100, True),
        ("seen", 5, 1003, True),  # it went over a thousand
        ("seen", 1, 99, False),
        ("seen", -1, 0, False),
        ("failed", 1, 7, True),
        ("timeouts", 1, 7, True),
        ("thread_pool_exhaustion", 1, 7, True),
    ],
)
def test_changes_that_matter_are_logged(caplog, metric, value, total, logged):
    config, _ = with_totals(total)
    with caplog.at_level(logging.INFO, "queue_system"):
        config.update_metric(metric, value)
    assert ("metric_changed" in caplog.text) is logged


def test_everything_is_logged_on_demand(caplog):
    config, _ = with_totals(7)
    with caplog.at_level(logging.INFO, "queue_system"):
        config.update_metric("seen", 2, force_log=True)
    assert "metric='seen' added=2 total=7.0" in caplog.text


def test_metrics_are_those_of_redis():
    config = make_config()
    config._broker = FakeBroker(lambda _: [1500, [], 0, 0, 0, 0, [b"processed", b"3"], [b"w", b"4", b"0.5"]])
    metrics = config.get_metrics()
    assert (metrics["processed"], metrics["success_rate"], metrics["thread_pool_utilization"]) == (3, 100.0, 50.0)


# --- connecting ---


class Clients:
    """Makes clients that fail with the given errors, in turn, when they are first asked anything."""

    address = "here"

    def __init__(self, *errors, version="7.0.15") -> None:
        self.errors = list(errors)
        self.version = version
        self.made = 0

    def sync(self, *, timeout):
        self.made += 1
        pool = SimpleNamespace(disconnect=lambda: None)
        return SimpleNamespace(
            ping=self.ping, info=lambda _: {"redis_version": self.version}, close=lambda: None, connection_pool=pool
        )

    def ping(self):
        if self.errors:
            raise self.errors.pop(0)


@pytest.fixture
def quick(monkeypatch):
    """No pause between tries."""
    monkeypatch.setattr("time.sleep", lambda _: None)


def test_the_client_is_made_once_and_connected():
    clients = Clients()
    config = make_config(client_factory=clients)
    assert clients.made == 0
    assert config._ensure_redis_sync() is config._ensure_redis_sync()
    assert clients.made == 1
    config.close()
    config._ensure_redis_sync()
    assert clients.made == 2


@pytest.mark.usefixtures("quick")
def test_a_failed_connection_is_tried_again():
    clients = Clients(rex.ConnectionError("refused"), rex.TimeoutError("slow"))
    make_config(client_factory=clients)._ensure_redis_sync()
    assert clients.made == 3


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(("retry_count", "tries"), [(None, 2), (4, 4), (1, 1)])
def test_after_so_many_tries_it_is_told(retry_count, tries):
    clients = Clients(*[rex.ConnectionError("refused")] * 9)
    config = make_config(client_factory=clients, max_connection_retries=2)
    with pytest.raises(BrokerUnavailableError, match=r"Redis at here: refused \(is Redis running"):
        config._ensure_redis_sync(retry_count)
    assert clients.made == tries


@pytest.mark.usefixtures("quick")
def test_a_wrong_password_is_told_at_once():
    clients = Clients(*[rex.AuthenticationError("WRONGPASS")] * 9)
    with pytest.raises(BrokerUnavailableError, match="check the user name and password"):
        make_config(client_factory=clients)._ensure_redis_sync()
    assert clients.made == 1


@pytest.mark.usefixtures("quick")
def test_a_server_that_stays_away_is_not_asked_for_ever():
    clients, changes = Clients(*[rex.ConnectionError("refused")] * 99), []
    config = make_config(client_factory=clients, max_connection_retries=1)
    config.hooks = SimpleNamespace(on_event=changes.append)
    for _ in range(5):
        with pytest.raises(BrokerUnavailableError):
            config._ensure_redis_sync()
    with pytest.raises(CircuitOpenError):
        config._ensure_redis_sync()
    assert clients.made == 5
    assert changes == [BreakerChanged("redis", "open")]


def test_a_server_that_is_too_old_is_refused():
    config = make_config(client_factory=Clients(version="6.0.16"))
    with pytest.raises(UnsupportedServerError, match=r"Redis at here is version 6\.0\.16"):
        config._ensure_redis_sync()
    assert config._redis is None


def test_so_it_is_by_the_asynchronous_manager_which_sends_nothing():
    producer = Producer("async")
    producer.broker.version = "6.0.16"
    with pytest.raises(UnsupportedServerError):
        producer.enqueue({}, compute)
    assert producer.broker.calls == []


def test_nothing_is_connected_before_it_is_needed():
    producer = Producer("sync", redis_url="redis://127.0.0.1:1")
    assert isinstance(producer.config.clients, UrlClients)
    with QueueConfig(redis_url="redis://127.0.0.1:1", telemetry=None) as config:
        assert config._redis is None
