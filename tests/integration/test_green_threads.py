"""gevent and eventlet: sockets that look like Python's and are none."""

from __future__ import annotations

import importlib.util

import pytest
from scaffold import PROGRAMS, program

from queue_system.embedded import EmbeddedServer


@pytest.mark.parametrize("library", ["gevent", "eventlet"])
async def test_a_server_that_hangs_is_noticed_in_time(library, tmp_path):
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    with EmbeddedServer() as server:
        arguments = (library, server.url, str(server.pid))
        with program(PROGRAMS / "green.py", *arguments, cwd=tmp_path) as green:
            assert await green.ends(20.0) == 0, green.output()
    told = [line for line in green.output().splitlines() if "warn" not in line.lower()]
    assert told[-3:] == ["kind=timeout ambiguous=True", "in_time=True others=True", "queued"]
