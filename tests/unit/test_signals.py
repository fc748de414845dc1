"""What asks a worker to stop: before its loop runs, while it runs, and in a process that it has forked."""

import os
import signal
import subprocess
import sys

import pytest

from queue_system.cli import signals
from queue_system.cli.signals import StoppedError, StopSignals


@pytest.fixture(autouse=True)
def restored():
    numbers = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def test_a_stop_that_came_early_is_told_later():
    stop, heard = StopSignals(), []
    stop.received(signal.SIGTERM)
    assert stop.asked
    stop.tell(lambda: heard.append(1))
    assert heard == [1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_each_signal_asks_for_a_drain(number):
    stop, heard = StopSignals(), []
    stop.install()
    stop.tell(lambda: heard.append(1))
    assert heard == []
    signal.raise_signal(number)
    assert (heard, stop.asked) == ([1], True)


def test_the_imports_are_interrupted():
    stop = StopSignals()
    stop.interrupts = True
    with pytest.raises(StoppedError):
        stop.received(signal.SIGTERM)
    assert stop.asked


def test_a_hang_up_that_is_ignored_stays_so():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    StopSignals().install(interrupt=False)
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize(("arguments", "held"), [(["worker", "app"], True), (["status"], False), ([], False)])
def test_only_a_worker_holds_signals(arguments, held, monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", ["python", "queue-system", *arguments])
    before = signal.getsignal(signal.SIGTERM)
    signals.hold(arguments)
    assert (signal.getsignal(signal.SIGTERM) is not before) is held
    stop = signals.take()
    assert signal.getsignal(signal.SIGTERM) == stop.received


@pytest.mark.parametrize("own", [[], ["--multiprocessing-fork"], ["worker"], ["worker", "other"]])
def test_a_spawned_child_that_imports_the_command_does_not(own, monkeypatch):
    """Its `sys.argv` is the worker's; what it was started with is not."""
    monkeypatch.setattr(sys, "orig_argv", ["python", "-c", "from multiprocessing.spawn import spawn_main", *own])
    before = signal.getsignal(signal.SIGTERM)
    signals.hold(["worker", "app"])
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_forked_child_has_the_handlers_of_any_process():
    StopSignals().install()
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        term, hang_up, interrupt = map(signal.getsignal, (signal.SIGTERM, signal.SIGHUP, signal.SIGINT))
        right = term == hang_up == signal.SIG_DFL and interrupt is signal.default_int_handler
        os.write(write, b"1" if right and signal.set_wakeup_fd(-1) == -1 else b"0")
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(read, 1) == b"1"


@pytest.mark.parametrize("caught", [False, True])
def test_a_stop_during_the_imports_ends_the_worker_in_good_order(tmp_path, caught):
    body = "import os, signal\nos.kill(os.getpid(), signal.SIGTERM)\n"
    if caught:
        body = "import os, signal\ntry: os.kill(os.getpid(), signal.SIGTERM)\nexcept BaseException: pass\n"
    (tmp_path / "stops_itself.py").write_text(body)
    command = [sys.executable, "-m", "queue_system.cli", "worker", "stops_itself", "--redis-url", "redis://127.0.0.1:1"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
