"""A worker that is killed loses nothing: what it held runs again, at most once more, and soon."""

from __future__ import annotations

import signal
import time
from collections import Counter

import pytest
from scaffold import Notes, given_up, jobs, leased, stored, worker_program

from queue_system import QueueManager, QueueRetryConfig
from support import until, until_metrics

OPERATIONS = 1000


@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_kill_9_in_the_middle_of_1000_operations(config, tmp_path, kind):
    """All with default settings, and nothing new is enqueued after the kill that could wake anybody up."""
    function = {"async": jobs.run_async, "sync": jobs.run_sync}[kind]
    notes = Notes(tmp_path / "notes")
    queue = QueueManager(config)
    results = queue.enqueue_batch([{"id": f"n{number}", "seconds": 0.02} for number in range(OPERATIONS)], function)
    operation_of = {f"n{number}": result["operation_id"] for number, result in enumerate(results)}

    with worker_program(config, notes) as first:
        await until(lambda: notes.count("end") >= 200, 30, "200 operations done")
        first.kill()
    killed = time.monotonic()
    in_flight = leased(config)
    before = notes.all()
    assert 0 < len(in_flight) < OPERATIONS - 200  # it was in the middle

    with worker_program(config, notes) as second:
        metrics = await until_metrics(config, timeout=20 - (time.monotonic() - killed), processed=OPERATIONS)
        took = time.monotonic() - killed
    assert took < 20
    assert {note.pid for note in before} == {first.pid}

    runs = Counter(note.words[0] for note in notes.all("start"))
    done = {note.words[0] for note in notes.all("end")}
    assert done == set(operation_of)
    assert {name for name, count in runs.items() if count > 2} == set()
    twice = {operation_of[name] for name, count in runs.items() if count == 2}
    assert twice <= in_flight  # an extra run only for what was in flight
    assert sum(runs.values()) == OPERATIONS + len(twice)
    assert {note.pid for note in notes.all("start")} == {first.pid, second.pid}

    assert metrics["reclaimed"] == len(in_flight)
    assert (metrics["failed"], metrics["system_errors"]) == (0, 0)
    assert metrics["retried"] == metrics["thread_pool_exhaustion"]  # a busy machine may have some
    status = queue.get_queue_status()
    assert (status["total_items"], status["delayed"], status["in_flight"]) == (0, 0, 0)


async def test_a_crash_burns_no_attempt(config, tmp_path):
    notes = Notes(tmp_path / "notes")
    once = QueueRetryConfig(max_attempts=1)
    QueueManager(config).enqueue({"id": "a", "seconds": 60}, jobs.run_async, operation_id="held", retry_config=once)
    with worker_program(config, notes, lease=1.5) as first:
        await until(lambda: notes.count("start") == 1)
        first.kill()
    with worker_program(config, notes, lease=1.5):
        await until(lambda: notes.count("start") == 2)
        fields = stored(config, "held")
    assert "at" not in fields
    assert (fields["st"], fields["dc"], fields["cr"]) == ("leased", "2", "1")


async def test_an_operation_that_kills_its_workers_is_given_up_and_its_neighbours_are_not(config, tmp_path):
    notes = Notes(tmp_path / "notes")
    queue = QueueManager(config)
    queue.enqueue({"id": "deadly"}, "deadly:kill_worker", operation_id="deadly", on_failure=jobs.called_back)
    for _ in range(2):
        with worker_program(config, notes, max_workers=1, lease=1, max_crashes=1) as worker:
            assert await worker.ends() == -9
    queue.enqueue_batch([{"id": f"n{number}"} for number in range(20)], jobs.run_async)
    with worker_program(config, notes, max_workers=1, lease=1, max_crashes=1):
        await until_metrics(config, processed=20, failed=1, callbacks_processed=1)
    (entry,) = given_up(config)
    assert (entry.operation_id, entry.reason, entry.attempts) == ("deadly", "crashed", 0)
    assert [note.words for note in notes.all("callback")] == [("deadly",)]


@pytest.mark.timeout(120)
async def test_what_was_in_flight_beside_an_operation_that_kills_is_not_blamed_for_it(config, tmp_path):
    """Every worker but the last dies with up to 20 operations in flight; one of them is to blame."""
    notes = Notes(tmp_path / "notes")
    queue = QueueManager(config)
    good = [{"id": f"n{number}", "seconds": 0.05 + 0.02 * (number % 7)} for number in range(100)]
    queue.enqueue_batch(good[:50], jobs.run_async)
    queue.enqueue({"id": "deadly"}, "deadly:kill_worker", operation_id="deadly")
    queue.enqueue_batch(good[50:], jobs.run_async)
    for _ in range(4):  # three crashes are borne, the fourth is one too many
        with worker_program(config, notes, max_workers=20, lease=1) as worker:
            assert await worker.ends() == -9
    with worker_program(config, notes, max_workers=20, lease=1):
        metrics = await until_metrics(config, processed=100, failed=1, timeout=30)
    (entry,) = given_up(config)
    assert (entry.operation_id, entry.reason) == ("deadly", "crashed")
    runs = Counter(note.words[0] for note in notes.all("start"))
    assert set(runs) == {each["id"] for each in good}
    assert max(runs.values()) <= 3  # at the first two crashes; from then on the deadly one died alone
    assert 4 < metrics["reclaimed"] <= 4 + 2 * 19


async def test_sigterm_lets_a_worker_finish_and_give_back_the_rest(config, tmp_path):
    notes = Notes(tmp_path / "notes")
    queue = QueueManager(config)
    queue.enqueue({"id": "short", "seconds": 0.5}, jobs.run_async, priority="high")
    queue.enqueue({"id": "long", "seconds": 60}, jobs.run_async, operation_id="long", priority="high")
    queue.enqueue_batch([{"id": f"n{number}"} for number in range(10)], jobs.run_async)
    with worker_program(config, notes, max_workers=2, grace=1.0) as worker:
        await until(lambda: notes.count("start") >= 2)
        worker.send(signal.SIGTERM)
        terminated = time.monotonic()
        assert await worker.ends() == 0
    assert time.monotonic() - terminated < 1.0 + 1.0 + 1.0  # grace, a second for clean-up, and the interpreter's end
    assert leased(config) == set()
    assert "short" in {note.words[0] for note in notes.all("end")}
    assert stored(config, "long")["st"] == "ready"
    assert "at" not in stored(config, "long")
    metrics = config.get_metrics()
    assert metrics["processed"] == notes.count("end")
    assert metrics["workers"] == 0
