"""The import policy: which function may be imported because an operation in Redis names it.

A name in Redis is untrusted input. So all that can be checked is checked before anything is imported: the name, the
file it leads to, and that this file itself defines such a function.
"""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any, Final, NamedTuple, TypeGuard

from queue_system.errors import ConfigurationError, ImportRefusedError
from queue_system.import_scope import ImportScope, is_below, why_not_by_name

MAIN_MODULES: Final = ("__main__", "__mp_main__")
"""The main program's module, and the name it has in a child process started by `multiprocessing`."""

_MAX_NAME_LENGTH: Final = 500
_HOW_TO_ALLOW: Final = "register the function in the worker, or name its module in importable_modules"
_INNER_SCOPES: Final = (
    ast.FunctionDef,
    ast.AsyncFunctionDef,
    ast.ClassDef,
    ast.Lambda,
    ast.ListComp,
    ast.SetComp,
    ast.DictComp,
    ast.GeneratorExp,
)


class ImportPolicy:
    """Decides whether a function may be imported by its name, and imports it.

    By default (None) only modules of the program that runs here may be imported, as Python source files:

    - those of the packages of `also`, wherever they live: the modules that a worker was started with;
    - those in and below the directory of the main program;
    - those below the working directory whose package, or which themselves, the program has loaded.

    Never the standard library or a module that has the name of one of its modules, never what was installed
    (site-packages, virtual environments), never this package, and never what is not written to be run by a worker:
    ``tests``, ``conftest``, ``setup``, ``scripts``, ``migrations``, ``build``, ``dist``, ``node_modules``, wherever in
    a name or path. Both directories are as they are when the policy is made. The file system's root counts as the main
    program's directory only, since services are often started in it.

    A list names modules with all that is below them: ``["app.tasks"]`` allows ``app.tasks`` and ``app.tasks.mail``,
    not ``app.tasks_old``. They may live anywhere. An empty list turns importing off.

    Args:
        importable_modules: None, or the names of the modules that may be imported.
        also: the names of modules that may be imported as well, wherever they live and whatever they are called.

    Raises:
        ConfigurationError: `importable_modules` or `also` is not a sequence of dotted module names.
    """

    __slots__ = ("_also", "_scope", "importable_modules")

    def __init__(self, importable_modules: Sequence[str] | None = None, *, also: Sequence[str] = ()) -> None:
        self.importable_modules = None if importable_modules is None else _check_modules(importable_modules)
        self._also = _check_modules(also)
        self._scope = ImportScope(self._also)

    def load(self, module: str, name: str) -> Callable[..., Any] | None:
        """Return the function `name` that `module` defines; import the module if it has to be.

        It blocks while a module is read and run. A module that only a finder of its own can locate (some editable
        installs, frozen programs) is found when the application has imported it.

        Returns:
            The function; None when the policy allows the module but it, or the function in it, is not there.

        Raises:
            ImportRefusedError: the policy does not allow it (nothing was imported), the name is not a function that
                this very module defines, or the module's own code failed (that error is the cause).
        """
        self._check_names(module, name)
        loaded = _loaded(module)
        if loaded is not None:
            self._check_file(module, _attribute(loaded, "__file__"))
        elif not self._may_import(module, name):
            return None
        return _own_function(_import(module), module, name)

    def __repr__(self) -> str:
        return f"ImportPolicy({None if self.importable_modules is None else list(self.importable_modules)!r})"

    def _check_names(self, module: str, name: str) -> None:
        """Refuse what the two names alone give away."""
        target = f"{module}:{name}"
        if self.importable_modules is not None and not (self.importable_modules or self._also):
            raise _refusal(target, "importing by name is off; register the function in the worker")
        if module in MAIN_MODULES:
            raise _refusal(target, "a function of the main program can be found only where it is registered")
        if len(target) > _MAX_NAME_LENGTH or not is_identifier_path(module) or not name.isidentifier():
            raise _refusal(target, "it is not a plain module and function name")
        if any(part.startswith("_") for part in (*module.split("."), name)):
            raise _refusal(target, "it has a leading underscore; private names are not for import")
        self._check_module_name(module)

    def _check_module_name(self, module: str) -> None:
        if is_below(module, self._also):
            return
        if self.importable_modules is None:
            if problem := why_not_by_name(module):
                raise _refusal(module, f"{problem}; {_HOW_TO_ALLOW}")
        elif not is_below(module, self.importable_modules):
            raise _refusal(module, f"it is not below importable_modules; {_HOW_TO_ALLOW}")

    def _check_file(self, module: str, file: str | None) -> None:
        """Refuse a module whose file is not the application's own. A list of modules allows any file."""
        if self.importable_modules is not None or is_below(module, self._also):
            return
        if file is None or not file.endswith(".py"):
            raise _refusal(module, f"it has no Python source file; {_HOW_TO_ALLOW}")
        if problem := self._scope.why_not(module, Path(file)):
            raise _refusal(module, f"{problem}; {_HOW_TO_ALLOW}")

    def _may_import(self, module: str, name: str) -> bool:
        """Whether the module's file is there and defines the function; looked up without running any code.

        Raises:
            ImportRefusedError: the file, or that of a parent package, is not allowed; or the name is imported or
                assigned there, so that a module's ``from os import system`` does not make it a task.
        """
        spec = self._locate(module)
        if spec is None or spec.origin is None:  # without an origin it is a namespace package, which defines nothing
            return False
        names = _parsed(spec, module)
        if name not in names.defined and name in names.bound:
            raise _refusal(f"{module}:{name}", "that module does not define it as a function")
        return name in names.defined

    def _locate(self, module: str) -> ModuleSpec | None:
        """Find the module's file part by part, because `importlib.util.find_spec` imports all parents.

        Every file that an import would run is checked on the way.
        """
        spec: ModuleSpec | None = None
        search: list[str] | None = None  # None is sys.path
        parts = module.split(".")
        for full_name, part in zip(itertools.accumulate(parts, "{}.{}".format), parts, strict=True):
            parent = sys.modules.get(full_name)
            if parent is not None:
                spec, locations = None, _attribute(parent, "__path__")
            else:
                # The bare part: for a full name, a namespace package asks for its parent, which is not imported.
                spec = PathFinder.find_spec(part, search)
                if spec is None:
                    return None
                if spec.origin is not None:
                    self._check_file(full_name, spec.origin)
                locations = spec.submodule_search_locations
            search = list(locations or ())  # empty below a module that is no package: nothing is found there
        return spec


def is_identifier_path(text: object) -> TypeGuard[str]:
    """Whether `text` is a string of one identifier, or of several joined by dots."""
    return isinstance(text, str) and all(part.isidentifier() for part in text.split("."))


def importable_main_name() -> str:
    """The name by which another process can import the main program; ``__main__`` when there is none.

    Decided once for a main module: the name after ``python -m``, else the stem of the main file when its directory
    is on `sys.path`.
    """
    main = sys.modules.get("__main__")
    return "__main__" if main is None else _name_of_main(main)


@functools.lru_cache(maxsize=4)
def _name_of_main(main: ModuleType) -> str:
    spec = getattr(main, "__spec__", None)
    if spec is not None:
        return str(spec.name)
    path = Path(getattr(main, "__file__", None) or "")
    # A console script has no suffix: it is no module, although its directory is on sys.path.
    if path.suffix == ".py" and path.stem.isidentifier() and _is_on_path(path.parent):
        return path.stem
    return "__main__"


def _is_on_path(directory: Path) -> bool:
    return not {directory.absolute(), directory.resolve()}.isdisjoint(Path(entry).absolute() for entry in sys.path)


def _refusal(target: str, reason: str) -> ImportRefusedError:
    # repr() and the cut, because the name is untrusted and the text goes to logs.
    return ImportRefusedError(f"refused to import {target[:_MAX_NAME_LENGTH]!r}: {reason}")


def _check_modules(modules: object) -> tuple[str, ...]:
    if isinstance(modules, str) or not isinstance(modules, Sequence):
        raise ConfigurationError(f"importable_modules must be a list of module names, got {modules!r}")
    for module in modules:
        if not is_identifier_path(module):
            raise ConfigurationError(f"importable_modules: {module!r} is not a module name such as 'app.tasks'")
    return tuple(modules)


def _is_main(module: str) -> bool:
    """Whether `module` is the main program under its importable name. Importing it would run it a second time."""
    return module not in sys.modules and module == importable_main_name()


def _loaded(module: str) -> ModuleType | None:
    """The module if it is loaded. A namespace package never is: it has no code."""
    loaded = sys.modules.get("__main__" if _is_main(module) else module)
    is_namespace = _attribute(loaded, "__file__") is None and _attribute(loaded, "__path__") is not None
    return None if is_namespace else loaded


def _attribute(module: ModuleType | None, name: str) -> Any:
    """What the module itself has under that name. Not getattr(), which may run the module's ``__getattr__``."""
    return vars(module).get(name) if isinstance(module, ModuleType) else None


def _import(module: str) -> ModuleType:
    """Import the module; or take it from `sys.modules`, after waiting for a thread that is importing it now."""
    if _is_main(module):
        return sys.modules["__main__"]
    try:
        return importlib.import_module(module)
    except BaseException as error:  # whatever it raises, as a script without a main guard does, is its own
        raise ImportRefusedError(f"importing {module} failed: {_in_words(error)}") from error


def _in_words(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"
    except BaseException:  # noqa: BLE001  its text is the module's own code
        return type(error).__name__


class _ModuleNames(NamedTuple):
    """The names that a module's source binds at module level: by a ``def``, and in any other way."""

    defined: frozenset[str]
    bound: frozenset[str]


def _parsed(spec: ModuleSpec, module: str) -> _ModuleNames:
    """Read the module's source, without running it.

    Raises:
        ImportRefusedError: there is no source (an extension, or compiled files only), or it is not valid Python.
    """
    get_source = getattr(spec.loader, "get_source", None)
    try:
        source = None if get_source is None else get_source(spec.name)
        if source is not None:
            return _names_in(source)
    except (SyntaxError, ValueError, ImportError, OSError, RecursionError, MemoryError) as error:
        raise _refusal(module, f"its source cannot be read: {type(error).__name__}: {error}") from error
    raise _refusal(module, "it has no Python source; register the function in the worker")


@functools.lru_cache(maxsize=32)  # by content, so it is never stale; many operations may name what is not there
def _names_in(source: str) -> _ModuleNames:
    defined: set[str] = set()
    bound: set[str] = set()
    for node in _module_scope(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            defined.add(node.name)
        elif isinstance(node, ast.ClassDef):
            bound.add(node.name)
        elif isinstance(node, ast.alias):
            bound.add(node.asname or node.name.partition(".")[0])
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            bound.add(node.id)
    return _ModuleNames(frozenset(defined), frozenset(bound))


def _module_scope(tree: ast.Module) -> Iterator[ast.AST]:
    """All nodes that run in the module's own scope: also those below ``if`` and ``try``, none inside of a def."""
    stack: list[ast.AST] = [tree]
    while stack:
        node = stack.pop()
        yield node
        if not isinstance(node, _INNER_SCOPES):
            stack.extend(ast.iter_child_nodes(node))


def _own_function(loaded: ModuleType, module: str, name: str) -> Callable[..., Any] | None:
    """Return the function, or None if there is no such name.

    Raises:
        ImportRefusedError: it is no function, or one that was defined elsewhere or under another name.
    """
    target = f"{module}:{name}"
    if not isinstance(loaded, ModuleType):
        raise _refusal(target, "what stands for that module is not a module")
    found = _attribute(loaded, name)
    if found is None:
        return None
    try:
        function = inspect.unwrap(found)
    except ValueError as error:  # a cycle
        raise _refusal(target, f"it wraps itself: {error}") from error
    if not inspect.isfunction(function) or not callable(found):
        raise _refusal(target, "it is not a function")
    own = (module, *MAIN_MODULES) if loaded is sys.modules.get("__main__") else (module,)
    if function.__module__ not in own or function.__qualname__ != name:
        raise _refusal(target, f"that module got it from {function.__module__}:{function.__qualname__}")
    return found  # type: ignore[no-any-return]
