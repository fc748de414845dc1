"""A clock for one server, which can be set: a library that is loaded before the C library adds seconds to its time."""

from __future__ import annotations

import mmap
import shlex
import shutil
import struct
import subprocess
import tempfile
from pathlib import Path
from typing import Final, Self

from chaos.lab import MissingError

_SOURCE: Final = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
static long long ahead(void) {
    static volatile long long *by;
    if (!by) {
        int file = open(getenv("CHAOS_CLOCK"), O_RDONLY);
        by = mmap(0, 8, PROT_READ, MAP_SHARED, file, 0);
        close(file);
    }
    return *by;
}
int clock_gettime(clockid_t which, struct timespec *at) {
    int result = syscall(SYS_clock_gettime, which, at);
    if (which == CLOCK_REALTIME) at->tv_sec += ahead();
    return result;
}
int gettimeofday(struct timeval *at, void *zone) {
    int result = syscall(SYS_gettimeofday, at, zone);
    if (at) at->tv_sec += ahead();
    return result;
}
time_t time(time_t *at) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (at) *at = now.tv_sec;
    return now.tv_sec;
}
"""


class Clock:
    """Exists while its ``with`` block lasts. Linux, with a C compiler; else `MissingError`."""

    def __init__(self) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="queue-system-clock-"))
        self._shared: mmap.mmap | None = None

    def __enter__(self) -> Self:
        try:
            self._build()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._shared is not None:
            self._shared.close()
        shutil.rmtree(self._directory, ignore_errors=True)

    def set(self, seconds: int) -> None:
        """From now on the clock is so many seconds ahead (below 0: behind)."""
        assert self._shared is not None
        self._shared[:8] = struct.pack("q", seconds)

    def server(self, binary: Path) -> Path:
        """A command that becomes this server, with this clock."""
        command = self._directory / binary.name
        settings = f"LD_PRELOAD={self._library} CHAOS_CLOCK={self._offset}"
        command.write_text(f'#!/bin/sh\n{settings} exec {shlex.quote(str(binary))} "$@"\n')
        command.chmod(0o700)
        return command

    @property
    def _library(self) -> Path:
        return self._directory / "clock.so"

    @property
    def _offset(self) -> Path:
        return self._directory / "ahead"

    def _build(self) -> None:
        compiler = shutil.which("cc")
        if compiler is None or not Path("/proc/self").exists():
            raise MissingError("a C compiler (cc) on Linux, for a clock that can be set")
        source = self._directory / "clock.c"
        source.write_text(_SOURCE)
        subprocess.run([compiler, "-shared", "-fPIC", "-o", self._library, source], check=True)
        self._offset.write_bytes(bytes(8))
        with self._offset.open("r+b") as file:
            self._shared = mmap.mmap(file.fileno(), 8)
