"""Python's garbage collector, set for a process whose work is that of a worker."""

from __future__ import annotations

import gc
from typing import Final

from queue_system.runtime.pool import ROOM_FACTOR

OBJECTS_HELD: Final = 25
"""That the collector counts for each operation in a worker's hands: some 22, as `tests/integration/test_cost_guard.py`
has it, and a few of its entity.
"""


def tune_gc(max_workers: int, thread_pool_size: int) -> None:
    """Let the garbage collector look for garbage, and neither at the program nor at what a worker has in its hands.

    A collection begins when there are more new objects than a threshold, 700 by default. A busy worker holds more than
    that, so that each batch of its operations starts one, and about each hundredth of those goes through all there is
    in memory, while nothing else happens: 11 ms and more, with nothing imported but this package, by ``python -m
    timeit -s "import gc, telemetry, queue_system" "gc.collect()"``. Hence:

    - what there is by now is left out from now on (`gc.freeze`);
    - the threshold is raised to `OBJECTS_HELD` for each operation that the worker may hold, and never lowered.

    For a process that does little else than to run one worker: call it when that has started, as ``queue-system
    worker`` does. Nothing happens where the collector is disabled.

    Args:
        max_workers: of the worker.
        thread_pool_size: of the worker, too.
    """
    if not gc.isenabled():
        return
    gc.collect()
    gc.freeze()
    threshold, *older = gc.get_threshold()
    held = max_workers + thread_pool_size * (1 + ROOM_FACTOR)
    if threshold:  # with 0 it never starts by itself, as if it were disabled
        gc.set_threshold(max(threshold, OBJECTS_HELD * held), *older)
