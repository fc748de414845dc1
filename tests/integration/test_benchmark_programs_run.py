"""`benchmarks.features` and `benchmarks.profile` with few operations: that they measure what their rows say."""

from __future__ import annotations

import pytest

from benchmarks import features, profile
from benchmarks.driver import Server, Step, StepError, step
from benchmarks.features import FEATURES, MEASUREMENT
from benchmarks.systems import System

OPERATIONS = 2_000  # fewer, and the start of threads would be all that there is


def test_features_are_measured_and_compared() -> None:
    chosen = features.chosen(["spans", "callback", "dedup", "sync"])
    results = features.run(chosen, jobs=features.QUICK_JOBS, rounds=1)
    assert results.errors == {}
    medians = results.of(MEASUREMENT)
    assert list(medians) == [feature.name for feature in chosen]
    for name, figures in medians.items():
        assert all(figures[figure] > 0 for figure in features.COMPARED)
        assert ("worker_us_added" in figures) is (name != "metrics")
    assert medians["callback"]["redis_us_added"] > 0  # it is an operation of its own


def test_the_adapter_knows_every_feature_and_nothing_else() -> None:
    words = ",".join(feature.variant for feature in FEATURES if feature.variant)
    with Server() as server:
        with Step(System("all", "ours", variant=words), server) as at:
            assert at.ask("info")["kinds"] == ["async", "sync"]
        with Step(System("none", "ours", variant="spams"), server) as at, pytest.raises(StepError, match="spams"):
            at.ask("info")


@pytest.mark.parametrize("sync", [False, True])
def test_a_worker_is_profiled(sync: bool) -> None:
    measured = profile.measure(OPERATIONS, sync=sync, spans=not sync)
    assert profile.unmapped(measured.recording.entries) == []
    parts = {row.part: row for row in profile.report(measured, "", 5).rows}
    for part in ("decode and find the function", "the call", "outcome and outbox", "redis client and socket"):
        assert parts[part].us > 0
    assert profile.WAITING not in parts
    # Each was decoded once, apart from what ran while the worker was still starting.
    decoded = [
        entry.calls for one, entry in measured.recording.entries.items() if profile.name_of(one).endswith("._decode")
    ]
    assert OPERATIONS - 300 <= sum(decoded) <= OPERATIONS
    assert ("thread queue-system-pool" if sync else "thread queue-system-spans") in parts


def test_a_worker_that_does_not_end_well_is_told() -> None:
    with step(System("profile", "ours", variant="spams")) as at:
        at.start_worker("noop", "async", 1)
        with pytest.raises(StepError, match="the worker stopped with"):
            at.stop_workers(20.0)
