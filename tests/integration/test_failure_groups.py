"""Failures as incident records: their traces, their fingerprints, and equal errors as one group."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime, timedelta

import pytest
from opentelemetry.sdk.trace import TracerProvider
from rich.text import Text
from scaffold import add, given_up, redis_of
from typer.testing import CliRunner

from queue_system import QueueConfig, QueueManager, QueueRetryConfig
from queue_system.cli import app
from queue_system.cli.failures import entries_table, groups_view
from queue_system.errors import ConfigurationError
from queue_system.failures import PAGE, FailureStore, fingerprint
from support import running, until_metrics
from telemetry import TracingListener

ONCE = QueueRetryConfig.fixed(0.01, 1)
JAEGER = "http://jaeger:16686/trace/{trace_id}"

TRACEBACK = """Traceback (most recent call last):
  File "/srv/app/worker.py", line 10, in run
    return function()
  File "/srv/app/tasks.py", line {line}, in {function}
    raise ValueError
ValueError
"""


@pytest.fixture(autouse=True)
def _variables(redis_url, prefix, monkeypatch):
    for name in [name for name in os.environ if name.startswith("QUEUE_SYSTEM_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("QUEUE_SYSTEM_REDIS_URL", redis_url)
    monkeypatch.setenv("QUEUE_SYSTEM_QUEUE_PREFIX", prefix)
    monkeypatch.setenv("COLUMNS", "100")


def run(*args: str):
    return CliRunner().invoke(app, ["failures", *args])


async def charge(entity):
    raise ValueError(f"order {entity['n']} of 'customer {entity['n']}' is not paid")


async def send(entity):
    if entity["n"] % 2:
        raise TimeoutError("no answer")
    raise ValueError("no address")


async def fail(config: QueueConfig, function, count: int) -> list[str]:
    """Let so many operations of it fail, and give their ids."""
    add(config, function)
    entities = [{"n": n} for n in range(count)]
    results = QueueManager(config).enqueue_batch(entities, function, retry_config=ONCE)
    before = config.get_metrics()["failed"]
    async with running(config):
        await until_metrics(config, failed=before + count)
    return [result["operation_id"] for result in results]


# The fingerprint


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("order 12 is late", "order 1234567890 is late"),
        ("order 12345678 is late", "order 1 is late"),
        ("took 1.5 s", "took 23.75 s"),
        ("no 'sugar' there", "no 'brown sugar' there"),
        ('no "sugar" there', 'no "salt" there'),
        ("no `sugar` there", "no `salt` there"),
        ("<object at 0x7f3a10>", "<object at 0x7fad1983d9c0>"),
        ("user 6fa459ea-ee8a-3ca4-894e-db77e160355e is gone", "user 00000000-0000-0000-0000-000000000001 is gone"),
        ("commit 28353e006d494b62878c18938562f7fd", "commit deadbeef01"),
        ("10.0.0.1:6379 refused", "192.168.0.12:80 refused"),
        ("{'id': 1}", "{'id': 22}"),
        ("it isn't there: 'a'", "it isn't there: 'b'"),
    ],
)
def test_texts_that_differ_in_values_only_are_equal(one, other):
    assert fingerprint("p", "ValueError", one) == fingerprint("p", "ValueError", other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("no sugar", "no salt"),
        ("user's file", "user's disk"),
        ("default", "effaced"),
        ("", "x"),
        ("no 'sugar' there", "no 'sugar' here"),
    ],
)
def test_texts_that_differ_in_words_are_not(one, other):
    assert fingerprint("p", "ValueError", one) != fingerprint("p", "ValueError", other)


def test_processor_class_and_place_tell_errors_apart_and_lines_do_not():
    def made(processor="app:charge", error_type="ValueError", line=3, function="charge", path="/srv/app"):
        trace = TRACEBACK.format(line=line, function=function).replace("/srv/app", path)
        return fingerprint(processor, error_type, "no", trace)

    assert made() == made(line=400) == made(path="/home/me/src")
    assert len({made(), made("app:send"), made(error_type="KeyError"), made(function="send")}) == 4
    assert made() != fingerprint("app:charge", "ValueError", "no", "no traceback that one knows")


def test_it_is_12_hexadecimal_digits_whatever_the_text():
    for text in ("", "\udcff\x00", "'" * 5000, "9" * 5000, "a-" * 5000, '"' + "'" * 999):
        assert len(bytes.fromhex(fingerprint(text, text, text, text))) == 6


# The groups


async def test_equal_errors_are_one_group(config):
    before = datetime.now(UTC) - timedelta(seconds=1)
    charged = await fail(config, charge, 2)
    sent = await fail(config, send, 3)
    charged += await fail(config, charge, 3)
    store = FailureStore(config)
    groups = store.groups()
    assert [(group.count, group.processor, group.error_type) for group in groups] == [
        (5, "tests:charge", "ValueError"),
        (2, "tests:send", "ValueError"),
        (1, "tests:send", "TimeoutError"),
    ]
    by_id = {entry.operation_id: entry for entry in store.list()}
    assert set(by_id) == {*charged, *sent}
    for group in groups:
        example = by_id[group.example_id]
        assert (example.fingerprint, example.error_message) == (group.fingerprint, group.error_message)
        members = [entry for entry in by_id.values() if entry.fingerprint == group.fingerprint]
        assert len(members) == group.count
        assert group.first == min(entry.failed_at for entry in members) > before
        assert group.last == max(entry.failed_at for entry in members) == example.failed_at
    assert groups[0].first < groups[0].last
    assert json.loads(json.dumps(groups[0].to_dict()))["count"] == 5


async def test_only_so_many_of_the_newest_are_looked_at(config):
    await fail(config, charge, PAGE + 5)
    store = FailureStore(config)
    for limit, count in ((0, 0), (1, 1), (PAGE, PAGE), (PAGE + 1, PAGE + 1), (10**6, PAGE + 5)):
        assert sum(group.count for group in store.groups(limit)) == count
    with pytest.raises(ConfigurationError, match="limit"):
        store.groups(-1)


def test_without_failures_there_are_no_groups(config):
    assert list(FailureStore(config).groups()) == []
    assert run("list", "--group").stdout == "0 groups among 0 failures\n"


async def test_system_errors_have_groups_of_their_own(config):
    QueueManager(config).enqueue_batch([{}] * 3, "os:system", queue_name="mail")
    async with running(config):
        await until_metrics(config, system_errors=3)
    (group,) = FailureStore(config, system_errors=True).groups()
    assert (group.count, group.error_type) == (3, "ImportRefusedError")
    assert "1 group among 3 system errors" in run("list", "--group", "--system-errors").stdout


def test_garbage_has_a_group(config):
    client, keys = redis_of(config), config.keys
    for n in range(3):
        client.hset(keys.operation(f"odd-{n}"), mapping={"st": "failed", "b": b"\xff", "err": b"[1", "hist": b"\n{x"})
        client.zadd(keys.failures, {f"odd-{n}": 1})
    (group,) = FailureStore(config).groups()
    assert (group.count, group.processor, group.error_type, group.trace_id) == (3, "", "", "")
    assert "3x   unknown" in run("list", "--group").stdout


# The trace


async def test_an_entry_knows_the_trace_of_its_last_attempt(make_config):
    config = make_config(telemetry=[TracingListener(TracerProvider())])
    add(config, charge)
    QueueManager(config).enqueue({"n": 1}, charge, retry_config=QueueRetryConfig.fixed(0.01, 2))
    async with running(config):
        await until_metrics(config, failed=1)
    (entry,) = given_up(config)
    traces = [record["trace"].split("-")[1] for record in entry.history]
    assert entry.trace_id == traces[-1] != traces[0]
    assert entry.to_dict()["trace_id"] == entry.trace_id
    assert FailureStore(config).groups()[0].trace_id == entry.trace_id


async def test_without_tracing_there_is_no_trace_and_no_link(make_config):
    config = make_config(telemetry=None)
    await fail(config, charge, 1)
    (entry,) = given_up(config)
    assert entry.trace_id == ""
    shown = run("show", entry.operation_id, "--trace-url", JAEGER).stdout
    assert "jaeger" not in shown
    assert "trace_url" not in run("list", "--json", "--trace-url", JAEGER).stdout


async def test_a_template_makes_the_trace_a_link(make_config, monkeypatch):
    config = make_config(telemetry=[TracingListener(TracerProvider())])
    await fail(config, charge, 1)
    (entry,) = given_up(config)
    link = JAEGER.format(trace_id=entry.trace_id)
    assert f"trace        {entry.trace_id}" in run("show", entry.operation_id).stdout
    assert f"trace        {link}" in run("show", entry.operation_id, "--trace-url", JAEGER).stdout
    monkeypatch.setenv("QUEUE_SYSTEM_TRACE_URL", JAEGER)
    assert json.loads(run("show", entry.operation_id, "--json").stdout)["trace_url"] == link
    for options in ([], ["--group"]):
        assert json.loads(run("list", "--json", *options).stdout)[0]["trace_url"] == link
    groups = FailureStore(config).groups()
    for view in (entries_table([entry], 0.0, 100, JAEGER), groups_view(groups, 0.0, 100, JAEGER)):
        assert [(text, url) for text, url in _links(view)] == [(entry.operation_id, link)]


def _links(view: Text) -> list[tuple[str, str]]:
    return [
        (view.plain[span.start : span.end], span.style.link) for span in view.spans if getattr(span.style, "link", "")
    ]


@pytest.mark.parametrize("template", ["http://jaeger/trace/", "javascript:{trace_id}", "{trace_id}"])
def test_a_template_that_is_none_is_refused(template):
    result = CliRunner().invoke(app, ["failures", "list", "--trace-url", template])
    assert result.exit_code != 0
    assert "{trace_id} in it" in str(result.exception)


# The command


async def test_the_command_shows_groups(config):
    await fail(config, charge, 3)
    (sent,) = await fail(config, send, 1)
    result = run("list", "--group")
    first, second = FailureStore(config).groups()
    lines = result.stdout.splitlines()
    assert lines[0].startswith("3x   tests:charge   ValueError: order ")
    assert lines[1].startswith(f"     {first.fingerprint}   ")
    assert lines[1].endswith(f"such as {first.example_id}")
    assert lines[2] == "1x   tests:send   ValueError: no address"
    assert lines[3].endswith(f"such as {sent}")
    assert lines[4] == "2 groups among 4 failures"
    assert max(map(len, lines)) <= 100
    assert json.loads(run("list", "--group", "--json").stdout) == [first.to_dict(), second.to_dict()]
    assert json.loads(run("list", "--group", "--json", "--offset", "1").stdout) == [second.to_dict()]
    assert json.loads(run("list", "--group", "--json", "--limit", "1").stdout) == [first.to_dict()]
    assert f"fingerprint  {second.fingerprint}" in run("show", sent).stdout


async def test_the_command_shows_nothing_that_a_terminal_obeys(config):
    async def evil(_):
        raise ValueError("\x1b[2J" + "wide 宽 " * 40)

    await fail(config, evil, 1)
    result = run("list", "--group")
    assert "\x1b" not in result.stdout
    assert "ValueError: \\x1b[2Jwide" in result.stdout
    assert result.stdout.splitlines()[0].endswith("…")
