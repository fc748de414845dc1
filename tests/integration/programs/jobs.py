"""Processors and callbacks for worker processes; each notes what it does in a file that outlives the process.

A note is one line, written in one piece: seconds on the machine's monotonic clock, process id, and words.
"""

from __future__ import annotations

import asyncio
import os
import time
from functools import cache
from pathlib import Path

RECORD_VARIABLE = "TEST_RECORD"


@cache
def _record():
    return os.open(os.environ[RECORD_VARIABLE], os.O_WRONLY | os.O_APPEND | os.O_CREAT)


def note(*words):
    os.write(_record(), f"{time.monotonic():.6f} {os.getpid()} {' '.join(map(str, words))}\n".encode())


def _noted(what):
    return Path(os.environ[RECORD_VARIABLE]).read_text().count(f" {what} ")


async def run_async(entity):
    note("start", entity["id"], entity.get("priority", ""))
    await asyncio.sleep(entity.get("seconds", 0.0))
    note("end", entity["id"])
    return {"id": entity["id"]}


def run_sync(entity):
    note("start", entity["id"], entity.get("priority", ""))
    time.sleep(entity.get("seconds", 0.0))
    note("end", entity["id"])
    return {"id": entity["id"]}


async def called_back(data):
    note("callback", data["operation_id"])


async def called_back_and_killed_once(data):
    note("callback", data["operation_id"])
    if _noted("callback") == 1:
        os._exit(9)
