"""What is known of a function before a call: sync or async, with which arguments, and whether a call would run it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any, Final

from queue_system.errors import ConfigurationError

_MAX_LAYERS: Final = 100
_CALLED_WITH: Final = "a worker calls it with (entity), or with (entity, context)"


def is_async(function: Callable[..., Any]) -> bool:
    """Whether calling it gives a coroutine: also through `functools.partial`, a method, or ``__call__``.

    What it wraps does not count: a plain ``def`` is sync, and may well wait for the async function that it wraps, as
    ``asyncio.run`` does. A function marked with `inspect.markcoroutinefunction` is async.
    """
    return any(_gives_coroutine(part) for part in _parts(function))


def takes_context(function: Callable[..., Any]) -> bool:
    """Whether it is to be called with (entity, context) instead of (entity).

    So it is when its second positional parameter has no default, or is named ``context``.
    """
    try:
        parameters = _parameters(function)
    except (TypeError, ValueError):  # some built-in functions have no signature
        return False
    positional = [each for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]
    if len(positional) < 2:  # noqa: PLR2004
        return False
    return positional[1].default is inspect.Parameter.empty or positional[1].name == "context"


def check_callable(function: Callable[..., Any]) -> None:
    """Check that a worker's call would run it.

    Raises:
        ConfigurationError: it is a generator function, whose body a call does not run; it needs other arguments than
            (entity) or (entity, context); or it is a method without its object. The text says what to do.
    """
    if any(_gives_generator(part) for part in _parts(function)):
        raise ConfigurationError(
            f"{described(function)} is a generator function, and calling it runs nothing: "
            "return a value instead of yielding, or register a function that goes through it"
        )
    try:
        signature = inspect.signature(function, follow_wrapped=False)
    except (TypeError, ValueError):  # some built-in functions have none
        return
    if _is_loose_method(function, signature):
        raise ConfigurationError(
            f"{described(function)} is a method without its object: register it bound, as in register(Tasks().run)"
        )
    arguments = (None, None) if takes_context(function) else (None,)
    try:
        signature.bind(*arguments)
    except TypeError:
        raise ConfigurationError(f"{described(function)} {_what_it_needs(signature)}") from None


def described(function: object) -> str:
    """The function for an error text. Not its repr(), which shows the arguments of a partial."""
    name = getattr(function, "__qualname__", None)
    return f"an object of type {type(function).__qualname__}" if name is None else f"{name} ({home_of(function)})"


def home_of(function: object) -> str | None:
    """The module of the function; of the innermost one for a partial, of its class for an object."""
    while isinstance(function, functools.partial):
        function = function.func
    return getattr(function, "__module__", None)


def _parts(function: Any) -> Iterator[Any]:
    """The callable and what a call of it is handed on to, with the ``__call__`` of each."""
    for _ in range(_MAX_LAYERS):
        yield function
        yield type(function).__call__
        inner = _handed_to(function)
        if inner is None:
            return
        function = inner


def _handed_to(function: Any) -> Any:
    """What Python itself hands the call on to. Not ``__wrapped__``: a wrapper's code decides what becomes of a call."""
    if isinstance(function, functools.partial):
        return function.func
    if isinstance(function, staticmethod):
        return function.__func__
    if inspect.ismethod(function):
        made_from = vars(function.__func__) if inspect.isfunction(function.__func__) else {}
        method = made_from.get("__partialmethod__") or made_from.get("_partialmethod")  # the latter before Python 3.13
        return method.func if isinstance(method, functools.partialmethod) else None
    return None


def _gives_coroutine(part: Any) -> bool:
    return _is(inspect.iscoroutinefunction, part) or _is_generator_coroutine(part)


def _gives_generator(part: Any) -> bool:
    is_generator = _is(inspect.isgeneratorfunction, part) or _is(inspect.isasyncgenfunction, part)
    return is_generator and not _is_generator_coroutine(part)


def _is(ask: Callable[[Any], bool], part: Any) -> bool:
    try:
        return ask(part)
    except Exception:  # noqa: BLE001  an object that looks like a function, and is none, as a mock with a spec
        return False


def _is_generator_coroutine(part: Any) -> bool:
    """Whether it is a generator function made awaitable by `types.coroutine`."""
    code = getattr(getattr(part, "__func__", part), "__code__", None)
    return inspect.iscode(code) and bool(code.co_flags & inspect.CO_ITERABLE_COROUTINE)


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """The parameters of the function as it is called; a wrapper with ``*args`` passes them on to what it wraps."""
    own = list(inspect.signature(function, follow_wrapped=False).parameters.values())
    if any(each.kind is each.VAR_POSITIONAL for each in own):
        return list(inspect.signature(function).parameters.values())
    return own


def _is_loose_method(function: object, signature: inspect.Signature) -> bool:
    holder = getattr(function, "__qualname__", "").rpartition(".")[0]
    in_class = inspect.isfunction(function) and holder and not holder.endswith("<locals>")
    return bool(in_class) and next(iter(signature.parameters), "") in ("self", "cls")


def _what_it_needs(signature: inspect.Signature) -> str:
    """Why it cannot be called, and what to do."""
    required = [each for each in signature.parameters.values() if each.default is each.empty]
    keywords = [each.name for each in required if each.kind is each.KEYWORD_ONLY]
    needed = [each.name for each in required if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]
    if keywords:
        what = f"needs {', '.join(keywords)} by keyword"
    elif needed:
        what = f"needs {len(needed)} arguments ({', '.join(needed)})"
    else:
        return f"takes no argument: {_CALLED_WITH}"
    return f"{what}, but {_CALLED_WITH}: give the others a default, or bind them with functools.partial"
