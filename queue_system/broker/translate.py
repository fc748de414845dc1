"""Errors of the client library, told in the package's own terms."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import redis.exceptions as rex

from queue_system.broker.places import CrowdedError
from queue_system.errors import BrokerReplyError, BrokerUnavailableError, ClosedError, QueueError


class ClosedConnectionError(rex.ConnectionError):
    """We have closed the connections ourselves, for good."""

    def __init__(self, *, was_sent: bool) -> None:
        super().__init__("closed while this call was waiting for its answer")
        self.was_sent = was_sent


CLIENT_ERRORS: Final = (rex.RedisError, OSError)
"""What a client raises when a command could not be carried out."""

MISPLACED: Final = frozenset(
    {"loading", "readonly", "moved", "ask", "tryagain", "clusterdown", "masterdown", "unblocked"}
)
"""Kinds that say: not this server, or not now. The command was not carried out, and the connection is of no more use:
after a failover its address may name another server, which only a new connection reaches."""

LASTING: Final = frozenset({"auth", "protocol"})
"""Kinds that a connection which cannot be made will not lose by itself: somebody has to mend the address."""

RETRYABLE: Final = MISPLACED | {"connection", "timeout"}
"""Kinds that often pass within a second; a full Redis does not."""

_TRANSIENT_REPLIES: Final = {
    "LOADING": "loading",
    "READONLY": "readonly",
    "OOM": "oom",
    "MISCONF": "misconf",
    "MASTERDOWN": "masterdown",
    "NOREPLICAS": "noreplicas",
    "CLUSTERDOWN": "clusterdown",
    "TRYAGAIN": "tryagain",
    "MOVED": "moved",  # before ASK, whose class is its base
    "ASK": "ask",
    "BUSY": "busy",
    "UNBLOCKED": "unblocked",
}
# redis-py strips these codes from the text and says them with the class instead.
_STRIPPED: Final[dict[str, type[Exception]]] = {
    "READONLY": rex.ReadOnlyError,
    "OOM": rex.OutOfMemoryError,
    "MASTERDOWN": rex.MasterDownError,
    "CLUSTERDOWN": rex.ClusterDownError,
    "TRYAGAIN": rex.TryAgainError,
    "MOVED": rex.MovedError,
    "ASK": rex.AskError,
}
_BY_CLASS: Final[tuple[tuple[tuple[type[Exception], ...], str], ...]] = (
    ((rex.AuthenticationError, rex.AuthorizationError), "auth"),
    ((rex.BusyLoadingError,), "loading"),
    ((rex.TimeoutError, TimeoutError), "timeout"),
    ((rex.InvalidResponse,), "protocol"),  # HTTP, for example
)
_ADVICE: Final = {
    "connection": "is Redis running, and is the address right?",
    "timeout": "Redis did not answer in time: is it reachable, is connection_timeout long enough?",
    "auth": "check the user name and password in redis_url; in it, '@' is %40, ':' is %3A and '/' is %2F",
    "protocol": "what answers there is not Redis: is it the port of another service, such as HTTP, or of TLS?",
    "oom": "Redis is out of memory: raise maxmemory or drain the queue",
    "readonly": "this Redis is a replica: if it stays so, point redis_url at the primary",
    "masterdown": "this Redis is a replica that has lost its primary: if it stays so, point redis_url at the primary",
    "unblocked": "this Redis became a replica: if it stays so, point redis_url at the primary",
    "noreplicas": "Redis has too few replicas (min-replicas-to-write) and refuses writes: see its log",
    "moved": "this node of the cluster does not serve the queue: point redis_url at the one that does",
    "ask": "the queue is being moved to another node of the cluster, try again in a moment",
    "tryagain": "the queue is being moved to another node of the cluster, try again in a moment",
    "clusterdown": "the cluster is down: see the log of its nodes",
    "misconf": "Redis cannot persist to disk and refuses writes: see its log",
    "loading": "Redis is loading its data, try again in a moment",
    "busy": "Redis is busy with a long script",
}


_LACKS_A_RIGHT: Final = "this ACL user lacks a right: docs/security.md has the users of producers, workers and auditors"


_LOG_IN: Final = (
    "this Redis wants a password: give it in redis_url, as redis://:PASSWORD@host or redis://USER:PASSWORD@host"
)


_UNTRUSTED: Final = (
    "its certificate is not trusted: name the authority's with ?ssl_ca_certs=FILE, and the host as the certificate does"
)


_CROWDED: Final = "let fewer threads or tasks enqueue at once, or raise connection_timeout"


def translate(error: Exception, address: str) -> QueueError:
    """The package's error for a client's; `address` is the server's, without its password."""
    if isinstance(error, ClosedConnectionError):
        what = "it may have been carried out" if error.was_sent else "it was not sent"
        return ClosedError(f"Redis at {address}: {error}; {what}", ambiguous=error.was_sent)
    kind = error_kind(error)
    if kind is None:
        advice = f" ({_LACKS_A_RIGHT})" if _is_denied(error) else ""
        return BrokerReplyError(f"Redis at {address} refused a command: {error}{advice}")
    return BrokerUnavailableError(
        f"Redis at {address}: {_first_line(error)} ({_advice(kind, error)})",
        kind=kind,
        ambiguous=kind in ("connection", "timeout", "protocol") and not _never_sent(error),
    )


def error_kind(error: Exception) -> str | None:
    """One word for an error that is worth waiting out, or None for a refusal that would come again."""
    for classes, kind in _BY_CLASS:
        if isinstance(error, classes):
            return kind
    if isinstance(error, rex.DataError):  # an argument that has no form in the protocol: nothing was sent
        return None
    if isinstance(error, rex.ResponseError):
        text = str(error)
        return next((kind for word, kind in _TRANSIENT_REPLIES.items() if _says(text, error, word)), None)
    return "connection"


def is_misplaced(replies: Iterable[Any]) -> bool:
    """Whether one of these replies says that its connection is to be dropped, see `MISPLACED`."""
    for reply in replies:  # noqa: SIM110  a generator costs more, and each exchange asks
        if isinstance(reply, Exception) and error_kind(reply) in MISPLACED:
            return True
    return False


def _advice(kind: str, error: Exception) -> str:
    if isinstance(error, CrowdedError):
        return _CROWDED
    text = str(error)
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return _UNTRUSTED
    if kind == "auth" and ("uthentication required" in text or "HELLO must be called" in text):
        return _LOG_IN
    return _ADVICE.get(kind, "unavailable")


def _is_denied(error: Exception) -> bool:
    # Within a script it is an error of the script, whose words differ from version to version.
    inside = "ACL failure in script", "NOPERM", "The user executing the script"
    return isinstance(error, rex.NoPermissionError) or any(words in str(error) for words in inside)


def _says(text: str, error: Exception, word: str) -> bool:
    # The code stands in front, or (an error inside a script on Redis 6.2) after a dash within the text.
    if text.startswith(f"{word} ") or f"-{word} " in text or isinstance(error, _STRIPPED.get(word, ())):
        return True
    return word == "CLUSTERDOWN" and "while the cluster is down" in text  # inside a script, without the code


def _never_sent(error: Exception) -> bool:
    if isinstance(error, ConnectionRefusedError | CrowdedError):
        return True
    text = str(error)
    return "connecting to" in text or "Connection refused" in text


def _first_line(error: Exception) -> str:
    text = str(error) or type(error).__name__
    return text.splitlines()[0]
