import io
import json
import logging
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import structlog

import telemetry.logging
from queue_system import events
from queue_system.errors import ConfigurationError
from queue_system.events import (
    OperationInfo,
    current_operation,
)
from queue_system.log import get_logger
from telemetry.logging import CorrelationFilter, LogListener, clean, configure_logging

INFO = OperationInfo("op-1", "payments", "high", "pay", "operation", is_async=True, attempt=2, headers={})
CALLBACK = OperationInfo("op-2", "__callbacks__", "low", "tell", "callback", is_async=True, attempt=1, headers={})
RESULTS = ("processed", "retried", "failed", "rejected", "requeued", "stale")

EVENTS = [
    events.Enqueued("payments", "high", "pay", 1, 0, ("op-1",)),
    events.EnqueueFailed("payments", "BrokerUnavailableError"),
    events.PoolExhausted(INFO, 0.1),
    events.ThreadAbandoned(INFO, "pool-1", 601.0, 'File "tasks.py", line 3, in pay\n    read()'),
    events.TaskAbandoned(INFO, "worker-0", 4.0, "timed_out", 'File "tasks.py", line 3, in pay\n    await read()'),
    events.LeaseLost("op-1"),
    events.Reclaimed(2, 1),
    events.ClockCorrected(3),
    events.WorkerTaskFailed("fetch", "KeyError: 1"),
    events.BrokerError("claim", "timeout"),
    events.BrokerError("claim", "refused", "NOPERM"),
    events.BrokerBack(6.04),
    events.BreakerChanged("redis", "open"),
    *(events.WorkerChanged("w", state) for state in ("starting", "running", "draining", "stopped")),
    *(events.AttemptStarted(info, 0.5) for info in (INFO, CALLBACK)),
    *(events.OutcomeApplied(info, result) for info in (INFO, CALLBACK) for result in RESULTS),
]
ELSEWHERE = {
    "metric_set", "metric_changed", "span_export_failed", "spans_not_exported", "spans_left_behind",
    "traces_exporter_unknown", "telemetry_listener_failed",
}  # fmt: skip
"""Events of the table that are not a listener's."""


@contextmanager
def restored(name: str) -> Iterator[None]:
    """Leaves a logger, and structlog's configuration, as they were."""
    logger = logging.getLogger(name)
    before = logger.handlers[:], logger.level, logger.propagate
    known, configuration = structlog.is_configured(), structlog.get_config()
    try:
        yield
    finally:
        logger.handlers[:], logger.level, logger.propagate = before
        structlog.configure(**configuration) if known else structlog.reset_defaults()


class Written:
    """What has been written to a stream."""

    def __init__(self) -> None:
        self.stream = io.StringIO()

    @property
    def text(self) -> str:
        return self.stream.getvalue()

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text.splitlines()]


@pytest.fixture
def written() -> Written:
    return Written()


@pytest.fixture
def own(written: Written) -> Iterator[logging.Logger]:
    """A logger of the test's own, in JSON."""
    name = f"queue_system.test.{threading.get_ident()}"
    with restored(name):
        yield configure_logging("json", "DEBUG", stream=written.stream, name=name)


@pytest.fixture
def root(written: Written) -> Iterator[logging.Logger]:
    """The root logger, in JSON."""
    with restored(""):
        yield configure_logging("json", "DEBUG", stream=written.stream, name="")


def table() -> dict[str, str]:
    """The events that the module's docstring lists, with their levels."""
    rows = re.findall(r"^\| ``(\w+)`` \| (\w+) \| \S", telemetry.logging.__doc__ or "", re.MULTILINE)
    assert len(rows) == len({name for name, _ in rows}), "an event twice"
    return dict(rows)


def test_every_event_has_its_one_name_and_level_in_the_table(own: logging.Logger, written: Written) -> None:
    listener = LogListener(get_logger(own))
    for event in EVENTS:
        listener.on_event(event)
    emitted = {line["event"]: line["level"] for line in written.lines}
    listed = table()
    assert emitted == {name: level for name, level in listed.items() if name not in ELSEWHERE}
    assert set(listed) >= ELSEWHERE


def test_every_kind_of_event_is_among_those_tried() -> None:
    handled = {kind for kind in vars(events).values() if isinstance(kind, type) and issubclass(kind, events.Event)}
    listener = LogListener(get_logger())
    assert {kind for kind in handled if listener.handler_for(kind)} == {type(event) for event in EVENTS}


def test_the_names_of_events_do_not_come_from_redis(own: logging.Logger, written: Written) -> None:
    odd = OperationInfo("x", "q", "low", "p", "evil\nevent", is_async=True, attempt=1, headers={})
    LogListener(get_logger(own)).on_event(events.OutcomeApplied(odd, "failed"))
    assert [line["event"] for line in written.lines] == ["operation_failed"]


def test_an_operations_event_has_its_ids_and_no_message(own: logging.Logger, written: Written) -> None:
    listener = LogListener(get_logger(own))
    listener.on_event(events.OutcomeApplied(INFO, "retried", "error", "error", "LookupError", 1.0))
    (line,) = written.lines
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", line.pop("timestamp"))
    assert line == {
        "event": "operation_retried",
        "level": "warning",
        "logger": own.name,
        "operation_id": "op-1",
        "queue": "payments",
        "processor": "pay",
        "attempt": 2,
        "reason": "error",
        "error_type": "LookupError",
    }


@pytest.mark.parametrize("level", ["INFO", "DEBUG"])
def test_debug_lines_are_asked_for(level: str) -> None:
    class Logger(structlog.stdlib.BoundLogger):
        def debug(self, event: str | None = None, *args: Any, **kw: Any) -> Any:
            asked.append(event)

    asked: list[str | None] = []
    plain = logging.getLogger("queue_system.test.levels")
    plain.setLevel(level)
    listener = LogListener(Logger(plain, [], {}))
    for event in (EVENTS[0], events.AttemptStarted(INFO, 0.5), events.OutcomeApplied(INFO, "processed")):
        listener.on_event(event)
    assert len(asked) == (3 if level == "DEBUG" else 0)


def test_a_logger_that_is_set_up_later_is_heard_in_its_form(written: Written) -> None:
    name = "queue_system.test.later"
    logger = get_logger(logging.getLogger(name))  # as a configuration that is made first
    bound = logger.bind(operation_id="op-1")
    with restored(name):
        configure_logging("json", "INFO", stream=written.stream, name=name)
        bound.info("hello", n=1)
        logger.debug("not wanted")
    (line,) = written.lines
    assert (line["event"], line["operation_id"], line["n"]) == ("hello", "op-1", 1)


def test_without_a_set_up_an_event_is_one_line_of_text(caplog: pytest.LogCaptureFixture) -> None:
    logger = get_logger(logging.getLogger("queue_system.test.plain"))
    with caplog.at_level("INFO"):
        logger.info("a\nforged line", text="b\nc", **{"k\n": 1})
    assert caplog.messages == ["a\\nforged line text='b\\nc' k\\n=1"]


def test_a_traceback_cannot_forge_a_line_of_text(caplog: pytest.LogCaptureFixture) -> None:
    logger = get_logger(logging.getLogger("queue_system.test.plain"))
    logger.error("broken", exc_info=ValueError("x\n2026-01-01 [info] forged\x1b[2J"))
    first, *rest = caplog.messages[0].splitlines()
    assert first == "broken"
    assert "    2026-01-01 [info] forged\\x1b[2J" in rest
    assert all(line.startswith("    ") for line in rest)


def log_from_everywhere() -> None:
    logging.getLogger("app.tasks").info("from the standard library: %s", 1, extra={"n": 2})
    structlog.get_logger("app.tasks").info("from structlog", n=2)
    structlog.get_logger().info("positional %s", "arguments", n=2)


def test_whoever_logs_during_an_operation_has_its_ids(root: logging.Logger, written: Written) -> None:
    token = current_operation.set(INFO)
    try:
        log_from_everywhere()
    finally:
        current_operation.reset(token)
    log_from_everywhere()
    during, after = written.lines[:3], written.lines[3:]
    ids = {"operation_id": "op-1", "queue": "payments", "processor": "pay", "attempt": 2}
    assert all(ids.items() <= line.items() for line in during)
    assert not any(ids.keys() & line.keys() for line in after)
    assert [line["event"] for line in after] == [
        "from the standard library: 1",
        "from structlog",
        "positional arguments",
    ]
    assert {line["n"] for line in written.lines} == {2}
    assert [line["logger"] for line in after[:2]] == ["app.tasks", "app.tasks"]


def test_a_configuration_of_structlog_that_the_application_has_made_stays(written: Written) -> None:
    with restored(""):
        structlog.configure(processors=[structlog.processors.KeyValueRenderer()])
        before = structlog.get_config()
        configure_logging("json", "INFO", stream=written.stream, name="")
        assert structlog.get_config() == before


def test_an_applications_own_format_can_have_the_ids(written: Written) -> None:
    name = "queue_system.test.own"
    logger, handler = logging.getLogger(name), logging.StreamHandler(written.stream)
    handler.addFilter(CorrelationFilter())
    handler.setFormatter(logging.Formatter("%(message)s [%(operation_id)s/%(attempt)s/%(trace_id)s]"))
    with restored(name):
        logger.addHandler(handler)
        logger.warning("outside")
        token = current_operation.set(INFO)
        try:
            logger.warning("inside")
        finally:
            current_operation.reset(token)
    assert written.text.splitlines() == ["outside [//]", "inside [op-1/2/]"]


def test_payloads_and_secrets_are_hidden_wherever_they_are(root: logging.Logger, written: Written) -> None:
    logging.getLogger("app").info(
        "connect to redis://u:hunter2@db:6379/0 or redis://h?password=hunter2&db=1 with Password: 'hunter2 hunter2'",
        extra={"api_key": 4711_4711, "user": {"name": "eve", "db_password": "hunter2", "more": [{"token": "hunter2"}]}},
    )
    structlog.get_logger("app").warning(
        "as fields",
        entity={"card": "hunter2"},
        payload="hunter2",
        result=["hunter2"],
        error=ValueError("redis://:hunter2@db"),
        AUTHORIZATION="Bearer hunter2",
    )
    logging.getLogger("app").error("failed", exc_info=OSError("cannot reach redis://u:hunter2@db"))
    assert "hunter2" not in written.text
    assert "47114711" not in written.text
    first, second, third = written.lines
    assert first["event"] == "connect to redis://***@db:6379/0 or redis://h?password=***&db=1 with Password: ***"
    assert first["user"] == {"name": "eve", "db_password": "***", "more": [{"token": "***"}]}
    assert second["error"] == "ValueError('redis://***@db')"
    assert "OSError: cannot reach redis://***@db" in third["exception"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("redis://user:p@ss@host:1/0", "redis://***@host:1/0"),
        ("https://host/path?mail=a@b.c", "https://host/path?mail=a@b.c"),
        ("a\r\nb\x00\x1b[31m\u2028\x85\x9b", "a\\r\\nb\\x00\\x1b[31m\\u2028\\x85\\x9b"),
        ("tab\tand ünïcode", "tab\tand ünïcode"),
        ("{'secret_key': 'x y', 'n': 1}", "{'secret_key': ***, 'n': 1}"),
        ("tokens are fine", "tokens are fine"),
    ],
)
def test_clean(text: str, expected: str) -> None:
    assert clean(text) == expected


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_no_value_can_forge_a_line(log_format: str, written: Written) -> None:
    forged = "x\n2026-01-01T00:00:00Z [info] forged\x1b[2J"
    with restored("queue_system.test.forge"):
        logger = configure_logging(log_format, "INFO", stream=written.stream, name="queue_system.test.forge")
        bound = get_logger(logger)
        bound.info(forged, value=forged, deep={"a": [forged]}, **{forged: 1})
        logger.info("%s", forged)
        logger.error("broken", exc_info=ValueError(forged))
    lines = written.text.splitlines()
    assert "\x1b" not in written.text
    assert not [line for line in lines if line.startswith("2026-01-01T00:00:00Z")]
    if log_format == "json":
        assert len(lines) == 3
        assert "\n2026-01-01T00:00:00Z [info] forged" in json.loads(lines[2])["exception"]
    else:
        assert len([line for line in lines if not line.startswith("    ")]) == 3


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("log_format", "stream", "begins"),
    [
        ("auto", io.StringIO, "{"),
        ("auto", Terminal, "\x1b["),
        ("json", Terminal, "{"),
        ("console", io.StringIO, "20"),
    ],
)
def test_the_form_fits_where_it_is_written(log_format: str, stream: type[io.StringIO], begins: str) -> None:
    name, target = "queue_system.test.form", stream()
    with restored(name):
        configure_logging(log_format, "info", stream=target, name=name).info("hello")
    assert target.getvalue().startswith(begins)
    assert "hello" in target.getvalue()


@pytest.mark.parametrize(("log_format", "level"), [("xml", "INFO"), ("json", "LOUD")])
def test_what_is_not_known_is_refused(log_format: str, level: str) -> None:
    with restored("queue_system.test.bad"), pytest.raises(ConfigurationError, match="use "):
        configure_logging(log_format, level, name="queue_system.test.bad")


def test_the_same_refusal_is_told_every_ten_seconds(monkeypatch, caplog):
    clock = SimpleNamespace(now=50.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(telemetry.logging, "time", clock)
    listener = LogListener(get_logger(logging.getLogger("queue_system.test.refusals")))
    told = []
    for seconds, operation, reason in [
        (0.0, "claim", "NOPERM"),
        (0.0, "wait", "NOPERM"),
        (9.9, "claim", "NOPERM"),
        (0.1, "claim", "NOPERM"),
        (1.0, "claim", "WRONGTYPE"),
        (1.0, "claim", "WRONGTYPE"),
    ]:
        clock.now += seconds
        caplog.clear()
        listener.on_event(events.BrokerError(operation, "refused", reason))
        told.append(len(caplog.records))
    assert told == [1, 1, 0, 1, 1, 0]
