"""The benchmarks' steps with this project's adapter and few jobs: that they measure, end, and say what went wrong."""

from __future__ import annotations

import dataclasses
import pathlib
import sys

import psutil
import pytest

from benchmarks import driver, measurements
from benchmarks.driver import StepError, step
from benchmarks.measurements import QUICK
from benchmarks.systems import OURS, InstallError, System, python_of

TINY = dataclasses.replace(QUICK, jobs=400, samples=15, idle_seconds=0.2, backlogs=(1_000,), recovery_seconds=20.0)


def test_enqueue_is_counted() -> None:
    figures = measurements.enqueue(OURS, TINY, {})
    assert figures["per_second"] > 0
    assert figures["bytes"] > 100
    assert figures["round_trips"] == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("kind", ["async", "sync"])
def test_a_drain_runs_every_job(kind: str) -> None:
    figures = measurements.drain(OURS, TINY, {}, kind=kind)
    assert 0 < figures["jobs"] <= 400
    assert figures["per_second"] > 0
    assert figures["peak_mb"] > 10


def test_latency_is_sampled_and_an_idle_worker_watched() -> None:
    figures = measurements.latency(OURS, TINY, {})
    assert figures["samples"] == 15
    assert 0 < figures["p50_ms"] <= figures["p99_ms"] < 5_000
    assert figures["idle_mb"] > 10


def test_cost_at_a_backlog() -> None:
    figures = measurements.backlog(OURS, TINY, {})
    assert figures["bytes@1000"] > 100
    assert figures["claim_complete_redis_us@1000"] > 0


def test_a_worker_that_ends_is_told_with_its_last_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "python_of", lambda _: sys.executable)
    with step(System("nobody", "no_such_adapter")) as at:
        at.start_worker("noop", "async", 1)
        with pytest.raises(StepError, match=r"the worker ended: .*no_such_adapter"):
            at.wait_for(1, 20.0, "start")


def test_a_worker_that_does_nothing_is_given_up_and_killed() -> None:
    with step(OURS) as at:
        at.start_worker("noop", "async", 1)
        processes = at.processes()
        with pytest.raises(StepError, match=r"start: 0 of 1 within 0 s"):
            at.wait_for(1, 0.2, "start")
    assert processes
    assert not [process for process in processes if psutil.pid_exists(process.pid)]


def test_an_adapter_that_hangs_is_ended() -> None:
    with step(OURS) as at, pytest.raises(StepError, match="no end within 1 s"):
        at.ask("work", timeout=1.0)


def test_a_peer_that_cannot_be_installed_says_why(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(InstallError, match="no_such_peer"):
        python_of(System("absent", "absent", (str(tmp_path / "no_such_peer.whl"),)))


def test_memory_and_load_are_redis_own() -> None:
    with driver.Server() as server:
        before = server.load()
        assert server.memory() > 0
        assert server.load().since(before).calls == 0
