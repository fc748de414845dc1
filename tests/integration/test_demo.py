"""The demo on a small tree of files: right totals, and an exit code that tells when something is amiss."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from contextlib import suppress

import pytest

from queue_system import BrokerUnavailableError, ConfigurationError, QueueConfig, QueueManager
from queue_system.demo import main, run
from queue_system.demo.totals import Ledger, Totals

PROGRAM = "import sys; from pathlib import Path; from queue_system.demo import run; sys.exit(run(None, sys.argv[1]))"


@pytest.fixture
def tree(tmp_path):
    root = tmp_path / "tree"
    files = {
        "good.py": b"class A:\n    def f(self): ...\n\nasync def g(): ...\n",
        "package/also_good.py": b"def h(): ...\n",
        "broken.py": b"def broken(:\n",
        "empty.py": b"",
        "latin.py": "# coding: latin-1\ncaf\xe9 = 'caf\xe9 noir'\n".encode("latin-1"),
        "undeclared.py": "caf\xe9 = 1\n".encode("latin-1"),
        "site-packages/installed.py": b"def not_ours(): ...\n",
    }
    for name, content in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    (root / "dangling.py").symlink_to("nowhere")
    return root


def columns(text, label):
    """What follows the label in the line of a table."""
    (line,) = [line for line in text.splitlines() if line.strip().startswith(f"{label}  ")]
    return line.strip().removeprefix(label).split()


def test_every_operation_ends_as_it_should_and_the_totals_are_right(tree, redis_url, capsys):
    assert run(tree, redis_url) == 0
    text = capsys.readouterr().out
    assert "7 Python files\n" in text
    assert "23 operations enqueued" in text  # two for each file, and 7 + 1 + 1 with trouble on purpose
    expected = {
        "files measured": 6,
        "files not readable": 1,
        "bytes": 122,
        "lines": 9,
        "words": 24,
        "files parsed": 4,
        "files not parsable": 3,
        "functions": 3,
        "classes": 1,
    }
    for label, value in expected.items():
        assert columns(text, label) == [str(value), str(value), "equal"]
    assert columns(text, "digest of digests")[2] == "equal"
    assert "Every operation is accounted for, and all totals are equal." in text
    assert "\x1b" not in text


def status_of(redis_url, text):
    """The status of the queue after a run, whose prefix it has printed."""
    prefix = re.search(r"keys (demo:\w+:)\*", text)[1]
    with QueueConfig(redis_url=redis_url, queue_prefix=prefix, telemetry=None) as config:
        return prefix, QueueManager(config).get_queue_status()


def test_the_status_that_it_prints_is_the_one_in_redis(tree, redis_url, capsys):
    assert run(tree, redis_url) == 0
    text = capsys.readouterr().out
    prefix, status = status_of(redis_url, text)
    metrics = status["metrics"]
    assert (status[f"{prefix}failures"], status["total_items"]) == (2, 2)
    assert (metrics["enqueued"], metrics["processed"], metrics["failed"]) == (23, 21, 2)
    assert metrics["timeouts"] == 2
    for name in ("enqueued", "processed", "failed", "retried"):
        assert f"'{name}': {metrics[name]}" in text
    assert f"queue-system failures list --redis-url {redis_url} --prefix {prefix}" in text


def test_two_runs_in_one_process_do_not_mix(tree, redis_url, capsys):
    assert [run(tree, redis_url), run(tree / "good.py", redis_url)] == [0, 0]
    assert columns(capsys.readouterr().out.partition("1 Python files")[2], "files measured") == ["1", "1", "equal"]


def test_a_total_that_differs_is_named_and_ends_with_1(tree, redis_url, capsys, monkeypatch):
    rows = Totals.rows
    calls = []

    def tampered(self):
        calls.append(self)
        return {**rows(self), "lines": rows(self)["lines"] + (len(calls) == 1)}

    monkeypatch.setattr(Totals, "rows", tampered)
    assert run(tree, redis_url) == 1
    text = capsys.readouterr().out
    assert columns(text, "lines") == ["10", "9", "DIFFERENT"]
    assert "Not as it should be:\n  lines: 10 by the queue, 9 by the plain loop\n" in text
    assert "accounted for" not in text


def test_an_operation_that_is_lost_is_named_and_ends_with_1(tree, redis_url, capsys, monkeypatch):
    hear = Ledger.on_success

    async def deaf(self, data):
        if (data["processor"], data["entity"]["path"]) != ("measure", str(tree / "good.py")):
            await hear(self, data)

    monkeypatch.setattr(Ledger, "on_success", deaf)
    monkeypatch.setattr(main, "STALLED_AFTER", 0.5)
    assert run(tree, redis_url) == 1
    text = capsys.readouterr().out
    assert re.search(r"\n  measure [0-9a-f]{32} was enqueued and never heard of again\n", text)
    assert columns(text, "files measured") == ["5", "6", "DIFFERENT"]


def test_bad_arguments_are_errors_before_anything_is_enqueued(tree, redis_url, capsys):
    with pytest.raises(ConfigurationError, match="does not exist"):
        run(tree / "nowhere", redis_url)
    with pytest.raises(ConfigurationError, match="embedded"):
        run(tree, "embedded://not-a-path")
    with pytest.raises(BrokerUnavailableError):
        run(tree, "redis://127.0.0.1:1/0")
    assert "enqueued" not in capsys.readouterr().out


@pytest.fixture
def demo_process(redis_url):
    """The demo on the standard library, in a process of its own that can be interrupted."""
    process = subprocess.Popen(
        (sys.executable, "-c", PROGRAM, redis_url),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    yield process
    with suppress(ProcessLookupError):
        process.kill()
    process.communicate()


def test_ctrl_c_ends_it_cleanly_and_leaves_nothing_to_do(demo_process, redis_url):
    text = ""
    while "sync: high" not in text:  # the worker is at work
        line = demo_process.stdout.readline()
        assert line, text
        text += line
    demo_process.send_signal(signal.SIGINT)
    text += demo_process.communicate(timeout=30)[0]
    assert demo_process.returncode == 130, text
    assert "Interrupted: the worker has stopped" in text
    ended, enqueued = re.search(r"([\d,]+) of ([\d,]+) operations had ended", text).groups()
    assert ended != enqueued
    assert "Traceback" not in text
    prefix, status = status_of(redis_url, text)
    assert status["total_items"] == status[f"{prefix}failures"]
    assert (status["delayed"], status["in_flight"], status["metrics"]["workers"]) == (0, 0, 0)
