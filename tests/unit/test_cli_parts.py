"""The command line without Redis: settings, exit codes, what is printed, what is imported."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import types
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from rich.text import Text
from typer.testing import CliRunner

from queue_system import __version__
from queue_system.broker.messages import FailureRow
from queue_system.cli import app, exits, main
from queue_system.cli import worker as worker_module
from queue_system.cli.enqueue import describe
from queue_system.cli.failures import entries_table, entry_view
from queue_system.cli.status import status_view
from queue_system.cli.terminal import duration, printable, to_json
from queue_system.cli.worker import import_modules
from queue_system.config import QueueConfig
from queue_system.errors import (
    BrokerUnavailableError,
    CircuitOpenError,
    ConfigurationError,
    EntityTooLargeError,
    ImportRefusedError,
    QueueError,
    UnresolvableFunctionError,
    UnsupportedServerError,
)
from queue_system.failures import FailureEntry, FailureStore
from queue_system.imports import ImportPolicy
from queue_system.keys import Keys
from queue_system.settings import Settings

KEYS = Keys()


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch):
    for name in [name for name in os.environ if name.upper().startswith("QUEUE_SYSTEM_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "100")


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Writes modules into a working directory of their own; forgets them afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    known = set(sys.modules)

    def write(name: str, text: str) -> str:
        path = tmp_path.joinpath(*name.split(".")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return name

    yield write
    for name in set(sys.modules) - known:
        del sys.modules[name]


# Settings


def test_defaults_are_those_of_the_library():
    settings = Settings.load()
    assert settings.redis_url == "redis://localhost:6379/0"
    assert (settings.queue_prefix, settings.max_workers, settings.work_timeout) == ("queue:", 5, 30.0)
    assert (settings.thread_pool_size, settings.lease, settings.grace) == (20, 10.0, 30.0)
    assert settings.queues is settings.importable_modules is None
    assert (settings.log_format, settings.log_level) == ("console", "info")


def test_variables_win_over_defaults_and_flags_over_variables(monkeypatch):
    monkeypatch.setenv("QUEUE_SYSTEM_MAX_WORKERS", "7")
    monkeypatch.setenv("QUEUE_SYSTEM_LEASE", "2.5")
    settings = Settings.load(max_workers=9, grace=None)
    assert (settings.max_workers, settings.lease, settings.grace) == (9, 2.5, 30.0)


def test_a_flag_wins_over_an_invalid_variable(monkeypatch):
    monkeypatch.setenv("QUEUE_SYSTEM_MAX_WORKERS", "many")
    assert Settings.load(max_workers=9).max_workers == 9


def test_an_empty_variable_counts_as_not_set(monkeypatch):
    monkeypatch.setenv("QUEUE_SYSTEM_MAX_WORKERS", "")
    monkeypatch.setenv("QUEUE_SYSTEM_IMPORTABLE_MODULES", "")
    assert Settings.load().max_workers == 5
    assert Settings.load().importable_modules is None


@pytest.mark.parametrize(
    ("text", "queues"),
    [("mail", ("mail",)), ("mail, reports ,", ("mail", "reports")), ("123", ("123",)), ("null", ("null",))],
)
def test_lists_are_separated_by_commas(monkeypatch, text, queues):
    monkeypatch.setenv("QUEUE_SYSTEM_QUEUES", text)
    assert Settings.load().queues == queues
    assert Settings.load(queues=["other"]).queues == ("other",)
    assert Settings.load(queues=[]).queues == queues


def test_importing_by_name_can_be_turned_off(monkeypatch):
    monkeypatch.setenv("QUEUE_SYSTEM_IMPORTABLE_MODULES", "none")
    assert Settings.load().importable_modules == ()


@pytest.mark.parametrize(
    ("variable", "value", "hint"),
    [
        ("MAX_WORKERS", "abc", "integer"),
        ("MAX_WORKERS", "0", "greater than 0"),
        ("WORK_TIMEOUT", "nan", "finite"),
        ("GRACE", "-1", "greater than or equal to 0"),
        ("LEASE", "1e300", "less than"),
        ("QUEUE_PREFIX", "a b", "without spaces"),
        ("QUEUES", "mail,[x", "bad queue name"),
        ("IMPORTABLE_MODULES", "app/tasks.py", "not a module name"),
        ("LOG_FORMAT", "xml", "'console' or 'json'"),
        ("LOG_LEVEL", "loud", "'debug'"),
    ],
)
def test_an_invalid_variable_gives_one_line_that_names_it(monkeypatch, variable, value, hint):
    monkeypatch.setenv(f"QUEUE_SYSTEM_{variable}", value)
    with pytest.raises(ConfigurationError) as caught:
        Settings.load()
    text = str(caught.value)
    assert text.startswith(f"QUEUE_SYSTEM_{variable}")
    assert hint in text
    assert "\n" not in text


def test_an_invalid_flag_is_named_as_it_was_given():
    with pytest.raises(ConfigurationError, match=r"^--max-workers=0: "):
        Settings.load(max_workers=0)
    with pytest.raises(ConfigurationError, match=r"^--queue=.*bad queue name"):
        Settings.load(queues=["a b"])
    with pytest.raises(ConfigurationError, match=r"^--prefix="):
        Settings.load(queue_prefix="")


@pytest.mark.parametrize("url", ["http://user:secret@host", "redis://user:secret@host:port", "secret"])
def test_a_bad_url_is_told_without_its_password(monkeypatch, url):
    monkeypatch.setenv("QUEUE_SYSTEM_REDIS_URL", url)
    with pytest.raises(ConfigurationError) as caught:
        Settings.load()
    assert "QUEUE_SYSTEM_REDIS_URL: redis_url" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_case_does_not_matter_for_words(monkeypatch):
    monkeypatch.setenv("QUEUE_SYSTEM_LOG_LEVEL", "WARNING")
    assert Settings.load().log_level == "warning"


def test_the_environment_is_not_read_at_import():
    program = "import queue_system.settings, queue_system.cli, queue_system.failures"
    environment = os.environ | {"QUEUE_SYSTEM_MAX_WORKERS": "abc", "QUEUE_SYSTEM_REDIS_URL": "nonsense"}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment, timeout=60)


def test_the_configuration_has_the_settings():
    settings = Settings.load(queue_prefix="x:", redis_url="redis://u:pw@h:1/2", connection_timeout=3, backup_ttl=60)
    config = settings.config(telemetry=None)
    assert (config.queue_prefix, config.clients.address) == ("x:", "redis://u:***@h:1/2")
    assert (config.connection_timeout, config.backup_ttl) == (3.0, 60.0)


# The import policy: the default, and modules that were named besides


def test_modules_named_besides_may_live_anywhere(module, tmp_path):
    vendor = tmp_path / "site-packages"
    module("site-packages.tasks", "def run(entity): ...")
    module("site-packages.other", "def run(entity): ...")
    module("own", "def run(entity): ...")
    sys.path[:0] = [str(tmp_path), str(vendor)]
    policy = ImportPolicy(also=["tasks"])
    assert policy.load("tasks", "run").__module__ == "tasks"
    with pytest.raises(ImportRefusedError, match="outside of the application"):
        policy.load("own", "run")
    with pytest.raises(ImportRefusedError, match="installed library"):
        policy.load("other", "run")
    with pytest.raises(ImportRefusedError, match="installed library"):
        ImportPolicy().load("tasks", "run")
    with pytest.raises(ImportRefusedError, match="standard library"):
        policy.load("os", "system")


def test_modules_named_besides_come_on_top_of_a_list(module, tmp_path):
    module("first", "def run(entity): ...")
    module("second", "def run(entity): ...")
    module("second_too", "def run(entity): ...")
    sys.path.insert(0, str(tmp_path))
    for listed in ((), ("first",)):
        policy = ImportPolicy(listed, also=["second"])
        assert policy.load("second", "run").__module__ == "second"
        with pytest.raises(ImportRefusedError):
            policy.load("second_too", "run")
    with pytest.raises(ImportRefusedError, match="importing by name is off"):
        ImportPolicy(()).load("second", "run")


def test_a_worker_configuration_lets_its_modules_in(module, tmp_path):
    module("site-packages.tasks", "def run(entity): ...")
    sys.path.insert(0, str(tmp_path / "site-packages"))
    config = Settings.load().config(modules=["tasks"], telemetry=None)
    assert config.find_processor("run", "tasks").function.__module__ == "tasks"
    with pytest.raises(ConfigurationError, match="not a module name"):
        ImportPolicy(also=["a-b"])


# Exit codes


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (BrokerUnavailableError("x"), 69),
        (CircuitOpenError("x"), 69),
        (UnsupportedServerError("x"), 69),
        (ConfigurationError("x"), 2),
        (UnresolvableFunctionError("x"), 2),
        (exits.UsageError("x"), 2),
        (EntityTooLargeError("x"), 1),
        (exits.NotFoundError("x"), 1),
        (QueueError("x"), 1),
    ],
)
def test_each_error_has_its_exit_code(error, code):
    assert exits.exit_code(error) == code


@pytest.mark.parametrize("command", [[], ["worker"], ["enqueue"], ["status"], ["failures"], ["failures", "list"]])
def test_the_help_documents_the_exit_codes(command):
    result = CliRunner().invoke(app, [*command, "--help"])
    assert result.exit_code == 0
    text = " ".join(result.output.split())
    assert "0 ok, 1 refused or not found, 2 usage, 69 Redis unavailable, 70 internal error" in text
    assert "QUEUE_SYSTEM_" in text


@pytest.mark.parametrize(
    ("args", "hint"),
    [
        (["bogus"], "No such command 'bogus'"),
        (["enqueue", "a:b"], "JSON"),
        (["enqueue", "a:b", "{}", "--delay", "-1"], "--delay"),
        (["enqueue", "a:b", "{}", "--delay", "soon"], "--delay"),
        (["enqueue", "a:b", "{"], "not JSON"),
        (["enqueue", "a:b", "[" * 100_000], "not JSON"),
        (["enqueue", "a:b", "{}", "--priority", "urgent"], "use one of high, normal, low"),
        (["enqueue", "a:b", "{}", "--queue", "a b"], "bad queue name"),
        (["enqueue", "no function!", "{}"], "names no function"),
        (["worker"], "MODULE"),
        (["worker", "json", "--max-workers", "0"], "--max-workers=0"),
        (["worker", "json", "--lease", "0"], "--lease=0"),
        (["worker", "json", "--log-format", "xml"], "--log-format"),
        (["failures", "retry"], "--all"),
        (["failures", "retry", "x", "--all"], "--all"),
        (["failures", "purge"], "--all"),
        (["failures", "list", "--limit", "0"], "--limit"),
        (["status", "--redis-url", "nonsense"], "--redis-url"),
    ],
)
def test_wrong_usage_is_one_line_on_stderr_and_2(capsys, args, hint):
    assert main(args) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("queue-system: error: ")
    assert err.count("\n") == 1
    assert hint in err


@pytest.mark.parametrize(
    ("entity", "hint"), [("[1]", "an entity is a dict, not list"), ('{"a": NaN}', "entity['a'] is nan")]
)
def test_what_cannot_be_enqueued_is_refused_with_1(capsys, entity, hint):
    assert main(["enqueue", "a:b", entity]) == 1
    assert hint in capsys.readouterr().err


@pytest.mark.parametrize(
    "args",
    [["status"], ["status", "--watch"], ["enqueue", "a:b", "{}"], ["failures", "list"], ["failures", "purge", "x"]],
)
def test_a_dead_redis_is_one_line_and_69(capsys, args):
    assert main([*args, "--redis-url", "redis://user:secret@127.0.0.1:1/0"]) == 69
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "is Redis running" in err
    assert "secret" not in err


def test_without_a_command_the_help_is_shown(capsys):
    assert main([]) == 2
    out, err = capsys.readouterr()
    assert "enqueue" in out + err
    assert "error" not in err


def test_an_unexpected_error_is_internal_and_70(capsys, monkeypatch):
    monkeypatch.setattr(Settings, "load", lambda **_: 1 / 0)
    assert main(["status"]) == 70
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.splitlines()[-1].startswith("queue-system: error: internal error")


def test_ctrl_c_is_130(capsys, monkeypatch):
    def interrupt(**_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Settings, "load", interrupt)
    assert main(["status"]) == 130


def test_version(capsys):
    assert main(["version"]) == 0
    assert capsys.readouterr().out == f"queue-system {__version__}\n"


@pytest.mark.parametrize(
    ("args", "variable", "url"),
    [
        ([], None, "embedded://"),
        ([], "redis://h:1", "redis://h:1"),
        (["--redis-url", "redis://h:2"], "redis://h:1", "redis://h:2"),
    ],
)
def test_the_demo_gets_its_path_and_its_redis(monkeypatch, args, variable, url):
    asked = []
    stub = types.ModuleType("queue_system.demo")
    stub.run = lambda path, redis_url: asked.append((path, redis_url)) or 3
    monkeypatch.setitem(sys.modules, "queue_system.demo", stub)
    if variable:
        monkeypatch.setenv("QUEUE_SYSTEM_REDIS_URL", variable)
    assert main(["demo", *args]) == 3
    assert main(["demo", "some/where", *args]) == 3
    assert asked == [(None, url), (Path("some/where"), url)]


# The worker's imports


def test_modules_are_imported_from_the_working_directory(module, tmp_path):
    module("shop.tasks", "def run(entity): ...")
    import_modules(["shop.tasks"])
    assert sys.modules["shop.tasks"].__file__ == str(tmp_path / "shop" / "tasks.py")
    assert sys.path[0] == str(tmp_path)


@pytest.mark.parametrize(
    ("text", "summary", "where"),
    [
        ("def f():\n    raise ValueError('boom')\n\nf()\n", "ValueError: boom", ["broken.py", "line 2, in f"]),
        ("import not_there_at_all\n", "ModuleNotFoundError", ["broken.py", "import not_there_at_all"]),
        ("raise SystemExit(3)\n", "SystemExit: 3", ["broken.py"]),
        ("def f(:\n", "SyntaxError", []),
    ],
)
def test_a_module_that_fails_is_told_with_the_end_of_its_traceback(capsys, module, text, summary, where):
    module("broken", text)
    assert main(["worker", "broken"]) == 2
    first, *rest = capsys.readouterr().err.splitlines()
    assert first.startswith(f"queue-system: error: cannot import broken: {summary}")
    assert len(rest) <= 6
    assert all(part in "\n".join(rest) for part in where)
    assert "importlib" not in "\n".join(rest)


def test_a_module_that_is_not_there_is_one_line(capsys, module):
    assert main(["worker", "not_there_at_all"]) == 2
    assert main(["worker", "shop/tasks.py"]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert "No module named 'not_there_at_all'" in first
    assert "write it as for import" in second


def test_without_uvloop_the_worker_runs_on_asyncio(monkeypatch):
    monkeypatch.setitem(sys.modules, "uvloop", None)
    assert worker_module._loop_factory() is None


def test_with_uvloop_the_worker_runs_on_it(monkeypatch):
    stub = types.ModuleType("uvloop")
    stub.new_event_loop = asyncio.new_event_loop
    monkeypatch.setitem(sys.modules, "uvloop", stub)
    assert worker_module._loop_factory() is asyncio.new_event_loop


# What is printed


@given(st.text())
def test_json_is_json_and_safe_to_print(text):
    printed = to_json({"text": text})
    assert json.loads(printed) == {"text": text}
    assert all(each.isprintable() or each == "\n" for each in printed)


@given(st.text())
def test_printable_text_has_nothing_that_a_terminal_obeys(text):
    assert printable(text).isprintable()
    assert printable("[bold]é x") == "[bold]é x"


@pytest.mark.parametrize(
    ("seconds", "text"), [(-3, "0s"), (0, "0s"), (59.9, "59s"), (60, "1m"), (7200, "2h"), (86400 * 3, "3d")]
)
def test_durations_are_short(seconds, text):
    assert duration(seconds) == text


def test_the_result_of_an_enqueue_is_one_line():
    result = {"operation_id": "id", "status": "queued", "queue": "q", "priority": "low", "processor": "f"}
    assert describe(result, 0.0) == "queued id  f in low:q"
    assert describe(result | {"status": "scheduled"}, 90.0).endswith(", ready in 90 s")
    duplicate = result | {"status": "duplicate", "reason": "deduplication_key", "duplicate_of": "other"}
    told = "duplicate: operation other holds this deduplication key{}; nothing was enqueued"
    assert describe(duplicate, 0.0) == told.format(" (f in low:q)")
    assert describe(duplicate | {"queue": None, "priority": None}, 0.0) == told.format("")
    assert describe(duplicate | {"processor": None}, 0.0) == told.format("")


def rendered(view, width=100) -> str:
    out = Console(width=width, highlight=False)
    with out.capture() as capture:
        out.print(view, soft_wrap=isinstance(view, Text))
    return capture.get()


def status_of(**counts):
    return {
        "queue:failures": 2,
        "queue:system_errors": 0,
        "total_items": 0,
        "delayed": 3,
        "in_flight": 4,
        "metrics": {"enqueued": 12345, "workers": 2, "success_rate": 83.5, "thread_pool_utilization": 85.0},
        "status_time": 1.0,
        **counts,
    }


def test_the_status_shows_queues_by_priority():
    queues = {"queue:high:mail": 5, "queue:low:mail": 1, "queue:normal:failures": 7, "queue:high:__callbacks__": 0}
    text = rendered(status_view(status_of(**queues), KEYS))
    rows = [line.split() for line in text.splitlines()]
    assert ["queue", "high", "normal", "low"] in rows
    assert ["mail", "5", "-", "1"] in rows
    assert ["failures", "-", "7", "-"] in rows
    assert ["callbacks", "0", "-", "-"] in rows
    assert "ready 13    delayed 3    in flight 4    failures 2    system errors 0" in text
    assert "12,345" in text
    assert "83.5 %" in text


def test_the_status_without_queues_says_so():
    text = rendered(status_view(status_of(), KEYS))
    assert "no queues yet" in text
    assert "ready 0" in text


def entry(**changes) -> FailureEntry:
    values = {
        "operation_id": "f" * 32,
        "queue": "mail",
        "priority": "high",
        "processor": "app.tasks:send",
        "kind": "operation",
        "entity": {"to": "é\x9b[31m"},
        "raw": b"{}",
        "reason": "error",
        "error_type": "ValueError",
        "error_message": "no [bold]such\x1b[31m address\nsecond line",
        "traceback": "Traceback:\n  File\nValueError: \x1b[31m",
        "attempts": 3,
        "history": [
            {"attempt": 1, "worker": "w", "started": 0.0, "ended": 1.5, "reason": "error", "error": "e"},
            {"raw": "garbage"},
        ],
        "failed_at": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
    }
    return FailureEntry(**values | changes)


def test_the_list_fits_the_terminal_and_never_cuts_an_id():
    entries = [entry(), entry(operation_id="g" * 60, error_message="x" * 500), entry(queue="q" * 64)]
    text = rendered(entries_table(entries, now=entries[0].failed_at.timestamp() + 90, width=100))
    lines = text.splitlines()
    assert len(lines) == 1 + len(entries)
    assert lines[1].startswith("f" * 32 + " ")
    assert "g" * 60 in lines[2]
    assert "q" * 64 in lines[3]
    assert " 1m " in lines[1]
    narrow = rendered(entries_table([entry(error_message="x" * 500)], now=0.0, width=100)).splitlines()
    assert all(len(line) <= 100 for line in narrow)
    assert narrow[1].endswith("…")


def test_an_entry_is_shown_with_nothing_that_a_terminal_obeys():
    text = rendered(entry_view(entry(), 100))
    assert all(each.isprintable() or each == "\n" for each in text)
    for part in ("app.tasks:send", "2026-01-02 03:04:05 UTC", "[bold]such\\x1b[31m", "1.500 s", "garbage", "é", "File"):
        assert part in text


def test_an_entry_that_cannot_be_decoded_shows_its_bytes():
    text = rendered(entry_view(entry(entity=None, raw=b"\xff\x00", kind="unknown", processor="", queue=""), 100))
    assert r"2 bytes: b'\xff\x00'" in text
    assert "unknown" in text


def test_an_entry_has_a_json_form():
    values = entry(entity=None, raw=b"\xff").to_dict()
    assert json.loads(json.dumps(values))["raw"] == "/w=="
    assert values["failed_at"] == "2026-01-02T03:04:05+00:00"
    assert entry().to_dict()["raw"] is None
    assert entry().to_dict()["entity"] == {"to": "é\x9b[31m"}


# Reading entries: whatever the bytes are, there is an entry


STORE = FailureStore(QueueConfig(telemetry=None))

nested = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
FIELDS = (
    *("v", "operation_id", "processor", "processor_module", "queue", "priority", "entity", "kind"),
    *("reason", "type", "message", "traceback"),
)
almost = st.fixed_dictionaries({}, optional=dict.fromkeys(FIELDS, nested)).map(lambda value: json.dumps(value).encode())
garbage = st.binary(max_size=200) | almost


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=20), garbage, garbage, st.lists(garbage, max_size=3))
def test_garbage_gives_an_entry_and_no_error(queue, body, error, history):
    row = FailureRow("id", queue, "failed", body, 1, error, history, 1.0)
    read = STORE._entry(row)
    assert read.raw == body
    assert all(isinstance(record, dict) for record in read.history)
    json.dumps(read.to_dict())
    rendered(entry_view(read, 100))
    rendered(entries_table([read], 0.0, 100))


def test_a_whole_entry_is_read():
    body = {
        "v": 1,
        "operation_id": "id",
        "processor": "send",
        "processor_module": "app.tasks",
        "queue": "mail",
        "priority": "low",
        "entity": {"n": 1},
    }
    error = {"reason": "timeout", "type": "TimeoutError", "message": "late", "traceback": "T"}
    row = FailureRow("id", "low:mail", "failed", msgspec.json.encode(body), 2, msgspec.json.encode(error), [], 1.5)
    read = STORE._entry(row)
    assert (read.queue, read.priority, read.processor, read.kind) == ("mail", "low", "app.tasks:send", "operation")
    assert (read.entity, read.attempts, read.history) == ({"n": 1}, 2, [])
    assert (read.reason, read.error_type, read.error_message, read.traceback) == (
        "timeout",
        "TimeoutError",
        "late",
        "T",
    )
    assert read.failed_at == datetime.fromtimestamp(1.5, UTC)
    bare = STORE._entry(
        FailureRow("id", "", "failed", msgspec.json.encode(body | {"processor_module": None}), 0, b"", [], 0)
    )
    assert (bare.processor, bare.queue, bare.reason) == ("send", "", "")
