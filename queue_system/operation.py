"""The operation as it travels, and its codec. The only module that knows the wire format.

The wire format is JSON, version 1. A decoded operation is a plain dict (the `item` of the worker's steps), typed
and validated in one pass by msgspec. Values that JSON has no form for come back as their nearest JSON form: a tuple,
set or frozenset as a list, a datetime, UUID, Decimal or Path as a string, bytes as base64, a key of a dict as a string.
"""

from __future__ import annotations

import math
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NotRequired, TypedDict

import msgspec

from queue_system.conversion import collision_in
from queue_system.errors import DecodeError, EntityTooLargeError, InvalidOperationError, SerializationError

WIRE_VERSION: Final = 1
DEFAULT_MAX_BYTES: Final = 256 * 1024
DEFAULT_MAX_DEPTH: Final = 100

KIND_OPERATION: Final = "operation"
KIND_CALLBACK: Final = "callback"


UNSERIALIZABLE: Final = "__unserializable__"
"""The key of what stands in a callback's data for a value without a JSON form; its value is the type's name."""

_MAX_REASON: Final = 300
_ONLY_ASKED_OF_KEYS: Final = (bool, type(None), tuple, frozenset, dict)  # as values, the encoder knows them


class Operation(TypedDict):
    """One operation. The first part is what a producer wrote; the second what the claim adds on the worker."""

    v: int
    operation_id: str
    processor: str
    processor_module: str | None
    queue: str
    priority: str
    entity: dict[str, Any]
    kind: NotRequired[str]  # "operation" unless given; "callback" for the callback of another operation
    retry_config: NotRequired[dict[str, Any] | None]
    timeout: NotRequired[float | None]  # seconds for each attempt; None for the worker's work_timeout
    on_success: NotRequired[tuple[str, str | None] | None]  # name, module
    on_failure: NotRequired[tuple[str, str | None] | None]
    headers: NotRequired[dict[str, str]]  # trace context

    attempts: NotRequired[int]  # attempts that ended before this one
    delivery: NotRequired[int]  # claims, this one included
    token: NotRequired[int]  # fencing token of this claim
    crashes: NotRequired[int]  # earlier claims whose worker died
    exhaustions: NotRequired[int]  # earlier claims that found no free thread
    claimed_at: NotRequired[float]  # seconds, clock of Redis
    first_attempt_time: NotRequired[float]  # seconds, clock of Redis: the first call of its processor, if there was one
    accepted_at: NotRequired[float]  # seconds, clock of Redis: when it was enqueued
    previous_trace: NotRequired[str]  # traceparent of the last attempt
    ready_at: NotRequired[float]  # seconds, clock of Redis: when it became due


class _Version(TypedDict):
    v: int


class NewerSchemaError(DecodeError):
    """Written by a newer version of this package: for another worker, so it is put back and not given up."""


_GAP: Final = b"\x00"  # the encoder never writes it

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Operation)
_version_decoder = msgspec.json.Decoder(_Version)


def encode_operation(operation: Mapping[str, Any], entity: bytes, *, max_bytes: int = DEFAULT_MAX_BYTES) -> bytes:
    """The bytes for Redis of `operation`, whose entity is already JSON.

    Raises:
        EntityTooLargeError: more than `max_bytes` bytes (256 KiB by default).
    """
    return Envelope(operation).encode(operation["operation_id"], entity, max_bytes)


class Envelope:
    """Encodes operations that differ by id and entity only: what they share is encoded once.

    Args:
        operation: one of them. Its entity is of no interest; each one's own is written last.
    """

    __slots__ = ("_after_id", "_before_id", "_end")

    def __init__(self, operation: Mapping[str, Any]) -> None:
        shared = {**operation, "operation_id": msgspec.Raw(_GAP)}
        shared.pop("entity", None)
        self._before_id, _, rest = _encoder.encode({**shared, "entity": msgspec.Raw(_GAP)}).partition(_GAP)
        self._after_id, _, self._end = rest.partition(_GAP)

    def encode(self, operation_id: str, entity: bytes, max_bytes: int = DEFAULT_MAX_BYTES) -> bytes:
        """The bytes for Redis of the operation with this id, and this entity, which is already JSON.

        Raises:
            EntityTooLargeError: more than `max_bytes` bytes (256 KiB by default).
        """
        body = b"".join((self._before_id, _encoder.encode(operation_id), self._after_id, entity, self._end))
        if len(body) > max_bytes:
            raise EntityTooLargeError(
                f"the operation is {len(body):,} bytes, more than max_operation_bytes={max_bytes:,}: "
                "enqueue a reference (a key, a path) instead of the data, or raise the limit"
            )
        return body


def decode_operation(
    raw: bytes, *, max_bytes: int = DEFAULT_MAX_BYTES, max_depth: int = DEFAULT_MAX_DEPTH
) -> Operation:
    """The operation in `raw`.

    Raises:
        NewerSchemaError: its version is above this package's.
        DecodeError: too large, too deep, not JSON, not UTF-8, or not an operation; keeps `raw`.
    """
    if len(raw) > max_bytes:
        raise DecodeError(f"{len(raw):,} bytes, more than the limit of {max_bytes:,}", raw)
    if nesting_exceeds(raw, max_depth):
        raise DecodeError(f"nested deeper than the limit of {max_depth}", raw)
    try:
        operation = _decoder.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        if _version_of(raw) > WIRE_VERSION:
            raise NewerSchemaError("written by a newer version of queue-system", raw) from error
        raise DecodeError(f"not an operation: {error}", raw) from error
    if operation["v"] > WIRE_VERSION:
        raise NewerSchemaError(f"schema version {operation['v']}, this worker knows {WIRE_VERSION}", raw)
    return operation


def encode_entity(
    entity: object,
    default: Callable[[Any], Any] | None = None,
    *,
    max_depth: int = DEFAULT_MAX_DEPTH,
    sort_keys: bool = False,
) -> bytes:
    """The JSON of an entity, a dict.

    Args:
        entity: a dict of values that JSON has a form for.
        default: called with each value that has none; returns one that has. Pydantic models and paths need none.
        max_depth: levels of nesting, 100 by default.
        sort_keys: equal content gives equal bytes, for hashing.

    Raises:
        InvalidOperationError: not a dict.
        SerializationError: a value has no JSON form; the text and `path` say where.
        EntityTooLargeError: nested deeper than `max_depth`, or in a circle.
    """
    if not isinstance(entity, dict):
        raise InvalidOperationError(f"an entity is a dict, not {type(entity).__name__}: wrap it, e.g. {{'value': ...}}")
    try:
        if default is None and not sort_keys:
            encoded = _entity_encoder.encode(entity)
        else:
            encoded = _encode_value(entity, default, sort_keys=sort_keys)
    except RecursionError as error:
        raise EntityTooLargeError("the entity is nested too deep, or contains itself") from error
    except Exception as error:  # whatever the caller's `default` raises is told as a serialisation error
        path, reason = _find_unserializable(entity, default)
        raise SerializationError(f"{path} cannot be serialised: {reason or error}", path) from error
    if len(encoded) > 2 * max_depth and nesting_exceeds(encoded, max_depth):  # each level takes two brackets
        raise EntityTooLargeError(f"the entity is nested deeper than max_depth={max_depth}: flatten it")
    if b"null" in encoded:  # msgspec writes NaN and infinity as null: a silent change of the caller's data
        _refuse_non_finite(msgspec.to_builtins(entity, enc_hook=default or _default, str_keys=True))
    hook = default or _default
    sorting = _sorting_encoder if default is None else msgspec.json.Encoder(enc_hook=default, order="sorted")
    if (found := collision_in(entity, encoded, hook, sorting, "entity")) is not None:
        raise SerializationError(f"{found.path} cannot be serialised: {found.reason}: use texts as keys", found.path)
    return encoded


def encode_result(value: object) -> bytes:
    """The JSON of a processor's result for its callback. Raises nothing: a result must not cost the success.

    A value without a JSON form becomes ``{"__unserializable__": "module.Type"}``, where it is. A result that cannot be
    converted for another reason, such as a dict with the keys ``1`` and ``"1"``, becomes that as a whole, with a
    ``"reason"``. NaN and infinity become null.
    """
    try:
        encoded = _result_encoder.encode(value)
        if (found := collision_in(value, encoded, _lenient_default, _sorting_result_encoder, "result")) is None:
            return encoded
        return _encoder.encode({**_unserializable(value), "reason": f"{found.path}: {found.reason}"})
    except BaseException as error:  # noqa: BLE001  whatever its conversion raises, as model_dump() or repr() may
        return _encoder.encode({**_unserializable(value), "reason": _reason(error)})


_STRINGS = re.compile(rb'"(?:[^"\\]|\\.)*+"', re.DOTALL)
_NOT_BRACKETS = bytes(set(range(256)) - set(b"{}[]"))


def nesting_exceeds(encoded: bytes, limit: int) -> bool:
    """Whether JSON text is nested deeper than `limit`; linear in time, without recursion."""
    if encoded.count(b"{") + encoded.count(b"[") <= limit:  # the usual case, decided at the speed of memchr
        return False
    depth = 0
    for bracket in _STRINGS.sub(b"", encoded).translate(None, _NOT_BRACKETS):
        depth += 1 if bracket in b"{[" else -1
        if depth > limit:
            return True
    return False


def _encode_value(value: object, default: Callable[[Any], Any] | None, *, sort_keys: bool = False) -> bytes:
    if sort_keys:  # the JSON encoder sorts only keys that are strings already
        value = msgspec.to_builtins(value, enc_hook=default or _default, str_keys=True, order="sorted")
    return _entity_encoder.encode(value) if default is None else msgspec.json.encode(value, enc_hook=default)


def _default(value: Any) -> Any:
    if isinstance(value, pathlib.PurePath):
        return str(value)
    dump = getattr(value, "model_dump", None)
    if callable(dump):
        return dump(mode="json")
    raise TypeError(f"type {type(value).__name__} has no JSON form: convert it, or pass custom_serializer=function")


_entity_encoder = msgspec.json.Encoder(enc_hook=_default)


_sorting_encoder = msgspec.json.Encoder(enc_hook=_default, order="sorted")


def _lenient_default(value: Any) -> Any:
    if isinstance(value, _ONLY_ASKED_OF_KEYS):
        raise TypeError("it has a key without a JSON form")
    try:
        return _default(value)
    except BaseException:  # noqa: BLE001  its model_dump is the user's code
        return _unserializable(value)


_result_encoder = msgspec.json.Encoder(enc_hook=_lenient_default)
_sorting_result_encoder = msgspec.json.Encoder(enc_hook=_lenient_default, order="sorted")


def _unserializable(value: object) -> dict[str, str]:
    kind = type(value)
    return {UNSERIALIZABLE: f"{kind.__module__}.{kind.__qualname__}"}


def _reason(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"[:_MAX_REASON]
    except BaseException:  # noqa: BLE001  its text is the user's code
        return type(error).__name__


def _find_unserializable(value: Any, default: Callable[[Any], Any] | None) -> tuple[str, str]:
    """The path of the innermost value that fails on its own, and why it fails."""
    path = "entity"
    while True:
        bad_key = _bad_key(value)
        if bad_key is not None:
            return path, bad_key
        failing = next((child for child in _children(value, path) if _why_not(child[1], default)), None)
        if failing is None:
            return path, _why_not(value, default)
        path, value = failing


def _bad_key(value: Any) -> str | None:
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str | int | float) or isinstance(key, bool):
                return f"its key {key!r} is not a string"
    return None


def _children(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        yield from ((f"{path}[{key!r}]", child) for key, child in value.items())
    elif isinstance(value, list | tuple):
        yield from ((f"{path}[{index}]", child) for index, child in enumerate(value))


def _why_not(value: Any, default: Callable[[Any], Any] | None) -> str:
    """Why a value cannot be encoded; empty when it can."""
    try:
        _encode_value(value, default)
    except Exception as error:  # noqa: BLE001  its text is what we are after
        return str(error) or type(error).__name__
    return ""


def _refuse_non_finite(value: Any, path: str = "entity") -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise SerializationError(f"{path} is {value}, which JSON cannot hold: use None or a string", path)
    if isinstance(value, dict):
        for key, child in value.items():
            _refuse_non_finite(child, f"{path}[{key!r}]")
    elif isinstance(value, list | tuple | set | frozenset):
        for index, child in enumerate(value):
            _refuse_non_finite(child, f"{path}[{index}]")


def _version_of(raw: bytes) -> int:
    try:
        return _version_decoder.decode(raw)["v"]
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return 0
