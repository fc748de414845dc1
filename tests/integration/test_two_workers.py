"""Two worker processes on one queue: each operation runs once, and strict priority holds."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
from scaffold import Note, Notes, jobs, worker_program

from queue_system import QueueManager
from support import until_metrics

PRIORITIES = ("high", "normal", "low")
WORKER = {"max_workers": 10, "thread_pool_size": 5}
# What a worker may hold of each kind: its worker tasks; its threads, and three waiting places for each.
SLOTS = {"async": 2 * WORKER["max_workers"], "sync": 2 * WORKER["thread_pool_size"] * 4}
COUNTS = {"async": 8000, "sync": 2000}


@pytest.mark.timeout(120)
async def test_two_workers_run_each_of_10000_operations_once_in_strict_priority(config, tmp_path):
    notes = Notes(tmp_path / "notes")
    queue = QueueManager(config)
    for kind, priority in itertools.product(COUNTS, reversed(PRIORITIES)):  # the low ones are first in
        function = {"async": jobs.run_async, "sync": jobs.run_sync}[kind]
        share = COUNTS[kind] // 3 + (COUNTS[kind] % 3 if priority == "high" else 0)
        entities = [{"id": f"{kind}-{priority}-{n}", "priority": priority} for n in range(share)]
        queue.enqueue_batch(entities, function, priority=priority)
    assert config.get_metrics()["enqueued"] == sum(COUNTS.values())

    with worker_program(config, notes, **WORKER) as one, worker_program(config, notes, **WORKER) as other:
        metrics = await until_metrics(config, timeout=90, processed=sum(COUNTS.values()))
        assert (metrics["failed"], metrics["retried"], metrics.get("stale_acks", 0)) == (0, 0, 0)

    starts, ends = notes.all("start"), notes.all("end")
    assert len(starts) == len(ends) == sum(COUNTS.values())
    assert set(Counter(note.words[0] for note in starts).values()) == {1}
    assert {note.words[0] for note in starts} == {note.words[0] for note in ends}
    shares = Counter(note.pid for note in starts)
    assert set(shares) == {one.pid, other.pid}
    assert min(shares.values()) > sum(COUNTS.values()) // 10  # both did their part
    for kind, slots in SLOTS.items():
        mine = [note for note in starts if note.words[0].startswith(kind)]
        assert overtaken(mine) <= slots, kind


def overtaken(starts: list[Note]) -> int:
    """The most operations of a higher priority that had not started when one of a lower priority did.

    All were enqueued before, so those can only be operations that a worker had claimed and not yet started: at most
    as many as the workers have slots. Without priorities it would be thousands.
    """
    left = Counter(note.words[1] for note in starts)
    most = 0
    for note in starts:
        left[note.words[1]] -= 1
        higher = PRIORITIES[: PRIORITIES.index(note.words[1])]
        most = max(most, sum(left[priority] for priority in higher))
    return most


def test_the_measure_of_overtaking_sees_it():
    def note(number: int, priority: str) -> Note:
        return Note(float(number), 1, "start", (f"async-{number}", priority))

    strict = ["high", "high", "normal", "low"]
    assert overtaken([note(*pair) for pair in enumerate(strict)]) == 0
    assert overtaken([note(*pair) for pair in enumerate(reversed(strict))]) == 3
