"""Enqueues with patched sockets while the server hangs.

Arguments: ``gevent`` or ``eventlet``, the server's URL, its process.
"""
# ruff: noqa: T201  what the test reads

import sys

if sys.argv[1] == "gevent":
    from gevent import monkey

    monkey.patch_all()
else:
    import eventlet

    eventlet.monkey_patch()

import os
import signal
import threading
import time

from queue_system import BrokerUnavailableError, QueueConfig, QueueManager


def work(entity):
    """Nobody does it."""


redis_url, server = sys.argv[2], int(sys.argv[3])
ticks = []
ended = threading.Event()


def tick():
    """Others have their turn while one waits for Redis."""
    while not ended.is_set():
        ticks.append(1)
        time.sleep(0.01)


queue = QueueManager(QueueConfig(redis_url=redis_url, connection_timeout=0.3, max_connection_retries=1, telemetry=None))
queue.enqueue({}, work)
queue.enqueue({}, work)
os.kill(server, signal.SIGSTOP)
other = threading.Thread(target=tick)
other.start()
began, before = time.monotonic(), len(ticks)
try:
    queue.enqueue({}, work)
except BrokerUnavailableError as error:
    print(f"kind={error.kind} ambiguous={error.ambiguous}")
took = time.monotonic() - began
print(f"in_time={0.25 < took < 10.0} others={len(ticks) - before > 1}")
ended.set()
other.join()
os.kill(server, signal.SIGCONT)
print(queue.enqueue({}, work)["status"])
