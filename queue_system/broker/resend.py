"""When calls may be sent again, and how their replies are read. Shared by both brokers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeVar

import msgspec
from redis.exceptions import NoScriptError, ResponseError

from queue_system.broker.messages import Call, Meanwhile, nothing
from queue_system.broker.scripts import Script
from queue_system.broker.translate import RETRYABLE, translate
from queue_system.errors import BrokerUnavailableError, ClosedError, QueueError

T = TypeVar("T")

INFO: Final = ("INFO", "server")
_VERSION: Final = re.compile(rb"^redis_version:([^\r\n]*)", re.MULTILINE)


class Resend(msgspec.Struct):
    """The state of one sending to an address: whether an earlier try may have been carried out.

    `meanwhile` is what is to be done while Redis is at work on it.
    """

    address: str
    meanwhile: Meanwhile = nothing
    ambiguous: bool = False

    def failed(self, error: Exception) -> QueueError:
        """The package's error for a client's. It is ambiguous when this or an earlier try was."""
        translated = translate(error, self.address)
        if isinstance(translated, BrokerUnavailableError | ClosedError):
            self.ambiguous = translated.ambiguous = translated.ambiguous or self.ambiguous
        return translated


def version_in(reply: Any) -> str:
    """``redis_version`` in the reply to `INFO`, or an empty string.

    Raises:
        redis.RedisError: the reply is an error.
    """
    if isinstance(reply, Exception):
        raise reply
    if isinstance(reply, dict):  # as redis-py's client reads it
        return str(reply.get("redis_version", ""))
    found = _VERSION.search(reply)
    return "" if found is None else found[1].decode("ascii", "replace")


def is_cluster(reply: Any) -> bool:
    """Whether the reply to `INFO` is that of a node of a Redis Cluster."""
    if isinstance(reply, dict):
        return reply.get("redis_mode") == "cluster"
    return isinstance(reply, bytes) and b"redis_mode:cluster" in reply


def is_unknown_command(error: Exception) -> bool:
    """Whether the server does not have the command, as where it was renamed."""
    return isinstance(error, ResponseError) and str(error).lower().startswith(
        ("unknown command", "err unknown command")
    )


def command_of(call: Call[Any], scripts: Mapping[str, Script], *, by_source: bool = False) -> tuple[Any, ...]:
    """The command that carries out a call: a script by its digest, or by its source where the server lacks it."""
    if call.plain:
        return (call.name, *call.args)
    script = scripts[call.name]
    how, which = ("EVAL", script.source) if by_source else ("EVALSHA", script.sha)
    return (how, which, len(call.keys), *call.keys, *call.args)


def worth_retrying(error: BaseException) -> bool:
    """Whether the same call may succeed within a second: not when Redis is full, read-only or refuses the user."""
    return isinstance(error, BrokerUnavailableError) and error.kind in RETRYABLE


def refusal(calls: Sequence[Call[Any]], replies: Sequence[Any]) -> Exception | None:
    """The first error among the replies that does not stand for a result."""
    found = zip(calls, replies, strict=True)
    return next((reply for call, reply in found if isinstance(reply, Exception) and call.refused is None), None)


def read(call: Call[T], reply: Any, address: str) -> T:
    """The result of one of many calls, whose reply is an error only if that has a meaning."""
    if isinstance(reply, Exception) and call.refused is not None:
        return call.refused(translate(reply, address))
    return call.parse(reply)


def unsettled(calls: Sequence[Call[Any]], replies: Sequence[Any]) -> list[int]:
    """Which of many calls are to be sent again, because the server did not know a script.

    Those, and the plain ones with them: what is said about others must come after them, on their connection.
    """
    unknown = [isinstance(reply, NoScriptError) for reply in replies]
    return [i for i, call in enumerate(calls) if unknown[i] or call.plain] if any(unknown) else []
