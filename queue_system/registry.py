"""Processors and callbacks: how a function is named in an operation, and how a worker finds it by that name."""

from __future__ import annotations

import functools
import inspect
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeVar, overload

from queue_system.errors import ConfigurationError, UnresolvableFunctionError
from queue_system.functions import check_callable, described, home_of, is_async, takes_context
from queue_system.imports import MAIN_MODULES, ImportPolicy, importable_main_name, is_identifier_path
from queue_system.keys import check_priority, check_queue_name
from queue_system.log import get_logger
from queue_system.retry import QueueRetryConfig

_F = TypeVar("_F", bound=Callable[..., Any])
_WHAT_TO_DO: Final = "define it with def at module level, or register it under a name (in the worker too)"


class FunctionRef(NamedTuple):
    """How an operation names a function. Without a module the name has to be registered, and unique."""

    name: str
    module: str | None

    def __str__(self) -> str:
        return self.name if self.module is None else f"{self.module}:{self.name}"


@dataclass(frozen=True, slots=True)
class Processor:
    """A function with what the worker knows about it. What is None is decided by the operation or the worker."""

    function: Callable[..., Any]
    ref: FunctionRef
    is_async: bool
    takes_context: bool
    queue: str | None = None
    priority: str | None = None
    timeout: float | None = None
    retry_config: QueueRetryConfig | None = None
    on_success: Callable[..., Any] | str | None = None
    on_failure: Callable[..., Any] | str | None = None

    @property
    def default_queue(self) -> str:
        """The queue of operations that are enqueued without one: the registered one, or the function's own name."""
        return self.queue or self.ref.name.rpartition(".")[2]


class Registry:
    """The functions that may be called without being imported by name. Thread-safe; reading takes no lock.

    What is registered from the main program is found under ``__main__`` and under the name by which other processes
    import it, so that a producer and a worker need not be started in the same way.
    """

    __slots__ = ("_by_function", "_by_name", "_by_ref", "_lock", "changes")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_ref: dict[tuple[str | None, str], Processor] = {}
        self._by_name: dict[str, tuple[Processor, ...]] = {}
        self._by_function: dict[tuple[int, int], Processor] = {}
        self.changes = 0
        """How often something was registered. As long as it stays, what was made of the registered may be kept."""

    def register(
        self,
        function: Callable[..., Any],
        *,
        name: str | None = None,
        module: str | None = None,
        queue: str | None = None,
        priority: str | None = None,
        timeout: float | None = None,
        retry_config: QueueRetryConfig | None = None,
        on_success: Callable[..., Any] | str | None = None,
        on_failure: Callable[..., Any] | str | None = None,
    ) -> Processor:
        """Register a function, by default under its own name and module, with the defaults of its operations.

        Registering again replaces: the same function with other defaults, or its newer version after a reload.

        Args:
            function: anything callable.
            name: an identifier path; needed for a lambda, a local function or an object.
            module: an identifier path.
            queue: the name of the queue.
            priority: ``high``, ``normal`` or ``low``.
            timeout: seconds, more than 0, for each attempt of an async function. A sync one has no time limit, which is
                logged as a warning: it only counts as abandoned so much later, and an awaitable that it returns is
                awaited for no longer.
            retry_config: the retry schedule.
            on_success: a callback, or a reference to it.
            on_failure: a callback, or a reference to it.

        Raises:
            ConfigurationError: an argument is out of its range; the function needs a name, is a generator function, or
                cannot be called with (entity) or (entity, context); or another function has this name.
            UnresolvableFunctionError: the string given for a callback is not a reference.
        """
        if not callable(function):
            raise ConfigurationError(f"only a callable can be registered, not {described(function)}")
        check_callable(function)
        processor = Processor(
            function=function,
            ref=_own_ref(function, name, module),
            is_async=is_async(function),
            takes_context=takes_context(function),
            queue=None if queue is None else check_queue_name(queue),
            priority=None if priority is None else check_priority(priority),
            timeout=_check_timeout(timeout),
            retry_config=_check_retry_config(retry_config),
            on_success=_check_callback("on_success", on_success),
            on_failure=_check_callback("on_failure", on_failure),
        )
        with self._lock:
            self._put(processor)
        if timeout is not None and not processor.is_async:
            tell_of_timeout(get_logger(), str(processor.ref), timeout)
        return processor

    def find(self, name: str, module: str | None = None) -> Processor | None:
        """Return what is registered under this name; without a module, only if no other module has the name."""
        found = self._by_ref.get((module, name))
        if found is None and module is None:
            namesakes = self._by_name.get(name, ())
            return namesakes[0] if len(namesakes) == 1 else None
        return found

    def by_function(self, function: Callable[..., Any]) -> Processor | None:
        """Return what was registered for this very object; the first one if it has several names."""
        return self._by_function.get(_identity(function))

    def names(self) -> tuple[FunctionRef, ...]:
        """All registered references, sorted; each function of the main program once."""
        with self._lock:
            return tuple(sorted({processor.ref for processor in self._by_ref.values()}, key=str))

    def _put(self, processor: Processor) -> None:
        name, module = processor.ref
        old = self._by_ref.get((module, name))
        if old is not None and not _same_source(old.function, processor.function):
            raise ConfigurationError(
                f"{processor.ref} is taken by {described(old.function)}: "
                f"register {described(processor.function)} under another name"
            )
        # Each index changes in one assignment, so that a reader finds the old one or the new one, never none.
        self._by_ref[module, name] = processor
        if module == importable_main_name():
            self._by_ref["__main__", name] = processor
        others = (each for each in self._by_name.get(name, ()) if each is not old)
        self._by_name[name] = (*others, processor)
        self._index_function(processor, old)
        self.changes += 1

    def _index_function(self, processor: Processor, old: Processor | None) -> None:
        identity = _identity(processor.function)
        if self._by_function.get(identity) in (None, old):
            self._by_function[identity] = processor
        if old is not None:
            # Not to be kept: with the old function gone, its id() may become that of another object.
            old_identity = _identity(old.function)
            if self._by_function.get(old_identity) is old:
                del self._by_function[old_identity]


default_registry: Final = Registry()
"""The registry of the process: where `processor` registers, and where a worker looks unless it is told otherwise."""


_DEFAULTS: Final = frozenset(
    ("name", "module", "queue", "priority", "timeout", "retry_config", "on_success", "on_failure")
)


@overload
def processor(function: _F, /) -> _F: ...


@overload
def processor(
    *,
    name: str | None = None,
    queue: str | None = None,
    priority: str | None = None,
    timeout: float | None = None,
    retry_config: QueueRetryConfig | None = None,
    on_success: Callable[..., Any] | str | None = None,
    on_failure: Callable[..., Any] | str | None = None,
    registry: Registry = default_registry,
) -> Callable[[_F], _F]: ...


def processor(
    function: _F | None = None,
    /,
    *,
    registry: Registry = default_registry,
    **defaults: Any,
) -> _F | Callable[[_F], _F]:
    """Register the decorated function, as ``@processor`` or ``@processor(queue="mail", timeout=5)``.

    The function stays as it is and can be called directly. The arguments are those of `Registry.register`; what
    the enqueuing side says explicitly goes before them.

    Raises:
        ConfigurationError: as `Registry.register`.
    """
    unknown = sorted(defaults.keys() - _DEFAULTS)
    if unknown:
        raise TypeError(f"processor() got an unexpected keyword argument {unknown[0]!r}")

    def register(decorated: _F) -> _F:
        registry.register(decorated, **defaults)
        return decorated

    return register if function is None else register(function)


def tell_of_timeout(logger: Any, processor: str, timeout: float) -> None:
    """Log that the timeout of a sync processor is none."""
    logger.warning(
        "timeout_of_sync_processor",
        processor=processor,
        timeout=timeout,
        meaning="a thread cannot be stopped: the attempt may take longer, and counts as abandoned after "
        "abandon_after or this timeout, whichever is longer; make the function async for a time limit",
    )


class ImportNeededError(Exception):
    """It is not known whether there is such a function before its module is imported, which was not to be done."""


class Resolver:
    """Finds the function that an operation names: registered first, then what the import policy lets in."""

    __slots__ = ("_imported", "_policy", "_registry")

    def __init__(self, registry: Registry, policy: ImportPolicy) -> None:
        self._registry = registry
        self._policy = policy
        self._imported: dict[tuple[str, str], Processor] = {}

    def resolve(self, name: str, module: str | None = None, *, imports: bool = True) -> Processor | None:
        """Return the processor of that name. The first call for a name may import a module, and so block.

        Args:
            name: of the function.
            module: of the function.
            imports: whether a module may be imported.

        Returns:
            The processor; None when it is not there, as in an older worker during a rolling deploy.

        Raises:
            ImportRefusedError: it is not registered, and the import policy refuses it or importing it failed.
            ImportNeededError: it is neither registered nor imported, and `imports` is false.
        """
        registered = self._registry.find(name, module)
        if registered is not None or module is None:
            return registered
        imported = self._imported.get((module, name))
        if imported is None:
            if not imports:
                raise ImportNeededError
            return self._import(name, module)
        return imported

    def registered(self, name: str, module: str | None = None) -> Processor | None:
        """Return the processor if it is registered. Imports nothing."""
        return self._registry.find(name, module)

    def _import(self, name: str, module: str) -> Processor | None:
        function = self._policy.load(module, name)
        if function is None:
            return None
        # The import may have registered it, perhaps under another name; then its defaults hold.
        found = self._registry.find(name, module) or self._registry.by_function(function)
        if found is None:
            found = Processor(function, FunctionRef(name, module), is_async(function), takes_context(function))
        self._imported[module, name] = found
        return found


def reference_of(function: Callable[..., Any] | str, registry: Registry = default_registry) -> FunctionRef:
    """Return the name under which a worker can find the function.

    An object that is registered has the reference it was registered under. Any other function has its own name and
    module; for the main program, that is the name by which other processes can import it. A string, ``module:name``,
    ``module.name`` or the bare name of something registered, is taken apart.

    Raises:
        UnresolvableFunctionError: no worker could find it; the text says what to do.
    """
    if isinstance(function, str):
        return _split(function)
    registered = registry.by_function(function)
    if registered is not None:
        return registered.ref
    problem = _why_unresolvable(function)
    if problem is not None:
        raise UnresolvableFunctionError(f"no worker could find {described(function)} by name, {problem}: {_WHAT_TO_DO}")
    return FunctionRef(function.__qualname__, _canonical(function.__module__))


def _split(text: str) -> FunctionRef:
    if ":" in text:
        module, _, name = text.partition(":")
    else:
        module, _, name = text.rpartition(".")
    if not is_identifier_path(name) or not (is_identifier_path(module) or text == name):
        raise UnresolvableFunctionError(f"{text[:200]!r} names no function: use 'module:name' or 'module.name'")
    return FunctionRef(name, module or None)


def _canonical(module: str | None) -> str | None:
    return importable_main_name() if module in MAIN_MODULES else module


def _why_unresolvable(function: object) -> str | None:
    """The reason why no other process can find it by its name and module, or None."""
    if inspect.ismethod(function):
        return "it is bound to an object"
    if isinstance(function, functools.partial):
        return "it is a functools.partial"
    if not inspect.isfunction(_unwrapped(function)):
        return "it is not a Python function"
    return _why_unnamed(getattr(function, "__qualname__", None), getattr(function, "__module__", None))


def _why_unnamed(qualified_name: object, module: object) -> str | None:
    if not isinstance(qualified_name, str) or not isinstance(module, str):
        return "it has no name and module"
    if "<lambda>" in qualified_name:
        return "it is a lambda"
    if "<locals>" in qualified_name:
        return "it is defined inside of a function"
    if "." in qualified_name:
        return "it is defined inside of a class"
    return None


def _unwrapped(function: Any) -> Any:
    try:
        return inspect.unwrap(function)
    except ValueError:  # it wraps itself
        return None


def _own_ref(function: Callable[..., Any], name: str | None, module: str | None) -> FunctionRef:
    """The reference to register under; what is not given is the function's own."""
    if name is None:
        name = getattr(function, "__qualname__", None)
        if not is_identifier_path(name):
            raise ConfigurationError(
                f"{described(function)} has no name that can be written down: register it with name=..."
            )
    elif not is_identifier_path(name):
        raise ConfigurationError(f"name must be an identifier, or several joined by dots, got {name!r}")
    if module is None:
        module = home_of(function)
    elif not is_identifier_path(module):
        raise ConfigurationError(f"module must be a module name such as 'app.tasks', got {module!r}")
    return FunctionRef(name, _canonical(module))


def _identity(function: Callable[..., Any]) -> tuple[int, int]:
    # Each access to a bound method makes a new object; what it binds stays the same.
    if inspect.ismethod(function):
        return id(function.__func__), id(function.__self__)
    return id(function), 0


def _same_source(old: Callable[..., Any], new: Callable[..., Any]) -> bool:
    """Whether it is the same object, or the same function of the source, defined again by a reload."""
    if _identity(old) == _identity(new):
        return True
    if not (inspect.isfunction(old) and inspect.isfunction(new)):
        return False
    if "<lambda>" in old.__qualname__ and old.__code__ != new.__code__:
        return False  # all lambdas of a module have the same name
    return (old.__qualname__, _canonical(old.__module__)) == (new.__qualname__, _canonical(new.__module__))


def _check_timeout(timeout: object) -> float | None:
    if timeout is None:
        return None
    if isinstance(timeout, int | float) and not isinstance(timeout, bool) and 0 < timeout < math.inf:
        return float(timeout)
    raise ConfigurationError(f"timeout must be more than 0 seconds, got {timeout!r}")


def _check_retry_config(retry_config: object) -> QueueRetryConfig | None:
    if retry_config is None or isinstance(retry_config, QueueRetryConfig):
        return retry_config
    raise ConfigurationError(f"retry_config must be a QueueRetryConfig, got {retry_config!r}")


def _check_callback(argument: str, callback: Callable[..., Any] | str | None) -> Callable[..., Any] | str | None:
    if isinstance(callback, str):
        _split(callback)
    elif callback is not None and not callable(callback):
        raise ConfigurationError(f"{argument} must be a function or a reference to one, got {callback!r}")
    return callback
