"""An operation that kills its worker each time."""

from __future__ import annotations

import os
import signal


async def kill_worker(entity):
    os.kill(os.getpid(), signal.SIGKILL)
