"""Invariants I1 to I8 of the broker, after every step of random histories.

A short run that is always the same, and with ``PROPERTY_STEPS`` (say 100000) another of so many steps: its histories
are new each time, unless ``PROPERTY_SEED`` is set to the number that a failed run has printed.
"""

from __future__ import annotations

import os
import secrets

import pytest
from broker_machine import SHORT_STEPS, Bench

from queue_system.broker.scripts import load_scripts

RUNS = [(SHORT_STEPS, 0)]
if os.environ.get("PROPERTY_STEPS"):
    RUNS.append((int(os.environ["PROPERTY_STEPS"]), int(os.environ.get("PROPERTY_SEED") or secrets.randbelow(10**9))))

# A run that has not met all of these proves little.
OUTCOMES = ("queued", "scheduled", "duplicate_id", "duplicate_key", "claimed", "processed", "put back", "failed",
            "rejected", "requeued", "stale", "late and stale", "late but valid", "reaped", "quarantined", "in grace",
            "stray ids", "written by hand", "suspects left", "suspects taken",
            "sent again", "sent too late")  # fmt: skip


@pytest.mark.parametrize(
    ("steps", "seed"),
    [pytest.param(*run, marks=pytest.mark.timeout(120 + run[0] // 50), id=f"{run[0]}-steps") for run in RUNS],
)
def test_the_invariants_hold_after_every_step(client, steps, seed):
    print(f"PROPERTY_STEPS={steps} PROPERTY_SEED={seed}")  # noqa: T201  shown when the test fails
    bench = Bench(client, load_scripts())
    bench.run(steps, first_seed=seed)
    assert [outcome for outcome in OUTCOMES if not bench.met[outcome]] == []
    assert not client.keys("p*"), "each example cleans up"
