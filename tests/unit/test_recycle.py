"""When a worker has done enough: its limits, their jitter, and what cannot be."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from queue_system import QueueConfig, QueueWorker
from queue_system.errors import ConfigurationError
from queue_system.runtime import recycle
from queue_system.runtime.recycle import JITTER, Recycling, resident_memory
from queue_system.settings import Settings

MIB = 1024 * 1024


def lowest(low: float, high: float) -> float:
    assert (low, high) == (1 - JITTER, 1.0)
    return low


def highest(_: float, high: float) -> float:
    return high


def test_without_limits_nothing_is_ever_due():
    none = Recycling(memory=lambda: 10**15)
    none.check()
    assert not none.due_by_operations(10**12)
    assert not none.due_by_memory()


def test_the_limit_of_operations_is_drawn_from_its_last_5_percent():
    assert Recycling(1000, uniform=lowest).operations == 950
    assert Recycling(1000, uniform=highest).operations == 1000
    assert len({Recycling(1000).operations for _ in range(50)}) > 5  # of 50
    assert Recycling(1, uniform=lowest).operations == 1
    limits = Recycling(1000, uniform=lowest)
    assert not limits.due_by_operations(949)
    assert limits.due_by_operations(950)


def test_the_limit_of_memory_is_measured_each_time():
    used = SimpleNamespace(bytes=100 * MIB)
    limits = Recycling(max_memory=200 * MIB, memory=lambda: used.bytes, uniform=lowest)
    limits.check()
    assert not limits.due_by_memory()
    used.bytes = 190 * MIB
    assert limits.due_by_memory()


@pytest.mark.parametrize("used", [190 * MIB, 300 * MIB])
def test_a_limit_that_the_process_is_beyond_from_the_start_is_refused(used):
    limits = Recycling(max_memory=200 * MIB, memory=lambda: used, uniform=highest)
    with pytest.raises(ConfigurationError, match=f"max_memory is 200 MiB, but this process takes {used // MIB} MiB"):
        limits.check()


def test_a_limit_that_cannot_be_measured_is_refused():
    with pytest.raises(ConfigurationError, match="cannot be measured on this system"):
        Recycling(max_memory=200 * MIB, memory=lambda: None).check()


def test_the_memory_of_this_process_is_what_it_holds_now():
    before = resident_memory()
    assert before is not None
    block = bytearray(64 * MIB)
    block[::4096] = b"x" * len(block[::4096])
    held = resident_memory()
    del block
    assert held - before > 48 * MIB


def test_without_proc_it_is_the_peak(monkeypatch, tmp_path):
    monkeypatch.setattr(recycle, "_STATM", tmp_path / "statm")
    usage = SimpleNamespace(RUSAGE_SELF=0, getrusage=lambda _: SimpleNamespace(ru_maxrss=3000))
    monkeypatch.setitem(sys.modules, "resource", usage)
    monkeypatch.setattr(sys, "platform", "linux")
    assert resident_memory() == 3000 * 1024
    monkeypatch.setattr(sys, "platform", "darwin")
    assert resident_memory() == 3000


def test_where_neither_is_known_it_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(recycle, "_STATM", tmp_path / "statm")
    monkeypatch.setitem(sys.modules, "resource", None)  # an import of it raises
    assert resident_memory() is None


@pytest.mark.parametrize(
    ("text", "size"), [("512MiB", 512 * MIB), ("1.5GiB", 1536 * MIB), ("2 GB", 2 * 10**9), ("1048576", MIB)]
)
def test_a_size_is_read_from_its_variable(monkeypatch, text, size):
    monkeypatch.setenv("QUEUE_SYSTEM_MAX_MEMORY", text)
    monkeypatch.setenv("QUEUE_SYSTEM_MAX_OPERATIONS", "1000")
    settings = Settings.load()
    assert (settings.max_memory, settings.max_operations) == (size, 1000)
    assert Settings.load(max_memory=f"{size}").max_memory == size


def test_there_are_no_limits_by_default():
    settings = Settings.load()
    assert (settings.max_memory, settings.max_operations, settings.max_abandoned) == (None, None, None)


@pytest.mark.parametrize("text", ["512Mi", "-1GiB", "much", "0", "12 parsecs"])
def test_a_bad_size_says_how_to_write_one(text):
    with pytest.raises(ConfigurationError) as caught:
        Settings.load(max_memory=text)
    assert str(caught.value) == f"--max-memory={text!r}: not a size such as 512MiB or 2GB"


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("max_operations", 0, "max_operations must be an integer of 1 or more"),
        ("max_operations", 1.5, "max_operations must be an integer of 1 or more"),
        ("max_memory", 0, "max_memory must be an integer of 1 or more"),
        ("max_memory", "512MiB", "max_memory must be an integer of 1 or more"),
        ("max_abandoned", -1, "max_abandoned must be an integer from 0 to 20"),
        ("max_abandoned", 21, "max_abandoned must be an integer from 0 to 20"),
    ],
)
def test_bad_limits_of_a_worker_are_refused(option, value, says):
    with QueueConfig(telemetry=None) as config, pytest.raises(ConfigurationError, match=says):
        QueueWorker(config, **{option: value})
