"""What belongs to the program that runs here, and may be imported when an operation names it: nothing else, by default.

Being below the working directory is not enough: there are tests, set-up scripts, migrations and virtual environments,
and importing one of them runs it.
"""

from __future__ import annotations

import functools
import sys
import sysconfig
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

NEVER: Final = frozenset(
    {"test", "tests", "conftest", "setup", "scripts", "migrations", "build", "dist", "node_modules", "venv"}
)
"""Names of modules and directories that are not written to be imported by a worker."""

_NO_PLACE_FOR_A_PROGRAM: Final = frozenset({"test", "tests", "scripts", "migrations"})
_VENDOR_DIRECTORIES: Final = frozenset({"site-packages", "dist-packages", "__pypackages__", ".eggs"})
_ENVIRONMENT_MARKS: Final = ("pyvenv.cfg", "conda-meta")
_LIBRARY_SCHEMES: Final = ("stdlib", "platstdlib", "purelib", "platlib", "scripts")
_OWN_PACKAGES: Final = ("queue_system", "telemetry")


class ImportScope:
    """The places where modules of this program are, as they are when this is made.

    Args:
        modules: those that the worker was started with.
    """

    __slots__ = ("_main_directory", "_packages", "_working_directory")

    def __init__(self, modules: Iterable[str]) -> None:
        packages = {_package_of(module) for module in modules} - {"", *_OWN_PACKAGES}
        self._packages = tuple(sorted(packages))
        self._main_directory = _main_directory()
        self._working_directory = _working_directory()

    def why_not(self, module: str, file: Path) -> str:
        """Why a module in that file is none of this program; empty when it is one."""
        if any(parent.is_file() for parent in file.parents):  # a pex, say, which brings its libraries along
            return "it is in an archive"
        if is_below(module, self._packages):
            return ""
        # A symbolic link must be innocent at both ends.
        absolute, resolved = file.absolute(), file.resolve()
        if _is_library(absolute) or _is_library(resolved):
            return "it is an installed library, not the application's own"
        root = self._root_of(module, resolved)
        if root is None:
            return (
                "it is outside of the application, which is the directory of the main program, the packages that it "
                "has loaded, and those of the modules that the worker was started with"
            )
        unfit = [part for part in resolved.relative_to(root).parts[:-1] if part.lower() in NEVER]
        return f"what is in a directory {unfit[0]!r} is not imported unless it is listed" if unfit else ""

    def _root_of(self, module: str, file: Path) -> Path | None:
        main, working = self._main_directory, self._working_directory
        if main is not None and file.is_relative_to(main) and main.name.lower() not in _NO_PLACE_FOR_A_PROGRAM:
            return main
        if working is not None and file.is_relative_to(working) and module.partition(".")[0] in sys.modules:
            return working
        return None


def why_not_by_name(module: str) -> str:
    """Why a module of that name is not imported unless it is listed, wherever it is; empty when it may be."""
    parts = module.split(".")
    if parts[0] in _standard_library():
        return "it has the name of a module of the standard library"
    unfit = next((part for part in parts if part.lower() in NEVER or part.lower().startswith("test_")), None)
    return "" if unfit is None else f"a module {unfit!r} is not imported unless it is listed"


def is_below(module: str, allowed: Sequence[str]) -> bool:
    """Whether it is one of the allowed modules, or in one of these packages."""
    return any(f"{module}.".startswith(f"{each}.") for each in allowed)


def _package_of(module: str) -> str:
    """The package that a module belongs to: the outermost that has code of its own, else the one it is in."""
    first, dot, _ = module.partition(".")
    loaded = sys.modules.get(first)
    is_namespace = loaded is not None and getattr(loaded, "__file__", None) is None
    if is_namespace:
        return module.rpartition(".")[0]
    has_others = bool(dot) or getattr(loaded, "__path__", None) is not None
    return first if has_others else ""


def _main_directory() -> Path | None:
    file = getattr(sys.modules.get("__main__"), "__file__", None)
    return None if file is None else Path(file).resolve().parent


def _working_directory() -> Path | None:
    """The working directory, unless it is the root of the file system, or was deleted."""
    try:
        directory = Path.cwd().resolve()
    except FileNotFoundError:
        return None
    return None if directory == directory.parent else directory


def _is_library(path: Path) -> bool:
    if any(part.lower() in _VENDOR_DIRECTORIES for part in path.parts):
        return True
    if not _library_directories().isdisjoint(path.parents):
        return True
    return any((parent / mark).exists() for parent in path.parents for mark in _ENVIRONMENT_MARKS)


@functools.cache
def _standard_library() -> frozenset[str]:
    return sys.stdlib_module_names | frozenset(sys.builtin_module_names)


@functools.cache
def _library_directories() -> frozenset[Path]:
    """Where the standard library, installed packages and commands, and this package itself are."""
    own = Path(__file__).parent
    directories = [Path(sysconfig.get_path(scheme)) for scheme in _LIBRARY_SCHEMES]
    directories += [own, own.parent / "telemetry"]
    return frozenset(path for directory in directories for path in (directory.absolute(), directory.resolve()))
