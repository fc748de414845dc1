"""What a worker's process asks of Python's garbage collector."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from queue_system.garbage import OBJECTS_HELD, tune_gc


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    enabled, threshold = gc.isenabled(), gc.get_threshold()
    gc.set_threshold(700, 10, 10)
    yield
    gc.unfreeze()
    gc.set_threshold(*threshold)
    if enabled:
        gc.enable()


class Ring:
    """Rubbish that only the collector can free; counts how often it did."""

    freed = 0

    def __init__(self) -> None:
        self.me = self

    def __del__(self) -> None:
        Ring.freed += 1


def test_what_is_there_is_left_out_but_for_rubbish():
    Ring.freed = 0
    Ring()
    tune_gc(5, 20)
    assert Ring.freed == 1
    assert gc.get_freeze_count() > 1_000
    assert len(gc.get_objects()) < 1_000


def test_rubbish_of_later_is_still_found():
    tune_gc(5, 20)
    Ring.freed = 0
    Ring()
    gc.collect(0)
    assert Ring.freed == 1


def test_the_threshold_is_above_what_a_worker_holds():
    tune_gc(100, 20)
    assert gc.get_threshold() == (OBJECTS_HELD * (100 + 4 * 20), 10, 10)


def test_a_small_worker_keeps_the_threshold():
    tune_gc(1, 1)
    assert gc.get_threshold() == (700, 10, 10)


def test_an_application_of_another_mind_keeps_its_set_up():
    gc.set_threshold(0)
    tune_gc(5, 20)
    assert gc.get_threshold()[0] == 0
    gc.unfreeze()
    gc.disable()
    tune_gc(5, 20)
    assert gc.get_freeze_count() == 0
