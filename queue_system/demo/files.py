"""Which files the demo works on, and in which order of priority."""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from queue_system import ConfigurationError

PRIORITIES: Final = ("high", "normal", "low")

_LEFT_OUT: Final = frozenset({"site-packages", "dist-packages", "node_modules", "__pycache__"})
_TESTS: Final = frozenset({"test", "tests", "idle_test"})


@dataclass(frozen=True, slots=True)
class SourceFiles:
    """The files, smallest first. `left_out` counts directories and names that nobody can read; see `find_files`."""

    root: Path
    is_standard_library: bool
    paths: tuple[Path, ...]
    left_out: int


def find_files(path: Path | None = None) -> SourceFiles:
    """All files ``*.py`` under `path`, by default the standard library of the running Python without its tests.

    Its tests are two thirds of its bytes: with them the demo takes three times as long, which may be above a minute on
    a machine that is busy. Give their directory as `path` to have them.

    Installed packages (``site-packages``, ``dist-packages``, ``node_modules``) and hidden directories below `path` are
    not looked into. Left out, but counted, are directories that cannot be listed and names that are not UTF-8, which
    no JSON can carry. A file that cannot be opened is not left out: that is for its operations to find.

    Raises:
        ConfigurationError: there is no such path, or no Python file under it.
    """
    root = Path(sysconfig.get_path("stdlib") if path is None else path).absolute()
    if not root.exists():
        raise ConfigurationError(f"{str(root)!r} does not exist: give the demo a directory with Python files")
    skip = _LEFT_OUT | _TESTS if path is None else _LEFT_OUT
    unlisted: list[OSError] = []
    candidates = [root] if root.is_file() else list(_walk(root, skip, unlisted))
    paths = [candidate for candidate in candidates if _is_utf8(candidate)]
    if not paths:
        raise ConfigurationError(f"there is no Python file under {str(root)!r}: give the demo another directory")
    paths.sort(key=lambda file: (_size(file), file))
    return SourceFiles(root, path is None, tuple(paths), len(unlisted) + len(candidates) - len(paths))


def by_priority(paths: tuple[Path, ...]) -> dict[str, tuple[Path, ...]]:
    """The smallest third of the files is of high priority, so that most answers come soon; the largest of low."""
    thirds = len(PRIORITIES)
    bounds = [len(paths) * part // thirds for part in range(thirds + 1)]
    return {name: paths[bounds[part] : bounds[part + 1]] for part, name in enumerate(PRIORITIES)}


def _walk(root: Path, skip: frozenset[str], unlisted: list[OSError]) -> Iterator[Path]:
    for folder, subfolders, names in os.walk(root, onerror=unlisted.append):
        subfolders[:] = [name for name in subfolders if name not in skip and not name.startswith(".")]
        for name in names:
            file = Path(folder, name)
            # No pipe or device; but a link that leads nowhere is a file that cannot be read.
            if name.endswith(".py") and (os.path.isfile(file) or not os.path.exists(file)):  # noqa: PTH110, PTH113  Path's raise where the directory may not be entered
                yield file


def _is_utf8(path: Path) -> bool:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
