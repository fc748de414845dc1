"""Who is measured: this project in several settings, and its peers in pinned versions, each in an environment."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import venv
from dataclasses import dataclass
from typing import Final

ROOT: Final = pathlib.Path(__file__).resolve().parent.parent
INSTALL_SECONDS: Final = 300
_HIREDIS: Final = "hiredis==3.5.0"
_REDIS: Final = "redis==8.1.0"
_UVLOOP: Final = "uvloop==0.23.0; sys_platform != 'win32'"


@dataclass(frozen=True)
class System:
    """One row. `variant` differs from this project's defaults; `requirements` are a peer's, all pinned."""

    name: str
    adapter: str
    requirements: tuple[str, ...] = ()
    variant: str = ""
    note: str = ""

    @property
    def ours(self) -> bool:
        return self.adapter == "ours"


OURS: Final = System("ours", "ours", note="asyncio's own loop, metrics and logs on, no spans")
REDIS_PY: Final = System("redis-py", "redispy", note="not a queue: one LPUSH after the other")
VARIANTS: Final = (
    System("ours+uvloop", "ours", variant="uvloop", note="with the extra `fast`"),
    System("ours+spans", "ours", variant="spans", note="every span sampled and exported over OTLP/HTTP"),
    System("ours-telemetry", "ours", variant="off", note="telemetry=None"),
)
PEERS: Final = (
    System("huey", "huey", ("huey==3.5.4", _REDIS, _HIREDIS)),
    System("taskiq", "taskiq", ("taskiq-redis==1.2.4", "taskiq==0.13.0", _REDIS, _HIREDIS, _UVLOOP)),
    System("dramatiq", "dramatiq", ("dramatiq==2.2.1", _REDIS, _HIREDIS)),
    System("saq", "saq", ("saq==0.26.4", "redis==7.4.1", "typing_extensions==4.16.0", _HIREDIS, _UVLOOP)),
    System("arq", "arq", ("arq==0.28.0", "redis==5.3.1", _HIREDIS, _UVLOOP)),
    System("celery", "celery", ("celery==5.7.0", "kombu==5.7.0", "packaging==26.3", _REDIS, _HIREDIS)),
    System("rq", "rq", ("rq==2.12.0", _REDIS, _HIREDIS)),
    System("pydocket", "docket", ("pydocket==0.27.0", _REDIS, _HIREDIS, _UVLOOP)),
)
ALL: Final = (OURS, *VARIANTS, *PEERS)


def cache_directory() -> pathlib.Path:
    """Where the environments are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(base) / "queue-system" / "benchmarks"


def python_of(system: System) -> str:
    """The interpreter of a system's environment, which is made at the first call.

    Raises:
        InstallError: a peer could not be installed; the text says why.
    """
    if not system.requirements:
        return sys.executable
    version = system.requirements[0].partition("==")[2]
    place = cache_directory() / f"{system.name}-{version}-py{sys.version_info[0]}.{sys.version_info[1]}"
    python, ready = place / "bin" / "python", place / "requirements.txt"
    wanted = "\n".join(system.requirements)
    if not ready.exists() or ready.read_text() != wanted:
        _install(place, python, system.requirements)
        ready.write_text(wanted)
    return str(python)


class InstallError(Exception):
    """A peer is not to be had here."""


def _install(place: pathlib.Path, python: pathlib.Path, requirements: tuple[str, ...]) -> None:
    place.mkdir(parents=True, exist_ok=True)
    venv.create(place, with_pip=True, clear=True)
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *requirements]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise InstallError(f"pip took more than {INSTALL_SECONDS} s") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise InstallError(lines[-1] if lines else f"pip ended with {done.returncode}")
