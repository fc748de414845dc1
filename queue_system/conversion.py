"""Keys of dicts that are different in Python and the same in JSON, as ``1`` and ``"1"`` are: a value would be lost.

JSON has texts as keys. Most data has no others, which is found out at the speed of the encoder; only then each key is
looked at.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple

import msgspec

_SCALARS: Final = (str, int, float, bytes, type(None))


class Collision(NamedTuple):
    """Where two keys become one, and which."""

    path: str
    reason: str


def collision_in(
    value: object, encoded: bytes, hook: Callable[[Any], Any], sorting: msgspec.json.Encoder, name: str
) -> Collision | None:
    """The first two keys in `value`, at any depth, that become one.

    Args:
        value: what was encoded.
        encoded: its JSON.
        hook: what the encoder calls for values without a JSON form.
        sorting: an encoder with this hook and an order: it refuses keys that are no texts.
        name: of the value, where the path begins.
    """
    dicts = encoded.count(b"{")
    if not dicts:
        return None
    try:
        if dicts == 1 and isinstance(value, dict):
            "".join(value)
        else:
            sorting.encode(value)
    except Exception:  # noqa: BLE001  a key is no text: whether that matters is seen next
        try:
            return _search(value, hook, name)
        except Exception as error:  # noqa: BLE001  the hook's, or that of a property
            return Collision(name, f"it has keys that are no texts, and cannot be looked through: {error}")
    return None


def _search(value: Any, hook: Callable[[Any], Any], path: str) -> Collision | None:
    if isinstance(value, dict) and (twins := _twins(value, hook)) is not None:
        return Collision(path, f"its keys {twins[0]!r} and {twins[1]!r} are the same in JSON, and one would be lost")
    for child_path, child in _children(value, hook, path):
        if (found := _search(child, hook, child_path)) is not None:
            return found
    return None


def _twins(value: Mapping[Any, Any], hook: Callable[[Any], Any]) -> tuple[Any, Any] | None:
    if all(type(key) is str for key in value):
        return None
    first: dict[str, Any] = {}
    for key in value:
        (text,) = msgspec.json.decode(msgspec.json.encode({key: None}, enc_hook=hook))
        if text in first:
            return first[text], key
        first[text] = key
    return None


def _children(value: Any, hook: Callable[[Any], Any], path: str) -> Iterable[tuple[str, Any]]:
    if isinstance(value, dict):
        return [(f"{path}[{key!r}]", child) for key, child in value.items()]
    if isinstance(value, list | tuple | set | frozenset):
        return [(f"{path}[{index}]", child) for index, child in enumerate(value)]
    if isinstance(value, _SCALARS):
        return ()
    fields = list(_fields(value))
    return [(f"{path}.{field}", getattr(value, field, None)) for field in fields] or _converted(value, hook, path)


def _fields(value: Any) -> Iterator[str]:
    """Of what the encoder takes apart by itself."""
    kind = type(value)
    if dataclasses.is_dataclass(kind):
        yield from (field.name for field in dataclasses.fields(kind))
    elif isinstance(value, msgspec.Struct):
        yield from kind.__struct_fields__
    else:
        yield from (attribute.name for attribute in getattr(kind, "__attrs_attrs__", ()))


def _converted(value: Any, hook: Callable[[Any], Any], path: str) -> Iterable[tuple[str, Any]]:
    try:
        msgspec.to_builtins(value)
    except Exception:  # noqa: BLE001  the encoder does not know it
        return [(path, hook(value))]
    return ()
