"""Jaeger's own program, built from its Go module and kept in the user's cache: ``python -m stack.jaeger`` builds it.

The module's version is that of Jaeger 1; the same commit is Jaeger `VERSION`, whose tag the Go client cannot take,
since the module's path does not end in ``/v2``. What is built is ``cmd/jaeger``, which is Jaeger 2. The module has no
build of the web pages, so that ``/`` shows a placeholder; the query API is complete.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from stack.programs import HOST, Program, Programs, free_port

VERSION: Final = "2.13.0"
MODULE: Final = "github.com/jaegertracing/jaeger"
MODULE_VERSION: Final = "v1.76.0"
BUILD_LIMIT: Final = 900.0
"""Seconds for a build; ten minutes of two cores, and only once."""

CONFIG: Final = Path(__file__).parents[1] / "deploy" / "jaeger" / "jaeger.yaml"


class JaegerMissingError(Exception):
    """There is no Jaeger, and the text says why."""


def cached() -> Path:
    """Where the built program is, or would be."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "queue-system" / f"jaeger-v{VERSION}" / "jaeger"


def find() -> Path | None:
    """The built program, or one on the PATH; None without."""
    if cached().is_file():
        return cached()
    found = shutil.which("jaeger")
    return Path(found) if found else None


def build(limit: float = BUILD_LIMIT) -> Path:
    """Build it, unless it is there, with the least priority.

    Raises:
        JaegerMissingError: no Go toolchain, no module, no success, or not within `limit` seconds.
    """
    target = cached()
    if target.is_file():
        return target
    go = shutil.which("go")
    if go is None:
        raise JaegerMissingError("there is no Go toolchain to build Jaeger with")
    deadline = time.monotonic() + limit
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f"jaeger.{os.getpid()}")
    source = _source(go, limit)
    flags = f"-s -w -X {MODULE}/internal/version.latestVersion=v{VERSION}"
    command = ("build", "-trimpath", "-ldflags", flags, "-o", str(unfinished), "./cmd/jaeger")
    try:
        _run(go, *command, directory=source, limit=deadline - time.monotonic())
        unfinished.rename(target)  # at once: another process never finds half a program
    finally:
        unfinished.unlink(missing_ok=True)
    return target


def start(programs: Programs, binary: Path, *, query: int, otlp: int) -> Program:
    """Start it with the committed configuration, on 127.0.0.1, with its pages and its OTLP over HTTP on these ports."""
    ports = {"JAEGER_QUERY_PORT": query, "JAEGER_OTLP_HTTP_PORT": otlp}
    ports |= {f"JAEGER_{name}_PORT": free_port() for name in ("QUERY_GRPC", "HEALTH", "OTLP_GRPC")}
    program = programs.start(
        "Jaeger",
        [binary, "--config", CONFIG],
        url=f"http://{HOST}:{query}",
        ready="/api/services",
        variables={"JAEGER_LISTEN_HOST": HOST} | {name: str(port) for name, port in ports.items()},
    )
    program.otlp_url = f"http://{HOST}:{otlp}"
    program.stop_limit = 2.0  # it waits ten seconds for connections that idle; what it has in memory is lost anyway
    return program


def _source(go: str, limit: float) -> Path:
    """The unpacked module, in the Go client's own cache. ``go install`` would refuse it: it has a replace directive."""
    said = _run(go, "mod", "download", "-json", f"{MODULE}@{MODULE_VERSION}", directory=cached().parent, limit=limit)
    return Path(json.loads(said)["Dir"])


def _run(go: str, *arguments: str, directory: Path, limit: float) -> str:
    nice = [found, "-n", "19"] if (found := shutil.which("nice")) else []
    environment = os.environ | {"CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly", "GOWORK": "off"}
    try:
        done = subprocess.run(  # noqa: S603  the user's own toolchain
            [*nice, go, *arguments],
            cwd=directory,
            env=environment,
            capture_output=True,
            text=True,
            timeout=max(limit, 1.0),
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise JaegerMissingError(f"building Jaeger took longer than {limit:.0f} s") from None
    if done.returncode:
        raise JaegerMissingError(f"go {' '.join(arguments[:2])} failed: {done.stderr.strip()[-600:]}")
    return done.stdout


if __name__ == "__main__":
    sys.stdout.write(f"building Jaeger {VERSION}: several minutes, once\n")
    try:
        sys.stdout.write(f"{build(3600.0)}\n")
    except JaegerMissingError as error:
        sys.exit(str(error))
