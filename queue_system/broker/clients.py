"""Makes redis-py clients: from a URL, an embedded server, or the settings of a client that the user has."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from difflib import get_close_matches
from functools import cache
from typing import Any, Final, Protocol
from urllib.parse import SplitResult, parse_qs, parse_qsl, urlsplit

import redis
import redis.asyncio as aioredis
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.connection import URL_QUERY_ARGUMENT_PARSERS
from redis.retry import Retry

from queue_system.errors import ConfigurationError, UnsupportedServerError

_HASH_TAG: Final = re.compile(r"^[^{]*\{[^}]+\}")  # as Redis finds it: from the first brace to the one that closes it
MINIMUM_VERSION: Final = (6, 2)
SCHEMES: Final = ("redis", "rediss", "valkey", "valkeys", "unix", "embedded")
_REAL_SCHEMES: Final = {"valkey": "redis", "valkeys": "rediss"}  # as redis-py knows them

_FORM: Final = (
    "use redis://[user:password@]host:port/db, with %2F for '/', %3F for '?', %23 for '#' and %40 for '@' in a password"
)

_CONNECTIONS: Final = {
    "redis": redis.Connection,
    "rediss": redis.SSLConnection,
    "valkey": redis.Connection,
    "valkeys": redis.SSLConnection,
    "unix": redis.UnixDomainSocketConnection,
}
_VALUES: Final[Mapping[str, Any]] = URL_QUERY_ARGUMENT_PARSERS  # what reads an option of a URL, by name
_ASYNC_CONNECTIONS: Final = {
    redis.Connection: aioredis.Connection,
    redis.SSLConnection: aioredis.SSLConnection,
    redis.UnixDomainSocketConnection: aioredis.UnixDomainSocketConnection,
}
# Objects of the synchronous client that an asynchronous one cannot use, or that are ours to set.
_OWN_SETTINGS: Final = ("retry", "retry_on_error", "retry_on_timeout", "parser_class", "decode_responses",
                        "socket_timeout", "socket_connect_timeout", "maint_notifications_config",
                        "maint_notifications_pool_handler", "event_dispatcher", "himself")  # fmt: skip
# What a connection takes, and a text cannot be.
_OBJECTS: Final = frozenset(("self", "args", "kwargs", "retry", "parser_class", "encoder_class", "credential_provider",
                             "redis_connect_func", "event_dispatcher", "driver_info", "maint_notifications_config",
                             "maint_notifications_pool_handler", "himself", "host", "port", "path"))  # fmt: skip


class ClientFactory(Protocol):
    """Where the brokers get their clients from. `address` never shows a password."""

    address: str

    def sync(self, *, timeout: float) -> redis.Redis:
        """A client whose commands take at most `timeout` seconds."""
        ...

    def aio(self, *, timeout: float) -> aioredis.Redis:
        """The same for asyncio; a pool of connections of its own."""
        ...


class UrlClients:
    """Clients of the server that a URL names.

    Args:
        url: ``redis://``, ``rediss://``, ``valkey://``, ``valkeys://``, ``unix://`` or ``embedded://[PATH]``.

    Raises:
        ConfigurationError: the URL has another scheme, or is no URL.
    """

    def __init__(self, url: str) -> None:
        check_url(url)
        self._url = url
        self._embedded = urlsplit(url).scheme == "embedded"
        self.address = hide_password(url)

    def sync(self, *, timeout: float) -> redis.Redis:
        """See `ClientFactory`."""
        client = redis.Redis.from_url(self._real_url(), retry=Retry(NoBackoff(), 0), **self._own_class("sync"))
        client.connection_pool.connection_kwargs.update(self._options(timeout))
        return client

    def aio(self, *, timeout: float) -> aioredis.Redis:
        """See `ClientFactory`."""
        lost = [
            name for name in parse_qs(urlsplit(self._url).query) if name not in _url_options(aioredis.SSLConnection)
        ]
        if lost:
            raise ConfigurationError(f"the asynchronous client of redis-py has no {', '.join(lost)}: leave it out")
        client = aioredis.Redis.from_url(self._real_url(), retry=AsyncRetry(NoBackoff(), 0), **self._own_class("aio"))
        client.connection_pool.connection_kwargs.update(self._options(timeout))
        return client

    def _options(self, timeout: float) -> dict[str, Any]:
        # Not handed to from_url, where the URL's query would win over them.
        return _options(timeout, tcp=urlsplit(self._url).scheme != "unix")

    def _real_url(self) -> str:
        if self._embedded:
            return _start_embedded(self._url)
        scheme, _, rest = self._url.partition(":")
        return f"{_REAL_SCHEMES.get(scheme, scheme)}:{rest}"

    def _check_asynchronous(self) -> None:
        parts = urlsplit(self._url)
        known = () if self._embedded else _url_options(_ASYNC_CONNECTIONS[_CONNECTIONS[parts.scheme]])
        lost = [name for name in parse_qs(parts.query) if name not in known]
        if lost:
            raise ConfigurationError(f"the asynchronous client of redis-py has no {', '.join(lost)}: leave it out")

    def _own_class(self, side: str) -> dict[str, Any]:
        """That of connections to an embedded server: when its owner ends, it is another's, on another port."""
        if not self._embedded:
            return {}
        from queue_system.broker import lookup  # noqa: PLC0415  only who uses it pays for it

        connection_class = lookup.LookupConnection if side == "sync" else lookup.AsyncLookupConnection
        return {"connection_class": connection_class, "lookup": self._real_url}


class SettingsClients:
    """Clients with the connection settings of one that the user has made (TLS, ACL user, database, ...)."""

    def __init__(self, client: redis.Redis) -> None:
        pool = getattr(client, "connection_pool", None)
        if isinstance(client, aioredis.Redis):
            raise ConfigurationError(
                "redis_client must be a redis.Redis, not a redis.asyncio.Redis: only its settings are used, "
                "for AsyncQueueManager and QueueWorker, too"
            )
        if type(client).__module__.partition(".")[0] == "fakeredis":
            raise ConfigurationError(
                "redis_client must be a redis.Redis, not a FakeRedis, whose data others would not see: "
                "use queue_system.testing, which keeps them in memory"
            )
        if pool is None or not hasattr(pool, "connection_kwargs"):
            raise ConfigurationError(
                f"redis_client must be a redis.Redis, not {type(client).__name__}; for a cluster or sentinel pass "
                "redis_url of the primary"
            )
        self._connection_class = pool.connection_class
        self._tcp = "path" not in pool.connection_kwargs
        self._settings = {name: value for name, value in pool.connection_kwargs.items() if name not in _OWN_SETTINGS}
        place = self._settings.get("path") or f"{self._settings.get('host')}:{self._settings.get('port')}"
        self.address = f"{place}/{self._settings.get('db', 0)}"

    def sync(self, *, timeout: float) -> redis.Redis:
        """See `ClientFactory`."""
        pool = redis.ConnectionPool(
            connection_class=self._connection_class,
            **{**self._settings, **_options(timeout, tcp=self._tcp), "retry": Retry(NoBackoff(), 0)},
        )
        return redis.Redis(connection_pool=pool)

    def aio(self, *, timeout: float) -> aioredis.Redis:
        """See `ClientFactory`."""
        connection_class = _ASYNC_CONNECTIONS.get(self._connection_class)
        if connection_class is None:
            raise ConfigurationError(
                f"no asynchronous twin of {self._connection_class.__name__} is known: pass redis_url instead"
            )
        settings = {**self._settings, **_options(timeout, tcp=self._tcp), "retry": AsyncRetry(NoBackoff(), 0)}
        known = _known_to(connection_class)
        lost = [name for name, value in settings.items() if value and name not in known]
        if lost:
            raise ConfigurationError(f"the asynchronous client of redis-py has no {', '.join(lost)}: pass redis_url")
        pool: Any = aioredis.ConnectionPool(
            connection_class=connection_class,
            **{name: value for name, value in settings.items() if name in known},
        )
        return aioredis.Redis(connection_pool=pool)


def check_url(url: object) -> str:
    """Return `url`, or raise `ConfigurationError` with what is wrong, never with its password."""
    if not isinstance(url, str):
        raise ConfigurationError(f"redis_url must be a string, not {type(url).__name__}")
    if url != url.strip() or any(character in url for character in "\t\r\n"):
        raise ConfigurationError("redis_url has a space or line break in front, behind or within: take it out")
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise ConfigurationError(f"redis_url is not a valid URL: {_FORM}") from None
    if _ends_early(parts):
        raise ConfigurationError(f"redis_url has an '@' after its host: {_FORM}")
    if parts.scheme not in SCHEMES:
        raise ConfigurationError(
            f"redis_url has the scheme {parts.scheme!r}: use one of {', '.join(f'{name}://' for name in SCHEMES)}"
        )
    if not url.startswith(f"{parts.scheme}://"):
        raise ConfigurationError(f"redis_url must start with {parts.scheme}://, in small letters and with both slashes")
    if parts.scheme == "embedded":
        _check_embedded(parts)
    else:
        _check_place(parts)
    return url


def _check_embedded(parts: SplitResult) -> None:
    if parts.netloc or parts.query or parts.fragment or parts.path == "/":
        raise ConfigurationError("redis_url is neither embedded:// nor embedded:///absolute/path (three slashes)")


def _check_place(parts: SplitResult) -> None:
    """Refuse what redis-py passes over, or tells of only when it connects."""
    if parts.scheme != "unix" and not re.fullmatch("/*[0-9]*/*", parts.path):
        raise ConfigurationError("redis_url has something other than a number of a database behind its host: "
                                 "it looks like redis://host:port/0")  # fmt: skip
    known = _url_options(_CONNECTIONS[parts.scheme])
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name not in known:
            shown = repr(name) if f"{name}=" in parts.query else "without a value"
            raise ConfigurationError(f"redis_url has an unknown option {shown}: {_advice(name, known)}")
        try:
            _VALUES.get(name, str)(value)
        except ValueError:
            raise ConfigurationError(f"redis_url has a value of {name!r} that cannot be read: see redis-py") from None


def _advice(name: str, known: frozenset[str]) -> str:
    if name in _url_options(redis.SSLConnection):
        return "it is one of TLS, which needs rediss:// or valkeys://"
    near = get_close_matches(name, known, 1)
    return f"did you mean {near[0]!r}?" if near else "known are those of redis-py, such as client_name"


def hide_password(url: str) -> str:
    """The URL with ``***`` in place of whatever may be a secret, in the authority and in the query."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return "***"
    if _ends_early(parts):
        return f"{parts.scheme}://***"
    netloc, query = parts.netloc, "&".join(map(_hide_value, parts.query.split("&")))
    if "@" in netloc:  # one word in front of it may be meant as the password
        user = f"{parts.username}:***@" if parts.username and parts.password is not None else "***@"
        netloc = f"{user}{netloc.rpartition('@')[2]}"
    return f"{parts.scheme}://{netloc}{parts.path}{query and f'?{query}'}"


def _hide_value(pair: str) -> str:
    name, equals, _ = pair.partition("=")
    known = _url_options(redis.SSLConnection)
    if "@" not in pair and "password" not in name and name in known:
        return pair
    return f"{name}=***" if equals else name and "***"


@cache
def _url_options(connection_class: type) -> frozenset[str]:
    """What the query of a URL may name."""
    return frozenset(_known_to(connection_class)) - _OBJECTS | {"max_connections"}


def _ends_early(parts: SplitResult) -> bool:
    """Whether a '/', '?' or '#' in the password ended the authority: what follows would be taken for no secret."""
    names = "".join(pair.partition("=")[0] for pair in parts.query.split("&"))
    return parts.scheme in {"redis", "rediss", "valkey", "valkeys"} and "@" in f"{parts.path}{parts.fragment}{names}"


def check_server(version: str, address: str) -> None:
    """Raise `UnsupportedServerError` when the server is older than 6.2. An unknown form of version passes."""
    numbers = version.split(".")
    try:
        found = (int(numbers[0]), int(numbers[1]))
    except (ValueError, IndexError):
        return
    if found < MINIMUM_VERSION:
        raise UnsupportedServerError(f"Redis at {address} is version {version}: 6.2 or newer (or Valkey) is needed")


def check_prefix(prefix: str, address: str, *, is_cluster: bool) -> None:
    """Raise `ConfigurationError` when the keys of a prefix would be spread over a Redis Cluster.

    A script must find all its keys in one slot: without a hash tag every claim would be refused.
    """
    if is_cluster and not _HASH_TAG.search(prefix):
        raise ConfigurationError(
            f"Redis at {address} is a cluster, and the keys of queue_prefix={prefix!r} would be spread over it:"
            f" put a hash tag into the prefix, such as queue_prefix='{{{prefix.strip(':{}') or 'queue'}}}:'"
        )


def _options(timeout: float, *, tcp: bool) -> dict[str, Any]:
    # The library's own retries are off: they would send commands twice that must not be.
    options: dict[str, Any] = {
        "decode_responses": False,
        "socket_timeout": timeout,
        "socket_connect_timeout": timeout,
        "health_check_interval": 0,
    }
    return options | {"socket_keepalive": True} if tcp else options


def _known_to(connection_class: type) -> set[str]:
    """The names of all arguments that a connection class and its bases take."""
    makers = [vars(each)["__init__"] for each in connection_class.__mro__ if "__init__" in vars(each)]
    return {name for make in makers for name in inspect.signature(make).parameters}


def _start_embedded(url: str) -> str:
    from queue_system.embedded import embedded_url  # noqa: PLC0415  only who uses it pays for it

    return embedded_url(url)
